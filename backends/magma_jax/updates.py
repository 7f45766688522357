"""What an optax transformation returns instead of new parameters; signatures as in `magma_core.rule.write`."""

from typing import Any

import jax.numpy as jnp

from magma_core import State
from magma_core.config import SMALLEST
from magma_core.hyperparameters import BaseNumbers
from magma_core.namespace import Array
from magma_core.numerics import Real, real
from magma_core.rule import Formula, displaced, write


def update_to_add(
    formula: Formula, param: Array, grad: Any, state: State, numbers: BaseNumbers, scale: Real, keep: Array | None
) -> Array:
    """u in float32 such that θ ⊕ u, rounded to the parameter's format, is the new parameter.

    θ ⊕ (−x) is θ ⊖ x. If the result is flushed, u is −θ: θ ⊕ −θ is +0. If the block is not kept, u is −0: θ ⊕ −0 is θ,
    whatever its value and sign. An addition cannot do two things. It loses a subnormal θ if the hardware flushes
    operands. Dense decay rounds separately: u is then the difference of new and old. That gives the new parameter if
    the two are within a factor of two, and otherwise one close to it.
    """
    theta, change = displaced(formula, param, grad, state, numbers, scale)
    xp, new = theta.xp, theta - change
    if formula.decays == "dense":
        new = new.flush() if keep is None else new.flush().replace(xp.logical_not(keep), theta)
        return (new - real(param, xp=xp)).fenced()  # unfenced, θ ⊕ (y ⊖ θ) might become y
    u = (-change).replace(abs(new) < SMALLEST, -theta).array
    return u if keep is None else xp.where(keep, u, xp.asarray(-0.0, dtype=xp.float32, device=xp.device(u)))


def direction(
    formula: Formula,
    param: Array | None,
    grad: Any,
    state: State,
    numbers: BaseNumbers,
    scale: Real,
    keep: Array | None,
) -> Array:
    """(lr·w)·k·Δ in float32, for others to scale and subtract; does not support dense decay."""
    _, change = displaced(formula, param, grad, state, numbers, scale)
    return change.array if keep is None else change.replace(change.xp.logical_not(keep), 0.0).array


def new_parameter(
    formula: Formula, param: Array, grad: Any, state: State, numbers: BaseNumbers, scale: Real, keep: Array | None
) -> Array:
    """`write`; float64, outside the contract, is computed in float32 and added in float64."""
    if param.dtype == jnp.float64:
        return param + update_to_add(formula, param, grad, state, numbers, scale, keep)
    return write(formula, param, grad, state, numbers, scale, keep)
