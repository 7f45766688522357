"""What is remembered of parameters that are stepped together: flat tensors, of which ``optimizer.state`` has views."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from magma_core import Blocks
from magma_core.state import POWERS
from magma_torch.engine.rows import Layout
from magma_torch.engine.sharding import Sharding, spread_like
from magma_torch.options import Options


class Entry(NamedTuple):
    """A parameter and what ``optimizer.state`` holds of it."""

    name: str
    param: Tensor
    state: dict[str, Any]


class Slot(NamedTuple):
    """A parameter that has a gradient, and the number of its group."""

    group: int
    entry: Entry


class History(NamedTuple):
    """What parameters must have in common to be stepped together."""

    step: int
    powers: tuple[float, ...]  # running products, of the bases that have them

    @classmethod
    def of(cls, state: Mapping[str, Any], options: Options) -> "History":
        """The history of one parameter; reads a few scalars from its device."""
        known = {field: value for field, value in state.items() if not isinstance(value, FakeTensor)}
        powers = tuple(float(known.get(field, 1.0)) for field in POWERS if field in options.fields)
        return cls(int(known.get("step", 0)), powers)


class Memory:
    """The state of some parameters of one layout and history.

    Args:
        entries: the parameters. Their states are replaced by views.
        options: of their group.
        layout: of each, on this rank.
        blocks: of each, of the whole tensor.
        sharding: of each, None for plain tensors.
        device: of them.
        counter: the device on which steps are counted.

    Attributes:
        mu, nu: (elements of all,) float32, or None.
        steps: (parameters,) int64.
        powers: (parameters,) float32 each.
        scores: (blocks of all,) float32, or None.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        options: Options,
        layout: Layout,
        blocks: Blocks,
        sharding: Sharding | None,
        device: torch.device,
        counter: torch.device,
    ) -> None:
        self._layout, self._sharding, self._device = layout, sharding, device
        kept, past = options.fields, History.of(entries[0].state, options)
        self.mu, self.nu = (self._moment(field, entries) if field in kept else None for field in ("mu", "nu"))
        self.steps = torch.full((len(entries),), past.step, dtype=torch.int64, device=counter)
        self.powers = [torch.full((len(entries),), power, dtype=torch.float32, device=device) for power in past.powers]
        self.scores: Tensor | None = None
        if options.rule.uses_score:
            count, start = len(entries) * blocks.count, options.rule.initial_score
            self.scores = torch.full((count,), start, dtype=torch.float32, device=device)
        self._views: list[dict[str, Tensor]] = []
        for i, entry in enumerate(entries):
            own = slice(i * blocks.count, (i + 1) * blocks.count)
            if self.scores is not None and "score" in entry.state:
                _check_shape("score", entry, blocks.block_shape, "its blocks")
                self.scores[own] = spread_like(entry.state["score"], None).reshape(-1)
            views: dict[str, Tensor] = {"step": self.steps[i]}
            views |= {field: self._whole(moment, i) for field, moment in self._moments if moment is not None}
            views |= {field: power[i] for field, power in zip(POWERS, self.powers, strict=False)}
            if self.scores is not None:
                views["score"] = self.scores[own].view(blocks.block_shape)
            entry.state.clear()
            entry.state.update(views)
            self._views.append(views)  # kept alive: what identifies them must not become another tensor's

    def count_in(self, steps: Tensor, entries: Sequence[Entry]) -> None:
        """Count the steps of ``entries``, those that it was made for, in ``steps`` from now on."""
        self.steps = steps
        for step, entry, views in zip(steps.unbind(), entries, self._views, strict=True):
            entry.state["step"] = views["step"] = step

    @property
    def _moments(self) -> list[tuple[str, Tensor | None]]:
        return [("mu", self.mu), ("nu", self.nu)]

    def _whole(self, moment: Tensor, i: int) -> Tensor:
        """Of one parameter, in its shape and spread as it is."""
        view = self._own(moment, i)
        return self._sharding.wrap(view) if self._sharding else view

    def _own(self, moment: Tensor, i: int) -> Tensor:
        size = self._layout.size
        return self._layout.view(moment[i * size : (i + 1) * size])

    def _moment(self, field: str, entries: Sequence[Entry]) -> Tensor:
        """All of one moment: the memory that is there already if it serves, else its own."""
        for entry in entries:
            if field in entry.state:
                _check_shape(field, entry, entry.param.shape, "the parameter")
        there = [entry.state.get(field) for entry in entries]
        given = [None if x is None else spread_like(x, self._sharding) for x in there]
        first = given[0]
        kind = torch.float32, self._device
        if len(given) == 1 and first is not None and (first.dtype, first.device) == kind and self._layout.fits(first):
            return first.permute(self._layout.order).reshape(-1)
        moment = torch.zeros(len(entries) * self._layout.size, dtype=torch.float32, device=self._device)
        for i, x in enumerate(given):
            if x is not None:
                self._own(moment, i).copy_(x)
        return moment


def _check_shape(field: str, entry: Entry, expected: Sequence[int], owner: str) -> None:
    """Raise unless the state has the shape of its owner: who prunes a parameter must prune its state."""
    shape = tuple(entry.state[field].shape)
    if shape != tuple(expected):
        raise ValueError(
            f"state[{field!r}] of {entry.name!r} has shape {shape}, {owner} {tuple(expected)}: clear the state, or "
            "give it that shape"
        )
