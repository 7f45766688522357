"""magma_core in each mode, through the interface that every implementation provides."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, cast

import numpy as np
from magma_numpy import namespace as numpy_namespace

from magma_conformance.implementations.core_parts import core_part
from magma_conformance.implementations.inductor import compiler_missing
from magma_conformance.implementations.modes import Mode
from magma_conformance.task import Arrays, Record, Task
from magma_core import Plan, Report, State, init, plan_all, update_planned
from magma_core.namespace import Array, Namespace
from magma_core.plan import check_inputs
from magma_core.state_file.config import base_from_plain, rule_from_plain


class CoreImplementation:
    """`magma_core.update_planned`, one call per step, compiled as the mode compiles."""

    def __init__(self, mode: Mode) -> None:
        self.name = f"{mode.backend} {mode.name}"
        self.mode = mode
        self._compiled: tuple[str, Callable[..., Any]] | None = None  # for the last key

    def refuses(self, task: Task) -> str | None:
        """Refuse dtypes that the namespace lacks: the standard has no half precision."""
        missing = {str(x.dtype) for x in task.params.values() if getattr(self.mode.xp, str(x.dtype)) is None}
        return f"no {missing.pop()}" if missing else None

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        check_task(task)
        return self._follow(task)

    def _follow(self, task: Task) -> list[Record]:
        mode, names = self.mode, list(task.params)
        params = [mode.put(task.params[name]) for name in names]
        states = self._initial_states(task, params)
        step_function = self._step_function(task, params)
        records = []
        for i, (gradients, lr) in enumerate(zip(task.gradients, task.learning_rates, strict=True)):
            grads = [mode.put(gradients[name]) for name in names]
            step, rate = mode.put(np.asarray(task.first_step + i)), mode.put(np.asarray(lr, np.float32))
            params, states, reports = step_function(params, grads, states, step, rate)
            records.append(self._record(names, params, states, reports))
        return records

    def part(self, kind: str, inputs: Arrays) -> Arrays:
        """One part of a step."""
        return core_part(self.mode, kind, inputs)

    def _initial_states(self, task: Task, params: Sequence[Array]) -> list[State]:
        if task.state is not None:
            states = [_state(task.state, name) for name in task.params]
            return [State(*(None if x is None else self.mode.put(x) for x in state)) for state in states]
        return [
            init(
                param,
                base=base_from_plain(task.base),
                rule=rule_from_plain(task.rule),
                block_axes=task.block_axes[name],
                name=name,
                xp=self.mode.xp,
            )
            for name, param in zip(task.params, params, strict=True)
        ]

    def _step_function(self, task: Task, params: Sequence[Array]) -> Callable[..., Any]:
        if self._compiled is None or self._compiled[0] != task.key:
            plans = plan_all(
                params,
                names=list(task.params),
                base=base_from_plain(task.base),
                rule=rule_from_plain(task.rule),
                seed=task.seed,
                block_axes=task.block_axes,
                xp=self.mode.xp,
            )
            self._compiled = task.key, self._compile(plans)
        return self._compiled[1]

    def _compile(self, plans: Sequence[Plan]) -> Callable[..., Any]:
        return self.mode.compile(self._one_step(plans))

    def _one_step(self, plans: Sequence[Plan]) -> Callable[..., Any]:
        xp = self.mode.xp

        def one_step(params: Any, grads: Any, states: Any, step: Array, lr: Array) -> Any:
            return update_planned(plans, params, grads, states, step=step, lr=lr, xp=xp)

        return one_step

    def _record(
        self, names: Sequence[str], params: Sequence[Array], states: Sequence[State], reports: Sequence[Report]
    ) -> Record:
        record: Record = {}
        for name, param, state, report in zip(names, params, states, reports, strict=True):
            fields = {"param": param, **state._asdict(), **report._asdict()}
            record |= {f"{name}/{key}": self.mode.get(x) for key, x in fields.items() if x is not None}
        return record


class JaxDonated(CoreImplementation):
    """jax.jit with parameters and states donated, as in a training loop."""

    def _compile(self, plans: Sequence[Plan]) -> Callable[..., Any]:
        return import_module("jax").jit(self._one_step(plans), donate_argnums=(0, 2))


class JaxScan(CoreImplementation):
    """All steps of a task in one ``lax.scan`` that carries donated parameters and states."""

    def _follow(self, task: Task) -> list[Record]:
        mode, names = self.mode, list(task.params)
        params = [mode.put(task.params[name].copy()) for name in names]
        states = self._initial_states(task, params)
        stacked = [mode.put(np.stack([grads[name] for grads in task.gradients])) for name in names]
        rates = mode.put(np.asarray(task.learning_rates, np.float32))
        scan = self._step_function(task, params)
        _, history = scan((params, states, np.uint32(task.first_step)), (stacked, rates))
        params_of, states_of, reports_of = import_module("jax").tree.map(mode.get, history)
        return [
            self._record(names, *(_pick(part, i) for part in (params_of, states_of, reports_of)))
            for i in range(len(task.gradients))
        ]

    def _compile(self, plans: Sequence[Plan]) -> Callable[..., Any]:
        jax, one_step = import_module("jax"), self._one_step(plans)

        def turn(carry: Any, inputs: Any) -> Any:
            params, states, step = carry
            params, states, reports = one_step(params, inputs[0], states, step, inputs[1])
            return (params, states, step + 1), (params, states, reports)

        return jax.jit(lambda carry, inputs: jax.lax.scan(turn, carry, inputs), donate_argnums=0)


class TorchCompiled(CoreImplementation):
    """torch.compile. It discards the last key's programs, to stay below the recompile limit."""

    def refuses(self, task: Task) -> str | None:
        """Also refuse on the CPU if there is no C++ compiler."""
        missing = None if self.mode.hardware else compiler_missing()
        return missing or super().refuses(task)

    def _compile(self, plans: Sequence[Plan]) -> Callable[..., Any]:
        import_module("torch").compiler.reset()
        return super()._compile(plans)


def check_task(task: Task) -> None:
    """Raise ValueError or TypeError for input that spec section 9 refuses, as `magma_core.update_all` does.

    The check comes before any framework, since some would convert bad input.
    """
    names, xp = list(task.params), cast(Namespace, numpy_namespace)
    params = [np.asarray(task.params[name]) for name in names]  # NumPy scalars are not arrays
    base, rule = base_from_plain(task.base), rule_from_plain(task.rule)
    plans = plan_all(params, names=names, base=base, rule=rule, seed=task.seed, block_axes=task.block_axes, xp=xp)
    if task.state is None:
        states = [
            init(param, base=base, rule=rule, block_axes=task.block_axes[name], name=name, xp=xp)
            for name, param in zip(names, params, strict=True)
        ]
    else:
        states = [_state(task.state, name) for name in names]
    for step, (gradients, rate) in enumerate(zip(task.gradients, task.learning_rates, strict=True), task.first_step):
        grads = [np.asarray(gradients[name]) for name in names]
        check_inputs(plans, params, grads, states, step=step, lr=rate, xp=xp)


def implementation(mode: Mode) -> CoreImplementation:
    """magma_core in ``mode``."""
    kinds = {("jax", "jit"): JaxDonated, ("jax", "scan"): JaxScan, ("torch", "compile"): TorchCompiled}
    return kinds.get((mode.backend, mode.name), CoreImplementation)(mode)


def _state(record: Record, name: str) -> State:
    """One parameter's state from a record, as NumPy arrays."""
    fields = {field: record.get(f"{name}/{field}") for field in State._fields}
    return State(**{field: x if x is None else np.asarray(x) for field, x in fields.items()})  # also NumPy scalars


def _pick(tree: Any, i: int) -> Any:
    """Entry ``i`` of every array in a list of arrays or of named tuples of arrays."""
    if isinstance(tree, State | Report):
        return type(tree)(*(None if x is None else x[i] for x in tree))
    return [_pick(x, i) for x in tree] if isinstance(tree, list) else tree[i]
