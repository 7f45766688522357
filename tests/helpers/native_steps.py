"""Steps of `magma_native` beside those of `magma_core` on NumPy, on parameters of every layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from magma_conformance.bits import assert_bits_equal
from magma_native import update_planned
from magma_numpy import namespace as xp

import magma_core
from backends import NUMPY_DTYPES
from magma_core import Base, Plan, Rule, State

TILE = 512
"""Elements that `skeleton.c` measures at a time."""

TOP = np.nextafter(np.float32(1), np.float32(0))
"""A largest magnitude whose integer is 2¹⁵, which 16 bits do not hold."""

LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "whole": ((37, 29), ()),
    "tiles": ((3, 5 * TILE + 7), (0,)),
    "rows": ((13, 40), (0,)),
    "leading": ((3, 4, 50), (0, 1)),
    "columns": ((40, 6), (1,)),
    "out of order": ((4, 3, 35), (1, 0)),
    "outer two": ((4, 30, 3), (2, 0)),
    "elements": ((5, 7), (0, 1)),
    "element": ((1,), ()),
    "scalar": ((), ()),
    "no rows": ((0, 3), (0,)),
    "no columns": ((3, 0), (0,)),
    "empty": ((0, 3), ()),
}
"""Shapes and block axes."""

UNMASKED: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {"dense": ((1000,), None)}


@dataclass
class Parameters:
    """Parameters, plans and states, to be stepped in both ways."""

    plans: Sequence[Plan]
    params: list[np.ndarray]
    states: list[State]

    @classmethod
    def of(cls, base: Base, rule: Rule, kind: str, layouts: Any, generator: np.random.Generator) -> "Parameters":
        """Fresh ones, of a format."""
        dtype, axes = NUMPY_DTYPES[kind], {name: axes for name, (_, axes) in layouts.items()}
        params = [generator.normal(size=shape).astype(dtype) for shape, _ in layouts.values()]
        options: dict[str, Any] = {"base": base, "rule": rule, "xp": xp}
        plans = magma_core.plan_all(params, names=list(axes), seed=3, block_axes=axes, **options)
        states = [
            magma_core.init(x, block_axes=own, name=name, **options)
            for x, (name, own) in zip(params, axes.items(), strict=True)
        ]
        return cls(plans, params, states)

    def step(self, grads: Sequence[np.ndarray], step: int, *, threads: Sequence[int] = (1, 2)) -> None:
        """One step, with the same bits by each number of threads."""
        self.params, self.states, self.reports = self.compare(self.states, grads, step, threads=threads)

    def compare(
        self, states: Sequence[State], grads: Sequence[np.ndarray], step: int, *, threads: Sequence[int] = (1, 2)
    ) -> Any:
        """What a step from ``states`` gives, in both ways; nothing here changes."""
        arguments = self.plans, self.params, grads, states
        numbers: dict[str, Any] = {"step": step, "lr": 0.1, "lr_scale": 0.75}
        before = [x.copy() for x in _arrays(self.params, grads, states)]
        with np.errstate(all="ignore"):
            expected = magma_core.update_planned(*arguments, **numbers, xp=xp)
        for count in threads:
            found = update_planned(*arguments, **numbers, threads=count)
            for plan, mine, theirs in zip(
                self.plans, zip(*found, strict=True), zip(*expected, strict=True), strict=True
            ):
                assert_same(mine, theirs, f"{plan.name}, step {step}, {count} threads")
            for old, now in zip(before, _arrays(self.params, grads, states), strict=True):
                assert_bits_equal(now, old, "what was passed in")
        return expected


def assert_same(found: Sequence[Any], expected: Sequence[Any], label: str) -> None:
    """A parameter, its state and its report."""
    assert_bits_equal(found[0], expected[0], f"{label}: parameter")
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        for field, value in theirs._asdict().items():
            own = getattr(mine, field)
            assert (own is None) == (value is None), f"{label}: {field}"
            if value is not None:
                assert_bits_equal(own, value, f"{label}: {field}")


def _arrays(params: Sequence[np.ndarray], grads: Sequence[np.ndarray], states: Sequence[State]) -> list[np.ndarray]:
    return [*params, *grads, *(x for state in states for x in state if x is not None)]


def gradients(params: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """Of magnitudes that differ from one to the next; in every other one they grow, so that sums are begun anew."""
    found = []
    for x in params:
        grown = np.exp2(np.linspace(-30, 0, x.size) * generator.integers(0, 2)).reshape(x.shape)
        magnitude = np.exp2(float(generator.integers(-12, 9)))
        found.append(np.asarray(generator.normal(size=x.shape) * grown * magnitude).astype(x.dtype))
    return found


SPECIAL: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "nan": lambda x, generator: np.where(np.arange(x.size) == x.size // 2, np.nan, x),
    "infinite": lambda x, generator: np.where(np.arange(x.size) == x.size - 1, -np.inf, x),
    "zeros": lambda x, generator: np.copysign(0.0, x),
    "tiny": lambda x, generator: np.copysign(np.exp2(generator.uniform(-149, -90, x.size)), x),
    "top": lambda x, generator: np.where(np.arange(x.size) % 600 == 0, TOP, np.clip(x, -0.5, 0.5)),
}
"""What has a path of its own, made of the elements of ordinary values."""


def special(name: str, arrays: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """The arrays with values of this kind; NaN and ∞ are in few blocks."""
    found = []
    for x in arrays:
        given = SPECIAL[name](x.reshape(-1).astype(np.float32), generator)
        found.append(np.asarray(given, np.float32).astype(x.dtype).reshape(x.shape))
    return found
