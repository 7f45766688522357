"""magma_core compiled with every hyper-parameter as an input: one program serves a whole structure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from magma_conformance.fuzz.draw_numbers import is_single
from magma_conformance.implementations.core import CoreImplementation, implementation
from magma_conformance.implementations.modes import Mode
from magma_conformance.task import Plain, Task
from magma_core import Plan, update_planned
from magma_core.hyperparameters import base_numbers, rule_numbers
from magma_core.namespace import Array
from magma_core.numerics import real


class NumbersAsInputs(CoreImplementation):
    """`magma_core.update_planned` with run-time arrays for β, ε, λ, p, τ and a."""

    def __init__(self, mode: Mode) -> None:
        super().__init__(mode)
        self.name += "-numbers"

    def refuses(self, task: Task) -> str | None:
        """Also refuse hyper-parameters that are not binary32: 1 − β is computed before it is rounded (spec 1.3)."""
        if not all(is_single(value) for value in (*_given(task.base).values(), *_given(task.rule).values())):
            return "hyper-parameters are not binary32 numbers"
        return super().refuses(task)

    def _step_function(self, task: Task, params: Sequence[Array]) -> Callable[..., Any]:
        compiled = super()._step_function(replace(task, key=_structure(task)), params)
        given = [
            {name: self.mode.put(np.asarray(value, np.float32)) for name, value in _given(plain).items()}
            for plain in (task.base, task.rule)
        ]
        return lambda *arguments: compiled(*arguments, *given)

    def _one_step(self, plans: Sequence[Plan]) -> Callable[..., Any]:
        xp = self.mode.xp

        def one_step(params: Any, grads: Any, states: Any, step: Array, lr: Array, base: Any, rule: Any) -> Any:
            with xp.scope():
                of_base, of_rule = (
                    {name: real(x, xp=xp).flush() for name, x in given.items()} for given in (base, rule)
                )
                of_all, of_masked = base_numbers(plans[0].base, **of_base), rule_numbers(plans[0].rule, **of_rule)
            planned = [
                plan._replace(numbers=of_all, rule_numbers=of_masked if plan.masked else plan.rule_numbers)
                for plan in plans
            ]
            return update_planned(planned, params, grads, states, step=step, lr=lr, xp=xp)

        return one_step


def numbers_as_inputs(mode: Mode) -> CoreImplementation:
    """The implementation of ``mode`` with hyper-parameters as inputs."""
    return type("NumbersAsInputs", (NumbersAsInputs, type(implementation(mode))), {})(mode)


def _structure(task: Task) -> str:
    """Identifies what the program is compiled for: the task without hyper-parameters."""
    options = [{name: x for name, x in plain.items() if not isinstance(x, float)} for plain in (task.base, task.rule)]
    parameters = [(name, x.shape, str(x.dtype), task.block_axes[name]) for name, x in task.params.items()]
    return repr((options, parameters, task.seed))


def _given(plain: Plain) -> dict[str, float]:
    return {name: value for name, value in plain.items() if isinstance(value, float) and name != "initial_score"}
