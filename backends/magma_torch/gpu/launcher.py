"""A step of many tensors in a few launches; the host never waits for the device."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
import triton
from torch import Tensor

from magma_core.hyperparameters import base_numbers, rule_numbers
from magma_core.numerics import binary32
from magma_torch.engine.batch import Batch
from magma_torch.engine.seen import Seen
from magma_torch.gpu import kernels, traced
from magma_torch.gpu.available import check_not_captured
from magma_torch.gpu.matrices import BlockMatrix, Specialization, decision_program
from magma_torch.gpu.tables import Upload, stretches
from magma_torch.options import Options

_AT_ONCE = 128
"""Tensors or blocks per program of `kernels.begin` or `kernels.decide`."""


class Launcher:
    """Steps the batches of one device.

    Args:
        batches: batches of tensors that are whole on this device.

    Attributes:
        read_again: the number of elements read a second time so far, see `magma_torch.gpu.kernels.REACH`; (1,) int64.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.device = batches, batches[0].device
        self._matrices: list[BlockMatrix] = []
        self._first: list[int] = []  # the first block of each batch
        blocks = longs = 0
        for batch in batches:
            self._first.append(blocks)
            for i in range(len(batch.entries)):
                self._matrices.append(BlockMatrix(batch, i, blocks, longs))
                blocks, longs = blocks + self._matrices[-1].blocks, longs + self._matrices[-1].longs
        self._params = [matrix.param for matrix in self._matrices]
        self._copied = [matrix for matrix in self._matrices if matrix.copy is not None]
        self._plain = all(matrix.plain for matrix in self._matrices)
        self._groups = {group: row for row, group in enumerate(sorted({batch.group for batch in batches}))}
        self._settings = Upload((len(self._groups), len(traced.NUMBERS)), np.dtype(np.float32), self.device)
        self._grads = Upload((len(self._matrices),), np.dtype(np.int64), self.device)
        self._stretches: list[tuple[Specialization, Tensor]] = []
        self._cut_for: object = None
        owners = np.repeat(np.arange(len(self._matrices)), [matrix.blocks for matrix in self._matrices])
        settings = [self._settings.table[self._groups[matrix.batch.group]].data_ptr() for matrix in self._matrices]
        entries = [matrix.entry(own) for matrix, own in zip(self._matrices, settings, strict=True)]
        found = self._new(4 * blocks + kernels.TALLIES * longs, torch.int64)
        sums, peaks, tallies = found.split([3 * blocks, blocks, kernels.TALLIES * longs])
        self._found = found  # one tensor, cleared at once before each step
        self._sums = sums.view(3, blocks)
        self._keep = self._new(blocks, torch.bool)
        self._cosine = self._new(blocks, torch.float32)
        self.read_again = self._new(1, torch.int64)
        self._arguments = {
            "tensors": torch.tensor(entries, dtype=torch.int64, device=self.device),
            "tensor_count": len(self._matrices),
            "grads": self._grads.table,
            "numbers": self._new(len(self._matrices) * len(traced.NUMBERS), torch.float32),
            "owners": torch.from_numpy(owners.astype(np.int32)).to(self.device),
            "block_count": blocks,
            "sums": sums,
            "peaks": peaks.view(torch.int32),
            "long_count": longs,
            "tallies": tallies,
            "guesses": self._new(2 * longs, torch.int32),
            "read_again": self.read_again,
            "keep": self._keep.view(torch.int8),
            "scale": self._new(blocks, torch.float32),
            "cosine": self._cosine,
            "BLOCK": _AT_ONCE,
            "SOURCES": traced.sources(),
        }

    def step(
        self, configured: Sequence[Options], rates: Sequence[Any], grads: Sequence[Tensor], seen: Seen | None
    ) -> None:
        """One step of every parameter.

        Args:
            configured: the options of each of the optimizer's groups.
            rates: the learning rate of each group, a number or a tensor.
            grads: the gradients of all batches' parameters.
            seen: the same object as at the step before if these are of the same kind as then.
        """
        for batch in self.batches:
            batch.options = configured[batch.group]
        grads = self._in_order(grads)
        self._send_settings(rates)
        self._send_gradients(grads)
        for matrix in self._copied:
            matrix.copy_in()
        with self._on_device():
            self._launch()
        for matrix in self._copied:
            matrix.copy_out()
        torch.autograd.graph.increment_version(self._params)

    @property
    def captured(self) -> bool:
        """Whether a captured CUDA graph uses its tables."""
        return self._grads.captured

    def report(self) -> None:
        """Write the last step's observations and decisions to the batches' arrays; nothing before the first step."""
        if self._cut_for is None:
            return
        for batch, first in self._masked():
            own = slice(first, first + batch.count)
            batch.keep = self._keep[own].clone()
            if batch.measured:
                batch.sums, batch.cosine = self._sums[:, own].clone(), self._cosine[own].clone()

    def _in_order(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients with each block contiguous; most already are."""
        if self._plain and all(map(Tensor.is_contiguous, grads)):
            return grads
        return [matrix.in_order(grad) for matrix, grad in zip(self._matrices, grads, strict=True)]

    def _launch(self) -> None:
        self._found.zero_()
        self._run(kernels.begin, len(self._matrices))
        self._decide(scored=False)
        for variant, own in self._stretches:
            self._go_over(kernels.advance, variant, own)
        for variant, own in self._stretches:
            if variant.measured and not variant.shape.whole:
                self._go_over(kernels.measure, variant, own)
        self._decide(scored=True)
        for variant, own in self._stretches:
            if variant.measured:
                self._go_over(kernels.move, variant, own)

    def _decide(self, *, scored: bool) -> None:
        """Decide all blocks with scores, or all without; the latter need no moments."""
        for program, ranges in itertools.groupby(self._masked(), key=lambda one: decision_program(one[0].options.rule)):
            if program.rule.uses_score == scored:
                own = list(ranges)
                first, last = own[0][1], own[-1][1] + own[-1][0].count
                self._run(kernels.decide, last - first, first=first, last=last, PROGRAM=program, SCORED=scored)

    def _masked(self) -> list[tuple[Batch, int]]:
        return [pair for pair in zip(self.batches, self._first, strict=True) if pair[0].options.masked]

    def _go_over(self, kernel: Any, variant: Specialization, own: Tensor) -> None:
        """Run a kernel on all stretches of a variant."""
        known = variant.arguments()
        self._run(kernel, len(own) * _AT_ONCE, stretches=own, **{x: known[x] for x in kernel.arg_names if x in known})

    def _run(self, kernel: Any, size: int, **arguments: Any) -> None:
        known = {name: self._arguments[name] for name in kernel.arg_names if name in self._arguments}
        if size:
            kernel[(triton.cdiv(size, _AT_ONCE),)](**known, **arguments, **kernels.OPTIONS)

    def _send_settings(self, rates: Sequence[Any]) -> None:
        options = {batch.group: batch.options for batch in self.batches}
        self._settings.follow(np.array([_settings(options[group], rates[group]) for group in self._groups], np.float32))
        for group, row in self._groups.items():
            if _on_device(rates[group]):
                self._settings.table[row, -1].copy_(rates[group].detach().reshape(()))

    def _send_gradients(self, grads: Sequence[Tensor]) -> None:
        addresses = np.array(list(map(Tensor.data_ptr, grads)), np.int64)
        self._grads.follow(addresses)
        structures = tuple(batch.options.structure for batch in self.batches)
        what_matters = structures, (addresses % 16 == 0).tobytes()
        if what_matters != self._cut_for:
            check_not_captured(self.device)
            self._stretches, self._cut_for = self._cut(grads), what_matters

    def _cut(self, grads: Sequence[Tensor]) -> list[tuple[Specialization, Tensor]]:
        """The stretches of each variant."""
        found: dict[Specialization, list[np.ndarray]] = {}
        for i, (matrix, grad) in enumerate(zip(self._matrices, grads, strict=True)):
            variant = matrix.specialization(grad)
            extents = matrix.layout.rows, matrix.layout.columns
            found.setdefault(variant, []).append(stretches(i, *extents, variant.shape, kernels.TILES))
        return [(variant, torch.from_numpy(np.concatenate(own)).to(self.device)) for variant, own in found.items()]

    def _new(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=self.device)

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def _settings(options: Options, rate: Any) -> list[float]:
    """The numbers of a group, in the order of `traced.NUMBERS`; -1, which no rate is, for a rate known on the device.

    A number that replaces such a rate therefore changes the table.
    """
    base, rule = base_numbers(options.base)[:-1], rule_numbers(options.rule)
    return [binary32(float(cast(Any, x))) for x in (*base, *rule, -1.0 if _on_device(rate) else rate)]


def _on_device(rate: Any) -> bool:
    """Whether reading it would wait for the device."""
    return isinstance(rate, Tensor) and rate.device.type != "cpu"
