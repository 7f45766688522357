"""The base optimizers: dense moments and the direction Δ (spec section 4).

A base has two functions. One computes the moments from the flushed gradient g. The other computes the direction from
the new state, so it can wait until the kept blocks are known. Both take the step's numbers, bias corrections included.

To add a base:
1. config.py: its dataclass, and entries in `Base` and `BASES`; `magma_core.__init__` exports it.
2. Here: its functions, registered in `_BASES`; `direction_uses_gradient` if Δ reads g again.
3. docs/spec.md section 4, and from it alone the oracle and the port in C; then vectors.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from magma_core.blocks import Blocks
from magma_core.config import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule
from magma_core.hyperparameters import BaseNumbers
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Operand, Real, real
from magma_core.state import POWERS, State


def advance_powers(state: State, n: BaseNumbers, /, *, xp: Namespace) -> tuple[State, BaseNumbers]:
    """βᵗ as running products, and the bias corrections from them (spec 4.3); runs once a step, before the moments.

    The corrections are scalars: tensors are multiplied, never divided, by them.
    """
    if state.mu_power is None or state.nu_power is None:
        return state, n
    powers = [
        (real(power, xp=xp) * beta).flush() for power, beta in ((state.mu_power, n.beta1), (state.nu_power, n.beta2))
    ]
    first, second = (1.0 / (1.0 - power) for power in powers)
    state = state._replace(mu_power=powers[0].array, nu_power=powers[1].array)
    return state, n._replace(correction1=first, correction2=second)


Moments: TypeAlias = Callable[[Real, State, BaseNumbers], State]
Direction: TypeAlias = Callable[[Real | None, State, BaseNumbers, Base, Namespace], Real]


def _momentum(g: Real, state: State, n: BaseNumbers) -> State:
    """Spec 4.1."""
    return state._replace(mu=(n.beta1 * _real(state.mu, g.xp) + g).flush().array)


def _sgd(g: Real | None, state: State, n: BaseNumbers, base: Base, xp: Namespace) -> Real:
    mu = _real(state.mu, xp)
    if not direction_uses_gradient(base):
        return mu
    assert g is not None
    return g + n.beta1 * mu


def _both_moments(g: Real, state: State, n: BaseNumbers) -> State:
    """Spec 4.3; also 4.2, where only rules with scores keep the extra μ."""
    nu = None if state.nu is None else _average(state.nu, g * g, n.beta2, n.rest2)
    mu = None if state.mu is None else _average(state.mu, g, n.beta1, n.rest1)
    return state._replace(mu=mu, nu=nu)


def _rmsprop(g: Real | None, state: State, n: BaseNumbers, base: Base, xp: Namespace) -> Real:
    assert g is not None
    return g / (_real(state.nu, xp).sqrt() + n.eps)


def _adam(g: Real | None, state: State, n: BaseNumbers, base: Base, xp: Namespace) -> Real:
    mu, nu = _real(state.mu, xp), _real(state.nu, xp)
    return (mu * n.correction1) / ((nu * n.correction2).sqrt() + n.eps)


def _normalised_moments(g: Real, state: State, n: BaseNumbers) -> State:
    """Spec 4.4."""
    nu = _average(state.nu, g * g, n.beta2, n.rest2)
    normalised = g / ((_real(nu, g.xp) * n.correction2).sqrt() + n.eps)
    return state._replace(mu=_average(state.mu, normalised, n.beta1, n.rest1), nu=nu)


def _laprop(g: Real | None, state: State, n: BaseNumbers, base: Base, xp: Namespace) -> Real:
    return _real(state.mu, xp) * n.correction1


class _Entry(NamedTuple):
    moments: Moments
    direction: Direction
    fields: tuple[str, ...]  # stored fields, besides μ where the rule needs it


_CORRECTED = ("mu", "nu", *POWERS)
_BASES: dict[type, _Entry] = {
    SGD: _Entry(_momentum, _sgd, ("mu",)),
    RMSProp: _Entry(_both_moments, _rmsprop, ("nu",)),
    Adam: _Entry(_both_moments, _adam, _CORRECTED),
    AdamW: _Entry(_both_moments, _adam, _CORRECTED),
    LaProp: _Entry(_normalised_moments, _laprop, _CORRECTED),
}


def advance_moments(g: Real, state: State, n: BaseNumbers, /, *, base: Base) -> State:
    """The state after a dense step of ``base``; `advance_powers` updates the running products."""
    return _BASES[type(base)].moments(g, state, n)


def direction(g: Real | None, state: State, n: BaseNumbers, /, *, base: Base, xp: Namespace) -> Real:
    """Δ₀ of ``base`` from its new state; ``g`` may be None if `direction_uses_gradient` is false."""
    return _BASES[type(base)].direction(g, state, n, base, xp)


def direction_uses_gradient(base: Base, /) -> bool:
    """Whether `direction` reads the gradient itself, besides the moments."""
    return isinstance(base, RMSProp) or (isinstance(base, SGD) and base.nesterov)


def state_fields(base: Base, rule: Rule, /) -> tuple[str, ...]:
    """The moments of ``base`` under ``rule``, by their names in `State`; TypeError for an unknown base."""
    if type(base) not in _BASES:
        known = ", ".join(kind.__name__ for kind in _BASES)
        raise TypeError(f"base must be an instance of one of {known}, got {base!r}")
    fields = _BASES[type(base)].fields
    return ("mu", *fields) if rule.uses_score and "mu" not in fields else fields


def state_shapes(moments: Iterable[str], blocks: Blocks, /, *, has_score: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a parameter's state, by field name of `State`."""
    shapes = {field: () if field in POWERS else blocks.shape for field in moments}
    return shapes | ({"score": blocks.block_shape} if has_score else {})


def initial_moment(field: str, param: Array, /, *, xp: Namespace) -> Array:
    """Zeros in the parameter's shape for a moment, 1 for a running product."""
    if field in POWERS:
        return xp.full((), 1.0, dtype=xp.float32, device=xp.device(param))
    return xp.zeros_like(param, dtype=xp.float32)  # sharded like the parameter


def _average(old: Array | None, new: Real, decay: Operand, rest: Operand) -> Array:
    return (decay * _real(old, new.xp) + rest * new).flush().array


def _real(x: Array | None, xp: Namespace) -> Real:
    assert x is not None  # plan.check_inputs guarantees it
    return real(x, xp=xp)
