"""The tensors of the kernels, each as a matrix with one row per block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import triton.language as tl
from torch import Tensor

from magma_core import SGD, Rule
from magma_core.bases import direction_uses_gradient
from magma_core.keep import mask_key
from magma_core.namespace import Namespace
from magma_core.state import POWERS
from magma_torch import namespace
from magma_torch.engine.batch import Batch
from magma_torch.engine.matrix_step import Structure
from magma_torch.gpu import traced
from magma_torch.gpu.kernels import TENSOR
from magma_torch.gpu.tables import AT_ONCE, Shape

_FORMATS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Specialization:
    """The compile-time key of a kernel, shared by all matrices of one launch."""

    structure: Structure
    masked: bool
    param: torch.dtype
    grad: torch.dtype
    has_mu: bool
    has_nu: bool
    shape: Shape

    @property
    def measured(self) -> bool:
        """Whether the rule uses the alignment."""
        return self.structure.momentum is not None

    def arguments(self) -> dict[str, Any]:
        """The compile-time arguments of the kernels."""
        base, momentum, decays, _ = self.structure
        return {
            "PROGRAM": traced.Program(base, decays, Rule(), traced.sources()),
            "MEASURED": momentum or "",
            "MASKED": self.masked,
            "DENSE": decays == "dense",
            "PARAM": _FORMATS[self.param],
            "GRAD": _FORMATS[self.grad],
            "HAS_MU": self.has_mu,
            "HAS_NU": self.has_nu,
            "USES_GRAD": direction_uses_gradient(base),
            "ROWS": self.shape.rows,
            "WHOLE": self.shape.whole,
            "COLUMNS": self.shape.columns,
            "ALIGNED": self.shape.aligned,
        }


class BlockMatrix:
    """One tensor of a batch.

    Args:
        batch: the tensor's batch.
        i: its position there.
        first_block: the number of its first block, counted over all matrices.
        first_long: the number of its first block, counted over blocks of many tiles.

    Attributes:
        blocks: its number of masked blocks.
        longs: how many of these span many tiles: none or all.
        plain: whether the tensors are contiguous and so is each block.
        copy: a copy with contiguous blocks, if the tensor's are not.
    """

    def __init__(self, batch: Batch, i: int, first_block: int, first_long: int) -> None:
        self.batch, self.layout = batch, batch.layout
        self._first_block, self._first_long = first_block, first_long
        self.param = batch.params[i]
        self.blocks = batch.blocks.count if batch.options.masked else 0
        self.longs = 0 if self._shape([]).whole else self.blocks
        self.copy = None if self.layout.flat else self.param.permute(self.layout.order).contiguous()
        self.plain = self.layout.flat and self.layout.order == tuple(range(len(self.layout.order)))
        memory, size = batch.memory, self.layout.size
        self._addresses = {
            "theta": _address(self.param if self.copy is None else self.copy, 0),
            "mu": _address(memory.mu, i * size),
            "nu": _address(memory.nu, i * size),
            "step": _address(memory.steps, i),
            "score": _address(memory.scores, i * batch.blocks.count),
            **{field: _address(power, i) for field, power in zip(POWERS, memory.powers, strict=False)},
        }
        self._key = mask_key(batch.entries[i].name, batch.options.seed, xp=cast(Namespace, namespace))

    def entry(self, settings: int) -> list[int]:
        """Its row of the tensor table; ``settings`` is the address of its group's numbers."""
        high, low = self._key
        known = {
            **self._addresses,
            "settings": settings,
            "columns": self.layout.columns,
            "rows": self.layout.rows,
            "first_block": self._first_block,
            "first_long": self._first_long if self.longs else -1,
            "key_high": high,
            "key_low": low,
        }
        return [known.get(field, 0) for field in TENSOR]

    def specialization(self, grad: Tensor) -> Specialization:
        """Its specialization, given a gradient like this one."""
        options, memory = self.batch.options, self.batch.memory
        addresses = [*(self._addresses[part] for part in ("theta", "mu", "nu")), grad.data_ptr()]
        return Specialization(
            structure=options.structure,
            masked=options.masked,
            param=self.param.dtype,
            grad=grad.dtype,
            has_mu=memory.mu is not None,
            has_nu=memory.nu is not None,
            shape=self._shape(addresses),
        )

    def _shape(self, addresses: Sequence[int]) -> Shape:
        return Shape.of(self.layout.rows, self.layout.columns, addresses, AT_ONCE[self.batch.device.type])

    def in_order(self, grad: Tensor) -> Tensor:
        """The gradient with contiguous blocks: itself, or a copy."""
        if self.plain and grad.is_contiguous():
            return grad
        return grad.permute(self.layout.order).contiguous()

    def copy_in(self) -> None:
        """Copy the parameter into the copy, if there is one."""
        if self.copy is not None:
            self.copy.copy_(self.param.permute(self.layout.order))

    def copy_out(self) -> None:
        """Copy the result back."""
        if self.copy is not None:
            self.param.permute(self.layout.order).copy_(self.copy)


def decision_program(rule: Rule) -> traced.Program:
    """The part of ``rule`` that the decision kernel is compiled for, without its numbers."""
    alike = Rule(survival=rule.survival, weight=rule.weight)
    return traced.Program(SGD(), None, alike, traced.sources())


def _address(tensor: Tensor | None, element: int) -> int:
    """The address of an element of a flat tensor, or of any tensor's first; 0 for no tensor."""
    return 0 if tensor is None else tensor.data_ptr() + element * tensor.element_size()
