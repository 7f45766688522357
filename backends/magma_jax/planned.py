"""`magma_core.step.update_planned` for JAX arrays that step in C where they can, for other packages' optimizers."""

from collections.abc import Sequence
from typing import Any

from magma_core import Plan, Report, State
from magma_core.namespace import Array
from magma_core.rule import write
from magma_jax.native import primitive


def update_planned(
    plans: Sequence[Plan],
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    xp: Any,
    **numbers: Any,
) -> tuple[list[Array], list[State], list[Report]]:
    """As there; all states must have the same powers."""
    del xp  # there is only JAX's
    ways, dtypes = primitive.Ways(write, write), [param.dtype for param in params]
    return primitive.update_planned(plans, params, grads, states, **numbers, ways=ways, dtypes=dtypes, reports=True)
