"""`magma_core.update_planned` on NumPy arrays, by compiled loops."""

import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from magma_numpy import namespace as numpy_namespace

from magma_core import Report, State
from magma_core.arguments import check_integer
from magma_core.config import LR_SCALE
from magma_core.hyperparameters import BaseNumbers, RuleNumbers, masked_rate
from magma_core.keep import MASK
from magma_core.namespace import Namespace
from magma_core.numerics import binary32, real
from magma_core.plan import Plan, check_inputs
from magma_native.library import library
from magma_native.loops import SETTINGS, Formula
from magma_native.source import GROUP, TENSOR

_XP = cast(Namespace, numpy_namespace)


def update_planned(
    plans: Sequence[Plan],
    params: Sequence[np.ndarray],
    grads: Sequence[np.ndarray],
    states: Sequence[State],
    /,
    *,
    step: int,
    lr: float,
    lr_scale: float = LR_SCALE,
    threads: int | None = None,
) -> tuple[list[np.ndarray], list[State], list[Report]]:
    """`magma_core.update_planned`, bit for bit; arguments stay unchanged.

    Args:
        plans: of `magma_core.plan_all`.
        params: NumPy arrays.
        grads: their gradients.
        states: of `magma_core.init` or of the step before.
        step: t.
        lr: the learning rate.
        lr_scale: a factor of it for masked parameters.
        threads: how many to use; by default one for each core that this process may run on.

    Raises:
        CompilerMissing: if there is no C compiler that can make the step.
        ValueError, TypeError: for what `magma_core.update_all` refuses, and for a bad number of threads.

    Example:
        >>> import magma_core
        >>> from magma_numpy import namespace as xp
        >>> w = np.ones((2, 2), np.float32)
        >>> options = dict(base=magma_core.SGD(), rule=magma_core.magma(), xp=xp)
        >>> state = magma_core.init(w, block_axes=(0,), **options)
        >>> plans = magma_core.plan_all([w], names=["w"], seed=1, block_axes={"w": (0,)}, **options)
        >>> (new,), _, _ = update_planned(plans, [w], [w / 2], [state], step=1, lr=0.1)
        >>> new
        array([[0.9743877, 0.9743877],
               [1.       , 1.       ]], dtype=float32)
    """
    check_inputs(plans, params, grads, states, step=step, lr=lr, lr_scale=lr_scale, xp=_XP)
    if threads is not None:
        check_integer("threads", threads, 1, 2**15, "or leave it out for one on each core")
    if any(plan.shard is not None for plan in plans):
        raise NotImplementedError("a part of a parameter needs a reduction: use magma_core.update_planned")
    formats = [(param.dtype.name, grad.dtype.name) for param, grad in zip(params, grads, strict=True)]
    formulas = [formula_of(plan, *own) for plan, own in zip(plans, formats, strict=True)]
    libraries = {formula: library(formula) for formula in dict.fromkeys(formulas)}  # before anything is computed
    stepped = [_Stepped(*one) for one in zip(plans, params, grads, states, strict=True)]
    rate = real(float(lr), xp=_XP).flush()
    rates = {masked: float(x.array) for masked, x in ((False, rate), (True, masked_rate(rate, lr_scale)))}
    settings = [np.array([group(*_numbers(plan), step=step, rate=rates[plan.masked])], GROUP) for plan in plans]
    for formula, compiled in libraries.items():
        members = [i for i, own in enumerate(formulas) if own == formula]
        table = np.zeros(len(members), TENSOR)
        for row, i in zip(table, members, strict=True):
            stepped[i].enter(row, settings[i])
        compiled.step(table, threads or _cores())
    return [x.param() for x in stepped], [x.state() for x in stepped], [x.report() for x in stepped]


def _cores() -> int:
    """Those that this process may run on, where the system tells."""
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1


def formula_of(plan: Plan, param: str, grad: str) -> Formula:
    """The formula of a parameter; plans that differ in numbers alone share it."""
    return Formula.of(plan.base, plan.rule, plan.decays, param, grad, plan.masked)


def _numbers(plan: Plan) -> tuple[BaseNumbers, RuleNumbers]:
    return plan.numbers, plan.rule_numbers


def group(base: BaseNumbers, rule: RuleNumbers, *, step: int, rate: float) -> tuple[Any, ...]:
    """The numbers of a step, a `GROUP` entry; ``rate`` of a masked parameter includes ``lr_scale``."""
    given: dict[str, Any] = base._asdict() | rule._asdict() | {"rate": rate}
    return (int(step) & MASK, rule.limit, *(binary32(given[name]) for name in SETTINGS))


class _Stepped:
    """One parameter: copies of its arrays, with a row for each block, which the loops write."""

    def __init__(self, plan: Plan, param: np.ndarray, grad: np.ndarray, state: State) -> None:
        blocks = self._blocks = plan.blocks
        self._plan = plan
        self._order = (*blocks.axes, *blocks.inner_axes)
        self._theta, self._grad = self._rows(param), self._rows(grad)
        arrays = {name: value for name, value in state._asdict().items() if value is not None}
        moments = "mu", "nu"
        self._new = {name: self._rows(x) if name in moments else np.array(x, order="C") for name, x in arrays.items()}
        count = blocks.count
        self._keep = np.zeros(count, np.uint8)
        self._sums, self._cosine = np.zeros((3, count), np.int64), np.zeros(count, np.float32)

    def enter(self, row: Any, settings: np.ndarray) -> None:
        """Fill in a row of the table."""
        named = {"theta": self._theta, "grad": self._grad, "keep": self._keep, "sums": self._sums}
        named |= {"cosine": self._cosine, "settings": settings, **self._new}
        for name, array in named.items():
            row[name] = array.ctypes.data
        row["rows"], row["columns"], row["stride"] = self._blocks.count, self._blocks.block_size, self._blocks.count
        row["key_high"], row["key_low"] = self._plan.key

    def param(self) -> np.ndarray:
        """θ after the step."""
        return self._whole(self._theta)

    def state(self) -> State:
        """The state after the step."""
        return State(**{name: self._whole(x) if name in ("mu", "nu") else x for name, x in self._new.items()})

    def report(self) -> Report:
        """The report of the step."""
        if not self._plan.masked:
            return Report()
        shape = self._blocks.block_shape
        keep = self._keep.astype(bool).reshape(shape)
        if not self._plan.rule.uses_score:
            return Report(keep=keep)
        return Report(self._sums.reshape(3, *shape), self._cosine.reshape(shape), keep)

    def _rows(self, x: np.ndarray) -> np.ndarray:
        return np.array(np.transpose(x, self._order), order="C")

    def _whole(self, x: np.ndarray) -> np.ndarray:
        return np.transpose(x, np.argsort(self._order)) if self._order else x
