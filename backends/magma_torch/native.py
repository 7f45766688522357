"""A step of many tensors on the CPU in one call of a compiled library (`magma_native`)."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from magma_native.library import Library, library
from magma_native.source import GROUP, TENSOR
from magma_native.step import group
from torch import Tensor

from magma_core.hyperparameters import base_numbers, rule_numbers
from magma_core.keep import mask_key
from magma_core.namespace import Namespace
from magma_torch import namespace
from magma_torch.engine.batch import Batch
from magma_torch.engine.memory import POWERS
from magma_torch.engine.rows import in_memory
from magma_torch.engine.seen import Seen
from magma_torch.options import Options

_XP = cast(Namespace, namespace)


class Member:
    """One tensor of a batch, as a matrix with a row for each of its blocks.

    Args:
        batch: that it is of.
        i: its number there.
        first: the number of its first block among those of all members.
    """

    def __init__(self, batch: Batch, i: int, first: int) -> None:
        self.batch, self.param, self._layout = batch, batch.params[i], batch.layout
        self._i, self._first = i, first
        self._in_order = self._layout.order == tuple(range(len(self._layout.order)))
        # where blocks do not lie one after the other, the step works on a copy in which they do
        self.home = None if self._layout.flat or not batch.moves else self.in_order(self.param)

    def in_order(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape with its blocks one after the other: itself, or a copy."""
        tensor = in_memory(tensor)
        return (tensor if self._in_order else tensor.permute(self._layout.order)).contiguous()

    def fetch(self) -> None:
        """Bring the parameter home."""
        cast(Tensor, self.home).copy_(self.param.permute(self._layout.order))

    def send_back(self) -> None:
        """Put back what became of it there."""
        self.param.permute(self._layout.order).copy_(cast(Tensor, self.home))

    def enter(self, row: Any, found: "Found") -> None:
        """Fill in its row of the table, but for what changes at every step."""
        batch, memory, i = self.batch, self.batch.memory, self._i
        size, count = self._layout.size, batch.blocks.count
        places: dict[str, tuple[Tensor | None, int]] = {
            "theta": (self.param if self.home is None else self.home, 0),
            "mu": (memory.mu, i * size),
            "nu": (memory.nu, i * size),
            **{name: (power, i) for name, power in zip(POWERS, memory.powers, strict=False)},
        }
        if batch.options.masked:
            places |= {name: (tensor, self._first) for name, tensor in found._asdict().items()}
            places |= {"score": (memory.scores, i * count), "hints": (found.hints, 2 * self._first)}
            row["key_high"], row["key_low"] = mask_key(batch.entries[i].name, batch.options.seed, xp=_XP)
            row["stride"] = found.keep.numel()
        for name, (tensor, element) in places.items():
            row[name] = 0 if tensor is None else tensor.data_ptr() + element * tensor.element_size()
        row["rows"], row["columns"] = self._layout.rows, self._layout.columns


class Found(NamedTuple):
    """What steps find and decide, of the blocks of all members."""

    keep: Tensor  # (blocks,) bool
    sums: Tensor  # (3, blocks) int64
    cosine: Tensor  # (blocks,) float32
    scale: Tensor  # (blocks,) float32
    hints: Tensor  # (blocks, 2) int32: magnitudes of the step before

    @classmethod
    def of(cls, blocks: int) -> "Found":
        """Zeros."""
        keep, hints = torch.zeros(blocks, dtype=torch.bool), torch.zeros((blocks, 2), dtype=torch.int32)
        return cls(keep, torch.zeros((3, blocks), dtype=torch.int64), torch.zeros(blocks), torch.zeros(blocks), hints)


class Launcher:
    """Steps batches whose tensors are whole and on the CPU.

    Args:
        batches: at least one.
    """

    captured = False  # of CUDA graphs

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self._members: list[Member] = []
        blocks = 0
        for batch in batches:
            for i in range(len(batch.entries)):
                self._members.append(Member(batch, i, blocks))
                blocks += batch.blocks.count if batch.options.masked else 0
        self._found = Found.of(blocks)
        self._params = [member.param for member in self._members if member.batch.moves]
        self._away = [member for member in self._members if member.home is not None]
        sizes = [len(batch.entries) for batch in batches]
        steps = torch.cat([batch.memory.steps for batch in batches])
        for batch, own in zip(batches, steps.split(sizes), strict=True):
            batch.memory.count_in(own, batch.entries)
        self._steps = steps.numpy()  # of all members, counted at once
        self._firsts = np.cumsum([0, *sizes[:-1]])  # of each batch
        self._groups = np.array([batch.group for batch in batches])
        self._seen: Seen | None = None  # what the gradients were part of
        self._ready = False  # whether these were in order
        self._settings = np.zeros(len(batches), GROUP)
        self._table = np.zeros(len(self._members), TENSOR)
        for row, member in zip(self._table, self._members, strict=True):
            member.enter(row, self._found)
        owners = np.repeat(np.arange(len(batches)), sizes)
        self._table["settings"] = self._settings.ctypes.data + owners * GROUP.itemsize
        self._parts: list[tuple[Library, np.ndarray]] = []  # libraries, and the rows that are theirs
        self._cut_for: object = None
        self._stepped = False

    def step(
        self, configured: Sequence[Options], rates: Sequence[Any], grads: Sequence[Tensor], seen: Seen | None
    ) -> None:
        """One step of every parameter; arguments are those of `magma_torch.gpu.launcher.Launcher.step`."""
        for batch in self.batches:
            batch.options = configured[batch.group]
        grads = self._ordered(grads, seen)
        moments = self._moments()
        self._cut(configured, moments)
        self._set(configured, rates)
        self._table["grad"] = list(map(Tensor.data_ptr, grads))
        for i, moment in moments.items():
            self._table["mu"][i] = moment.data_ptr()
        for member in self._away:
            member.fetch()
        torch.autograd.graph.increment_version(self._params)
        for compiled, rows in self._parts:
            # a table of its own for each library; where there is one library, the whole
            part = self._table if len(self._parts) == 1 else self._table[rows]
            compiled.step(part, torch.get_num_threads())
        for member in self._away:
            member.send_back()
        self._steps += 1
        self._stepped = True
        if len(self._params) < len(self._members):
            self.report()  # to the optimizer that writes the others

    def report(self) -> None:
        """Put what the last step found and decided where batches have it; nothing before the first."""
        start = 0
        for batch in self.batches:
            if self._stepped and batch.options.masked:
                own = slice(start, start := start + batch.count)
                batch.keep, batch.scale = self._found.keep[own].clone(), self._found.scale[own].clone()
                if batch.measured:
                    batch.sums, batch.cosine = self._found.sums[:, own].clone(), self._found.cosine[own].clone()

    def _ordered(self, grads: Sequence[Tensor], seen: Seen | None) -> Sequence[Tensor]:
        if self._ready and seen is not None and seen is self._seen:
            return grads
        ordered = [member.in_order(grad) for member, grad in zip(self._members, grads, strict=True)]
        self._ready, self._seen = all(map(operator.is_, ordered, grads)), seen
        return ordered

    def _moments(self) -> dict[int, Tensor]:
        """First moments that are other optimizers', by member."""
        found: dict[int, Tensor] = {}
        start = 0
        for batch in () if len(self._params) == len(self._members) else self.batches:
            if batch.measured and not batch.options.structure.advances:
                for i, moment in enumerate(batch.moments(), start):
                    found[i] = self._members[i].in_order(moment)
            start += len(batch.entries)
        return found

    def _cut(self, configured: Sequence[Options], moments: Mapping[int, Tensor]) -> None:
        """Find the library of each row, where something that it depends on has changed."""
        kinds = [(x.structure, x.rule.survival, x.rule.weight) for x in configured]
        kinds.append(tuple(moment.dtype for moment in moments.values()))
        if kinds == self._cut_for:
            return
        formulas = [member.batch.formula(moments.get(i)) for i, member in enumerate(self._members)]
        self._parts = [
            (library(formula), np.array([i for i, own in enumerate(formulas) if own == formula]))
            for formula in dict.fromkeys(formulas)
        ]
        self._cut_for = kinds

    def _set(self, configured: Sequence[Options], rates: Sequence[Any]) -> None:
        """The numbers of the step, which batches of one group and history share."""
        steps = self._steps[self._firsts]
        for i, step in set(zip(self._groups.tolist(), steps.tolist(), strict=True)):
            base, rule = base_numbers(configured[i].base), rule_numbers(configured[i].rule)
            numbers = group(base, rule, step=step + 1, rate=float(rates[i]))
            self._settings[(self._groups == i) & (steps == step)] = numbers
