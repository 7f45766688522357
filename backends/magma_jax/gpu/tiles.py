"""Parameters cut into tiles, one CUDA program per tile, and the namespace that the core's functions use there."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from magma_core.blocks import Blocks
from magma_core.namespace import Namespace
from magma_core.numerics import Operand, Real
from magma_jax import namespace

TILE = 4096  # elements; 16 per thread, so some 100 KiB are in flight to each multiprocessor
LEAST = 1024  # elements of a block; in smaller blocks most threads would idle
WARPS = 8
INTERPRET = False  # for tests: run kernels without CUDA

Ref: TypeAlias = Any
Given: TypeAlias = tuple[Any, pl.BlockSpec]
"""An array, or its shape and dtype, and the part that a program sees."""


class Tiles(NamedTuple):
    """A parameter's tiling: each block is contiguous in memory and cut into tiles; its last tile may be short."""

    blocks: int
    size: int  # of a block
    tile: int

    @classmethod
    def of(cls, blocks: Blocks) -> "Tiles | None":
        """The tiling; None if there is nothing to cut, or blocks are not contiguous."""
        in_order = blocks.axes == tuple(range(len(blocks.axes)))
        if not in_order or blocks.block_size < LEAST or blocks.count * blocks.block_size >= 2**31:
            return None
        return cls(blocks.count, blocks.block_size, min(TILE, 1 << (blocks.block_size - 1).bit_length()))

    @property
    def of_each(self) -> int:
        """The number of tiles of a block."""
        return pl.cdiv(self.size, self.tile)

    def elements(self, x: Any) -> Given:
        """An array of the parameter's shape; a program sees its tile."""
        seen = pl.BlockSpec((None, self.tile), lambda i: (i // self.of_each, i % self.of_each))
        shape = self.blocks, self.size
        return (x.reshape(shape) if isinstance(x, jax.Array) else jax.ShapeDtypeStruct(shape, x)), seen

    def per_block(self, x: Any) -> Given:
        """(blocks, n): a program sees the entries of its block."""
        return x, pl.BlockSpec((None, x.shape[1]), lambda i: (i // self.of_each, 0))

    def per_tile(self, x: Any) -> Given:
        """(tiles, n): a program sees its own entries."""
        return x, pl.BlockSpec((None, x.shape[1]), lambda i: (i, 0))

    def mask(self) -> jax.Array | None:
        """Which elements of this program's tile exist; None if all do."""
        if self.size % self.tile == 0:
            return None
        return lax.iota(jnp.int32, self.tile) < self.size - pl.program_id(0) % self.of_each * self.tile

    def run(
        self, body: Callable[..., None], inputs: Sequence[Given], outputs: Sequence[Given], aliases: Mapping[int, int]
    ) -> Sequence[jax.Array]:
        """Run one program per tile; ``aliases`` maps inputs to the outputs that share their memory."""
        arrays, seen = zip(*inputs, strict=True)
        made, written = zip(*outputs, strict=True)
        kernel = pl.pallas_call(
            body,
            grid=(self.blocks * self.of_each,),
            in_specs=seen,
            out_specs=written,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in made],
            input_output_aliases=dict(aliases),
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
            interpret=INTERPRET,
            name=body.__name__,
        )
        return kernel(*arrays)


def load(ref: Ref, mask: jax.Array | None) -> jax.Array:
    """Load a tile, with 0 for missing elements: zeros change neither maxima nor sums."""
    return ref[...] if mask is None else triton.load(ref, mask=mask, other=0)


def store(ref: Ref, x: jax.Array, mask: jax.Array | None) -> None:
    """The reverse of `load`."""
    triton.store(ref, x, mask=mask)


Constants: TypeAlias = tuple[float | None, ...]


def split(numbers: Sequence[Operand]) -> tuple[Constants, list[jax.Array]]:
    """Numbers as a kernel takes them: known ones, with None for the others, and the others as arrays of one element."""
    constants = tuple(None if isinstance(x, Real) else float(x) for x in numbers)
    return constants, [x.array.reshape(1) for x in numbers if isinstance(x, Real)]


def join(constants: Constants, others: Sequence[Ref]) -> list[Operand]:
    """The reverse of `split`, inside a kernel."""
    left = iter(others)
    return [Real(next(left)[0], xp=XP) if x is None else x for x in constants]


def whole(vector: jax.Array) -> Given:
    """An array that every program sees whole."""
    return vector, pl.BlockSpec(vector.shape, lambda _: (0,))


# Operations that Triton lacks or would not round correctly.


def _instruction(name: str, *operands: jax.Array) -> jax.Array:
    (result,) = triton.elementwise_inline_asm(
        f"{name} {', '.join(f'${i}' for i in range(1 + len(operands)))};",
        args=operands,
        constraints=",".join(["=f", *"f" * len(operands)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)],
    )
    return result


def _divide(a: jax.Array, b: jax.Array, /) -> jax.Array:
    """Correctly rounded, unlike Triton's own division; costs a third of `magma_jax.gpu.rounding`."""
    a, b = jnp.broadcast_arrays(a, b)
    return lax.div(a, b) if INTERPRET else _instruction("div.rn.f32", a, b)


def _sqrt(x: jax.Array, /) -> jax.Array:
    return lax.sqrt(x) if INTERPRET else _instruction("sqrt.rn.f32", x)


def _round(x: jax.Array, /) -> jax.Array:
    """For |x| ≤ 2²²: the last bits of the sum hold the integer."""
    bits = lax.bitcast_convert_type(x + np.float32(1.5 * 2**23), jnp.int32)
    return (bits - np.float32(1.5 * 2**23).view(np.int32)).astype(jnp.float32)


def _asarray(x: Any, /, *, dtype: Any, device: Any = None) -> Any:
    """A scalar stays a scalar: an array would be a constant that the kernel captures."""
    del device
    return np.dtype(dtype).type(x)


def _stack(arrays: Sequence[jax.Array], /, *, axis: int) -> Sequence[jax.Array]:
    """Triton has no arrays of three: keep the members apart."""
    del axis
    return arrays


XP = cast(
    Namespace,
    SimpleNamespace(
        **{
            name: value
            for name, value in vars(namespace).items()
            if not name.startswith("_") and name not in ("largest", "integer_sums", "fence")
        }
        | {"divide": _divide, "sqrt": _sqrt, "round": _round, "asarray": _asarray, "stack": _stack}
    ),
)
"""The namespace of kernels, without variadic reductions, derivatives and `platform_dependent`."""
