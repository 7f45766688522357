"""Minimises a failing task: fewer parameters, steps and elements, default options, ordinary values."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, TypeAlias

import numpy as np

from magma_conformance.task import Record, Task
from magma_core import Rule, State
from magma_core.config import BASES
from magma_core.state_file.config import base_to_plain, rule_to_plain

Follow: TypeAlias = Callable[[Task], list[Record]]

SECONDS = 60.0
"""Time limit of the search."""


def minimise(task: Task, fails: Callable[[Task], bool], follow: Follow, /) -> Task:
    """A smaller task that still fails. It stops when no single step shrinks the task, or after `SECONDS`.

    Args:
        task: fails.
        fails: whether a task fails; errors of the task itself do not count.
        follow: the correct records of a task, so that its first steps can become its state.
    """
    end, numbers = time.monotonic() + SECONDS, count(1)
    found = True
    while found:
        found = False
        for smaller in _smaller(task, follow):
            if time.monotonic() > end:
                return task
            tried = replace(smaller, key=f"{task.key.partition('~')[0]}~{next(numbers)}")  # new key: compiled anew
            if fails(tried):
                task, found = tried, True
                break
    return task


def _smaller(task: Task, follow: Follow) -> Iterator[Task]:
    """Tasks that are one step smaller, the largest savings first."""
    if len(task.params) > 1:
        for name in task.params:
            yield _with_params(task, [name])
    yield from _fewer_steps(task, follow)
    for name, x in task.params.items():
        for axis, extent in enumerate(x.shape):
            for start, stop in ((0, extent // 2), (extent // 2, extent), (0, 1), (extent - 1, extent)):
                if 0 < stop - start < extent:
                    yield _cut(task, name, axis, slice(start, stop))
    yield from _plainer(task)
    yield from _simpler_values(task)


def _with_params(task: Task, names: list[str]) -> Task:
    def only(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {name: arrays[name] for name in names}

    state = task.state and {key: x for key, x in task.state.items() if key.rpartition("/")[0] in names}
    gradients = [only(step) for step in task.gradients]
    return replace(task, params=only(task.params), gradients=gradients, block_axes=only(task.block_axes), state=state)


def _fewer_steps(task: Task, follow: Follow) -> Iterator[Task]:
    """Without the last steps, or with the first ones replaced by the state after them."""
    steps = len(task.gradients)
    for kept in {1, steps // 2, steps - 1} - {0, steps}:
        yield replace(task, gradients=task.gradients[:kept], learning_rates=task.learning_rates[:kept])
    if steps > 1:
        record = follow(task)[0]
        state = {key: x for key, x in record.items() if key.rpartition("/")[2] in State._fields}
        yield replace(
            task,
            params={name: record[f"{name}/param"] for name in task.params},
            gradients=task.gradients[1:],
            learning_rates=task.learning_rates[1:],
            first_step=task.first_step + 1,
            state=state,
        )


def _cut(task: Task, name: str, axis: int, part: slice) -> Task:
    """Cut an axis of a parameter, and of its state."""
    axes = task.block_axes[name]

    def cut(x: np.ndarray, axis: int) -> np.ndarray:
        return x[(slice(None),) * axis + (part,)].copy()

    def cut_state(field: str, x: np.ndarray) -> np.ndarray:
        if field in ("mu", "nu"):
            return cut(x, axis)
        return cut(x, axes.index(axis)) if field == "score" and axes and axis in axes else x

    state = task.state and {
        key: cut_state(key.rpartition("/")[2], x) if key.rpartition("/")[0] == name else x
        for key, x in task.state.items()
    }
    gradients = [{**step, name: cut(step[name], axis)} for step in task.gradients]
    return replace(task, params={**task.params, name: cut(task.params[name], axis)}, gradients=gradients, state=state)


def _plainer(task: Task) -> Iterator[Task]:
    """With one option set to its default, or with a plain name, seed or start."""
    default_base, default_rule = base_to_plain(BASES[str(task.base["kind"])]()), rule_to_plain(Rule())
    for name, value in default_base.items():
        if task.base[name] != value:
            yield replace(task, base={**task.base, name: value})
    for name in ("p", "tau", "ema", "initial_score", "decay", "momentum"):
        if task.rule[name] != default_rule[name]:
            yield replace(task, rule={**task.rule, name: default_rule[name]})
    for i, (name, axes) in enumerate(task.block_axes.items()):
        if name != (plain := f"w{i}") and plain not in task.params:
            yield _renamed(task, name, plain)
        if axes and task.state is None:
            yield replace(task, block_axes={**task.block_axes, name: ()})
    if task.seed:
        yield replace(task, seed=0)
    if task.first_step > 1:
        yield replace(task, first_step=1)
    if task.state is not None:
        yield replace(task, state=None)
    if any(rate != 1.0 for rate in task.learning_rates):
        yield replace(task, learning_rates=[1.0] * len(task.learning_rates))


def _renamed(task: Task, old: str, new: str) -> Task:
    def renamed(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {new if name == old else name: x for name, x in arrays.items()}

    state = task.state
    if state is not None:
        parts = {key: key.rpartition("/") for key in state}
        state = {f"{new}/{parts[key][2]}" if parts[key][0] == old else key: x for key, x in state.items()}
    gradients = [renamed(step) for step in task.gradients]
    axes = renamed(task.block_axes)
    return replace(task, params=renamed(task.params), gradients=gradients, block_axes=axes, state=state)


def _simpler_values(task: Task) -> Iterator[Task]:
    """With one array set to zeros, or to ones."""
    for value in (0, 1):
        for name, x in task.params.items():
            if _is_other(x, value):
                yield replace(task, params={**task.params, name: np.full_like(x, value)})
            for i, step in enumerate(task.gradients):
                if _is_other(step[name], value):
                    simple = {**step, name: np.full_like(x, value)}
                    yield replace(task, gradients=[*task.gradients[:i], simple, *task.gradients[i + 1 :]])


def _is_other(x: np.ndarray, value: int) -> bool:
    """Whether filling with ``value`` would simplify it; zeros are simpler than ones."""
    return not any(np.array_equal(x, np.full_like(x, simple)) for simple in range(value + 1))
