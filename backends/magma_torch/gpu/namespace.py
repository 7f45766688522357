"""The namespace of a Triton kernel: the core computes with it while the kernel is compiled.

Arrays are `triton.language.tensor`s. Kernels are compiled without contraction (`magma_torch.gpu.kernels.OPTIONS`), so
no operation needs a fence.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import triton.language as tl

from magma_core.stacks import Stack, each

Array = Any


class KernelNamespace:
    """The functions of `magma_core.namespace.Namespace` that the core calls in a kernel.

    Args:
        semantic: the compiler's argument to its builtins; None in Triton's interpreter, which supplies its own.
    """

    float16, bfloat16, float32 = tl.float16, tl.bfloat16, tl.float32
    int32, int64 = tl.int32, tl.int64

    def __init__(self, semantic: Any) -> None:
        self.given = {"_semantic": semantic}

    # New arrays are filled with one number; arrays with elements are loaded.

    def full(self, shape: Sequence[int], fill_value: Any, *, dtype: Any, device: Any = None) -> Array:
        """A scalar or a block filled with one number."""
        return tl.full(shape, fill_value, dtype, **self.given)

    def asarray(self, obj: Any, /, *, dtype: Any, device: Any = None) -> Array:
        """A number as a scalar."""
        return self.full((), obj, dtype=dtype)

    def stack(self, arrays: Sequence[Array], /, *, axis: int = 0) -> Stack:
        """Arrays side by side along a new first axis."""
        if axis:
            raise NotImplementedError(f"axis must be 0 in a kernel, got {axis}")
        return Stack(arrays)

    def astype(self, x: Array, dtype: Any, /) -> Array:
        """``x`` converted, to nearest even; integer-valued floats to integers.

        Converts to bfloat16 by integers, because Triton's interpreter does not round it.
        """
        if dtype == tl.bfloat16:
            return self._to_bfloat16(self.bitcast(x, tl.int32))
        if x.dtype == tl.bfloat16:
            return self.bitcast(self.bitwise_left_shift(self._to(self.bitcast(x, tl.int16), tl.int32), 16), dtype)
        return self._to(x, dtype)

    def bitcast(self, x: Array, dtype: Any, /) -> Array:
        """The same bits read as ``dtype``."""
        return each(lambda one: one.to(dtype, bitcast=True, **self.given), x)

    def add(self, x1: Array, x2: Array, /) -> Array:
        """x1 + x2 with one rounding; Triton does not let the compiler reassociate."""
        return self._binary("__add__", x1, x2)

    def subtract(self, x1: Array, x2: Array, /) -> Array:
        """x1 − x2 with one rounding."""
        return self._binary("__sub__", x1, x2)

    def multiply(self, x1: Array, x2: Array, /) -> Array:
        """x1 · x2 with one rounding."""
        return self._binary("__mul__", x1, x2)

    def divide(self, x1: Array, x2: Array, /) -> Array:
        """x1 / x2, correctly rounded; ``/`` would be an approximation."""
        return tl.div_rn(x1, x2, **self.given)

    def sqrt(self, x: Array, /) -> Array:
        """√x, correctly rounded; ``tl.sqrt`` would be an approximation."""
        return tl.sqrt_rn(x, **self.given)

    def abs(self, x: Array, /) -> Array:
        """The magnitude."""
        return each(lambda one: tl.abs(one, **self.given), x)

    def negative(self, x: Array, /) -> Array:
        """``x`` with its sign bit flipped; Triton's own computes 0 − x, which is +0 for +0."""
        flipped = self.bitwise_xor(self.bitcast(x, tl.int32), -(2**31))
        return self.bitcast(flipped, tl.float32)

    def round(self, x: Array, /) -> Array:
        """Round to the nearest integer, ties to even, by adding and subtracting 2²³ with the sign of x."""
        magic = self.bitwise_or(self.bitwise_and(self.bitcast(x, tl.int32), -(2**31)), 0x4B000000)
        large = self.bitcast(magic, tl.float32)
        rounded = self.subtract(self.add(x, large), large)
        return self.where(self.less(self.abs(x), 2.0**23), rounded, x)

    def clip(self, x: Array, /, *, min: int) -> Array:
        """Integers, at least ``min``."""
        return self.where(self.less(x, min), min, x)

    def where(self, condition: Array, x1: Array, x2: Array, /) -> Array:
        """``x1`` where ``condition`` holds, otherwise ``x2``."""
        x1, x2 = self._alike(x1, x2)
        return each(lambda *three: tl.where(*three, **self.given), condition, x1, x2)

    def equal(self, x1: Array, x2: Array, /) -> Array:
        """Whether x1 equals x2."""
        return self._binary("__eq__", x1, x2)

    def less(self, x1: Array, x2: Array, /) -> Array:
        """Whether x1 is below x2."""
        return self._binary("__lt__", x1, x2)

    def logical_not(self, x: Array, /) -> Array:
        """The negation of booleans."""
        return x.__invert__(**self.given)

    def bitwise_and(self, x1: Array, x2: Array, /) -> Array:
        """Bitwise and of integers."""
        return self._binary("__and__", x1, x2)

    def bitwise_or(self, x1: Array, x2: Array, /) -> Array:
        """Bitwise or of integers."""
        return self._binary("__or__", x1, x2)

    def bitwise_xor(self, x1: Array, x2: Array, /) -> Array:
        """Bitwise exclusive or of integers."""
        return self._binary("__xor__", x1, x2)

    def bitwise_left_shift(self, x1: Array, x2: Array, /) -> Array:
        """Integers shifted left."""
        return self._binary("__lshift__", x1, x2)

    def bitwise_right_shift(self, x1: Array, x2: Array, /) -> Array:
        """Signed integers shifted right, arithmetically."""
        return self._binary("__rshift__", x1, x2)

    def fused(self, x: Array, /) -> bool:
        """False: kernels are compiled without contraction, and nothing else merges operations."""
        return False

    def device(self, x: Array, /) -> None:
        """None: a kernel has only one device."""

    def scope(self) -> AbstractContextManager[Any]:
        """Nothing to set."""
        return nullcontext()

    def _binary(self, method: str, x1: Any, x2: Any) -> Any:
        x1, x2 = self._alike(x1, x2)
        return each(lambda a, b: getattr(a, method)(b, **self.given), x1, x2)

    def _alike(self, x1: Any, x2: Any) -> tuple[Any, Any]:
        """Turn numbers into scalars of the other operand's dtype; Triton would choose by magnitude."""
        if isinstance(x1, int | float):
            return self.asarray(x1, dtype=x2.dtype), x2
        if isinstance(x2, int | float):
            return x1, self.asarray(x2, dtype=x1.dtype)
        return x1, x2

    def _to(self, x: Any, dtype: Any) -> Any:
        return each(lambda one: one.to(dtype, **self.given), x)

    def _to_bfloat16(self, bits: Any) -> Any:
        """Round the bits of a float32: add half of the discarded part, less one if the last kept bit is 0."""
        odd = self.bitwise_and(self.bitwise_right_shift(bits, 16), 1)
        rounded = self.bitwise_right_shift(self.add(bits, self.add(odd, 0x7FFF)), 16)
        magnitude = self.bitwise_and(bits, 0x7FFFFFFF)
        rounded = self.where(self.less(0x7F800000, magnitude), 0x7FC0, rounded)  # NaN
        return self.bitcast(self._to(rounded, tl.int16), tl.bfloat16)


class GridNamespace(KernelNamespace):
    """The namespace for numbers on a grid, of magnitudes up to 2²²: rounding takes two operations."""

    def round(self, x: Array, /) -> Array:
        """Round to the nearest integer, ties to even; undefined for larger numbers."""
        return self.subtract(self.add(x, 1.5 * 2.0**23), 1.5 * 2.0**23)
