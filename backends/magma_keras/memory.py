"""An optimizer's state in Keras variables, so everything that saves a Keras optimizer saves it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from magma_core import Plan, State
from magma_core.numerics import binary32
from magma_keras import backend
from magma_keras.names import Choice, path

POWERS = {"mu_power": "beta_1_power", "nu_power": "beta_2_power"}
"""The fields of `State` that all variables share, because every step updates all of them."""

_NAMES = {"mu": "momentum", "nu": "velocity", "score": "score"}


@dataclass(frozen=True)
class Memory:
    """The plans of the variables, and their state; lists have one entry per variable."""

    plans: Sequence[Plan]
    choices: Sequence[Choice]
    own: Sequence[dict[str, Any]]  # fields of `State` as Keras variables, without the powers
    powers: dict[str, Any]  # the powers as Keras variables, shared

    def states(self, places: Sequence[int]) -> list[State]:
        """The current states of some variables."""
        powers = {field: backend.entering(backend.array(x)) for field, x in self.powers.items()}
        every = [{field: backend.entering(backend.array(x)) for field, x in self.own[i].items()} for i in places]
        return [State(**own, **powers) for own in every]


def make_memory(
    plans: Sequence[Plan],
    choices: Sequence[Choice],
    fields: Sequence[Sequence[str]],
    variables: Sequence[Any],
    add: Callable[..., Any],
) -> Memory:
    """The state before the first step.

    Args:
        plans: the plans of all variables.
        choices: the choices behind the plans.
        fields: the moments to store for each, by their names in `magma_core.State`.
        variables: the trained variables; None for one without state.
        add: creates a variable, as `keras.Optimizer.add_variable` does.
    """
    powers = {
        field: add((), "ones", "float32", aggregation="only_first_replica", name=name)
        for field, name in POWERS.items()
        if any(field in own for own in fields)
    }
    own: list[dict[str, Any]] = []
    for plan, variable, names in zip(plans, variables, fields, strict=True):
        own.append({})
        if variable is None:
            continue
        axes = {field: tuple(range(len(plan.blocks.shape))) for field in names if field not in POWERS}
        if plan.rule.uses_score:
            axes["score"] = plan.blocks.axes
        with backend.beside(variable):
            for field, kept in axes.items():
                own[-1][field] = add(
                    tuple(plan.blocks.shape[axis] for axis in kept),
                    keras.initializers.Constant(binary32(plan.rule.initial_score)) if field == "score" else "zeros",
                    "float32",
                    layout=backend.layout(variable, kept),
                    name=f"{path(variable).replace('/', '_')}_{_NAMES[field]}",
                )
    return Memory(plans, choices, own, powers)
