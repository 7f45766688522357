"""The benchmark's workload: names and shapes of float32 parameters, and the bytes that a step must move."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from magma_core import magma

ADAMW_BYTES = 28
"""Per parameter of AdamW: read gradient, both moments and parameter; write all but the gradient; 4 bytes each."""

MOMENTS_BYTES, SUMS_BYTES, MOVE_BYTES = 20, 8, 16
"""Per parameter of Magma: advance the moments; read momentum and gradient again for the sums, unless they are at
hand; in kept blocks read both moments and the parameter, and write the parameter."""


class Tensor(NamedTuple):
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    block_axes: tuple[int, ...] | None  # None: not masked

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Workload:
    """The parameters of a model.

    Args:
        title: for tables.
        tensors: in order.
    """

    title: str
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> int:
        """Elements in all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def masked(self) -> int:
        """Elements of masked tensors."""
        return sum(tensor.size for tensor in self.tensors if tensor.block_axes is not None)

    def adamw_bytes(self) -> float:
        """Bytes that a step of AdamW must move."""
        return ADAMW_BYTES * self.parameters

    def magma_bytes(self, recount: float = 0.0, kept: float = magma().p) -> float:
        """Bytes that a step of Magma over AdamW must move.

        Args:
            recount: share of the parameters whose momentum and gradient are read a second time for the sums. 0 is the
                lower bound: AdamW's bytes, if half of the blocks are kept.
            kept: share of masked elements in kept blocks; unmasked tensors are always kept.

        Example:
            >>> uniform(1, 10, 10).magma_bytes(recount=1.0) / 100
            36.0
        """
        dense = self.parameters - self.masked
        return dense * ADAMW_BYTES + self.masked * (MOMENTS_BYTES + SUMS_BYTES * recount + MOVE_BYTES * kept)

    def to_json(self) -> dict[str, Any]:
        """The workload as JSON types, equal tensors counted."""
        counts = Counter((tensor.shape, tensor.block_axes) for tensor in self.tensors)
        return {
            "title": self.title,
            "tensors": len(self.tensors),
            "parameters": self.parameters,
            "masked": self.masked,
            "shapes": [
                {"count": count, "shape": list(shape), "block_axes": None if axes is None else list(axes)}
                for (shape, axes), count in counts.items()
            ],
        }


def uniform(tensors: int, rows: int, columns: int) -> Workload:
    """Matrices of one shape, one block each."""
    names = (f"layers.{i}.weight" for i in range(tensors))
    title = f"{tensors:,} tensors of {rows}×{columns}"
    return Workload(title, tuple(Tensor(name, (rows, columns), ()) for name in names))


def stacked(stacks: int, layers: int, rows: int, columns: int) -> Workload:
    """The same matrices in stacks, one block per layer, for programs that compile every leaf."""
    names = (f"stacks.{i}.weight" for i in range(stacks))
    title = f"{stacks} stacks of {layers:,} tensors of {rows}×{columns}"
    return Workload(title, tuple(Tensor(name, (layers, rows, columns), (0,)) for name in names))


def llama(
    *, layers: int = 16, width: int = 2048, keys: int = 512, hidden: int = 8192, vocabulary: int = 32_000
) -> Workload:
    """A Llama-like model with embedding and head tied.

    By default it has the layers of Llama 3.2 1B and the vocabulary of Llama 2: 1.04 billion parameters. Matrices of
    attention and MLP are masked, as in the paper: 94 % of the parameters. Embedding and norms are not.

    Args:
        layers: number of blocks.
        width: of the residual stream.
        keys: width of keys and values, which several query heads share.
        hidden: of the MLP.
        vocabulary: rows of the embedding.

    Example:
        >>> model = llama()
        >>> len(model.tensors), model.parameters, round(model.masked / model.parameters, 3)
        (146, 1038682112, 0.937)
    """
    matrices = {
        "attention.wq": (width, width),
        "attention.wk": (keys, width),
        "attention.wv": (keys, width),
        "attention.wo": (width, width),
        "mlp.gate": (hidden, width),
        "mlp.up": (hidden, width),
        "mlp.down": (width, hidden),
    }
    tensors = [Tensor("embedding", (vocabulary, width), None)]
    for layer in range(layers):
        tensors += [Tensor(f"layers.{layer}.{name}", shape, ()) for name, shape in matrices.items()]
        tensors += [Tensor(f"layers.{layer}.{name}", (width,), None) for name in ("attention_norm", "mlp_norm")]
    tensors.append(Tensor("norm", (width,), None))
    title = f"a Llama-like model, {layers} layers of {width} with MLPs of {hidden}"
    return Workload(title, tuple(tensors))


def gpt2() -> Workload:
    """GPT-2 small with learned positions, embedding and head tied: 124 million parameters in 148 tensors.

    Matrices of attention and MLP are masked.

    Example:
        >>> len(gpt2().tensors), gpt2().parameters
        (148, 124439808)
    """
    layers, width = 12, 768
    matrices = {
        "attention.qkv": (width, 3 * width),
        "attention.projection": (width, width),
        "mlp.up": (width, 4 * width),
        "mlp.down": (4 * width, width),
    }
    tensors = [Tensor("tokens", (50_257, width), None), Tensor("positions", (1024, width), None)]
    for layer in range(layers):
        for name, shape in matrices.items():
            tensors.append(Tensor(f"layers.{layer}.{name}.weight", shape, ()))
            tensors.append(Tensor(f"layers.{layer}.{name}.bias", shape[1:], None))
        for norm in ("attention_norm", "mlp_norm"):
            tensors += [Tensor(f"layers.{layer}.{norm}.{part}", (width,), None) for part in ("weight", "bias")]
    tensors += [Tensor(f"norm.{part}", (width,), None) for part in ("weight", "bias")]
    return Workload("GPT-2 small", tuple(tensors))


WORKLOADS: Mapping[str, Workload] = {
    "matrices": uniform(32, 512, 1024),
    "many": uniform(2_000, 64, 64),
    "gpt2": gpt2(),
    "llama": llama(),
    "small": uniform(10_000, 64, 64),
    "stacked": stacked(10, 1_000, 64, 64),
}
"""By the command's names. For CPUs: 17 million parameters in matrices of half a million; 8 million in many small ones;
GPT-2 small. For GPUs: a billion parameters; 41 million in 10,000 small tensors; and these stacked for JAX, which would
compile every leaf."""
