"""A step of many tensors on the CPU in one call of a compiled library (`magma_native`)."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from magma_native.compiler import CompilerMissing
from magma_native.library import Library, library
from magma_native.loops import Formula
from magma_native.source import GROUP, TENSOR
from magma_native.step import group
from torch import Tensor

from magma_core.hyperparameters import numbers, rule_numbers
from magma_core.keep import mask_key
from magma_core.namespace import Namespace
from magma_torch import namespace
from magma_torch.engine.batch import Batch
from magma_torch.engine.memory import POWERS
from magma_torch.options import Options

_FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@functools.cache
def native_missing(formula: Formula) -> str | None:
    """Why a step cannot be compiled, or None if it is; whoever asks first waits for the compiler."""
    try:
        library(formula)
    except CompilerMissing as error:
        return str(error)
    return None


def formula_of(options: Options, param: torch.dtype, grad: torch.dtype) -> Formula:
    """The formula of a group's step."""
    structure = options.structure
    return Formula.of(
        options.base, options.rule, structure.decays, _FORMATS[param], _FORMATS[grad], masked=options.masked
    )


class Launcher:
    """Steps batches whose tensors are whole and on the CPU.

    Args:
        batches: at least one.
    """

    captured = False  # of CUDA graphs

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self._members = [(batch, i) for batch in batches for i in range(len(batch.entries))]
        self._params = [param for batch in batches for param in batch.params]
        self._layouts = [batch.layout for batch, _ in self._members]
        # a parameter whose blocks do not lie one after the other is stepped in a copy in which they do
        self._homes = [
            None if layout.flat else param.permute(layout.order).contiguous()
            for layout, param in zip(self._layouts, self._params, strict=True)
        ]
        self._plain = all(layout.flat and layout.order == tuple(range(len(layout.order))) for layout in self._layouts)
        counts = [batch.blocks.count if batch.options.masked else 0 for batch, _ in self._members]
        self._first = np.concatenate([[0], np.cumsum(counts)])
        blocks = int(self._first[-1])
        self._keep = torch.zeros(blocks, dtype=torch.bool)
        self._sums = torch.zeros((3, blocks), dtype=torch.int64)
        self._cosine = torch.zeros(blocks, dtype=torch.float32)
        self._hints = torch.zeros((blocks, 2), dtype=torch.int32)
        self._settings = np.zeros(len(batches), GROUP)
        self._table = np.zeros(len(self._members), TENSOR)
        owners = np.repeat(np.arange(len(batches)), [len(batch.entries) for batch in batches])
        self._table["settings"] = self._settings.ctypes.data + owners * GROUP.itemsize
        for row, first, (batch, i), home in zip(self._table, self._first, self._members, self._homes, strict=False):
            self._enter(row, int(first), batch, i, home)
        self._parts: list[tuple[Library, np.ndarray]] = []  # libraries, and the rows that are theirs
        self._cut_for: object = None
        self._stepped = False

    def step(self, configured: Sequence[Options], rates: Sequence[Any], gradients: Sequence[Sequence[Tensor]]) -> None:
        """One step of every parameter; arguments are those of `magma_torch.gpu.launcher.Launcher.step`."""
        for batch in self.batches:
            batch.options = configured[batch.group]
        grads = self._in_order([grad for own in gradients for grad in own])
        self._cut(grads)
        self._settings[:] = [self._numbers(batch, float(rates[batch.group])) for batch in self.batches]
        self._table["grad"] = [grad.data_ptr() for grad in grads]
        for param, home, layout in zip(self._params, self._homes, self._layouts, strict=True):
            if home is not None:
                home.copy_(param.permute(layout.order))
        torch.autograd.graph.increment_version(self._params)
        for compiled, rows in self._parts:
            part = self._table if len(rows) == len(self._table) else self._table[rows]
            compiled.step(part, torch.get_num_threads())
        for param, home, layout in zip(self._params, self._homes, self._layouts, strict=True):
            if home is not None:
                param.permute(layout.order).copy_(home)
        for batch in self.batches:
            batch.memory.steps.add_(1)
        self._stepped = True

    def report(self) -> None:
        """Put what the last step found and decided where batches have it; nothing before the first."""
        start = 0
        for batch in self.batches:
            if self._stepped and batch.options.masked:
                own = slice(start, start := start + batch.count)
                batch.keep = self._keep[own].clone()
                if batch.measured:
                    batch.sums, batch.cosine = self._sums[:, own].clone(), self._cosine[own].clone()

    def _enter(self, row: Any, first: int, batch: Batch, i: int, home: Tensor | None) -> None:
        """Fill in a row of the table."""
        memory, count, size = batch.memory, batch.blocks.count, batch.layout.size
        places: dict[str, tuple[Tensor | None, int]] = {
            "theta": (batch.params[i] if home is None else home, 0),
            "mu": (memory.mu, i * size),
            "nu": (memory.nu, i * size),
            **{name: (power, i) for name, power in zip(POWERS, memory.powers, strict=False)},
        }
        if batch.options.masked:
            places |= {"score": (memory.scores, i * count), "hints": (self._hints, 2 * first)}
            places |= {"keep": (self._keep, first), "sums": (self._sums, first), "cosine": (self._cosine, first)}
            key = mask_key(batch.entries[i].name, batch.options.seed, xp=cast(Namespace, namespace))
            row["key_high"], row["key_low"], row["stride"] = *key, self._keep.numel()
        for name, (tensor, element) in places.items():
            row[name] = 0 if tensor is None else tensor.data_ptr() + element * tensor.element_size()
        row["rows"], row["columns"] = batch.layout.rows, batch.layout.columns

    def _in_order(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients with blocks one after the other; mostly they are that already."""
        if self._plain and all(map(Tensor.is_contiguous, grads)):
            return grads
        return [grad.permute(layout.order).contiguous() for grad, layout in zip(grads, self._layouts, strict=True)]

    def _cut(self, grads: Sequence[Tensor]) -> None:
        """Find the library of each row, where something that it depends on has changed."""
        kinds = [(batch.options.structure, batch.options.rule) for batch in self.batches]
        if kinds == self._cut_for:
            return
        formulas = [
            formula_of(batch.options, param.dtype, grad.dtype)
            for (batch, _), param, grad in zip(self._members, self._params, grads, strict=True)
        ]
        self._parts = [
            (library(formula), np.array([i for i, own in enumerate(formulas) if own == formula]))
            for formula in dict.fromkeys(formulas)
        ]
        self._cut_for = kinds

    @staticmethod
    def _numbers(batch: Batch, rate: float) -> tuple[Any, ...]:
        options = batch.options
        return group(numbers(options.base), rule_numbers(options.rule), step=int(batch.memory.steps[0]) + 1, lr=rate)


def warn_missing(reason: str) -> None:
    """Say once why steps are slower than they could be."""
    warnings.warn(f"compile=True has no effect: {reason}. Steps run eagerly, with the same bits", stacklevel=3)
