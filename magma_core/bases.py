"""The base optimizers: moments, which are always dense, and the direction Δ (spec section 4).

A base has two functions. Its moments are those after the gradient g, which is flushed already, and whose running
products have been advanced; its direction is computed from the new state, so that it can wait until it is known which
blocks are kept. To add a base, write its dataclass in config.py and its functions here, and register them in `_BASES`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from magma_core.config import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Operand, Real, real
from magma_core.state import State


class Constants(NamedTuple):
    """A base's numbers as they enter the arithmetic (spec 1.3): floats, or 0-d values that a program is given."""

    beta1: Operand
    rest1: Operand  # 1 − β₁
    beta2: Operand
    rest2: Operand  # 1 − β₂
    eps: Operand
    weight_decay: Operand


def constants(base: Base, /) -> Constants:
    """The numbers of ``base``, 1 − β in binary64; 0 where it has none. The momentum of SGD and RMSProp is β₁."""
    beta1 = getattr(base, "beta1", getattr(base, "momentum", 0.0))
    beta2, eps = getattr(base, "beta2", 0.0), getattr(base, "eps", 0.0)
    return Constants(beta1, 1 - beta1, beta2, 1 - beta2, eps, base.weight_decay)


Moments: TypeAlias = Callable[[Real, State, Constants], State]
Direction: TypeAlias = Callable[[Real, State, Constants, Base], Real]


def _momentum(g: Real, state: State, c: Constants) -> State:
    """Spec 4.1."""
    return state._replace(mu=(c.beta1 * _real(state.mu, g) + g).flush().array)


def _sgd(g: Real, state: State, c: Constants, base: Base) -> Real:
    mu = _real(state.mu, g)
    return g + c.beta1 * mu if isinstance(base, SGD) and base.nesterov else mu


def _both_moments(g: Real, state: State, c: Constants) -> State:
    """Spec 4.3; also 4.2, where μ is an extra that only rules with scores keep."""
    nu = _average(state.nu, g * g, c.beta2, c.rest2)
    if state.mu is None:
        return state._replace(nu=nu)
    return state._replace(mu=_average(state.mu, g, c.beta1, c.rest1), nu=nu)


def _rmsprop(g: Real, state: State, c: Constants, base: Base) -> Real:
    return g / (_real(state.nu, g).sqrt() + c.eps)


def _adam(g: Real, state: State, c: Constants, base: Base) -> Real:
    mu, nu = _real(state.mu, g), _real(state.nu, g)
    return (mu * _correction(state.mu_power, g)) / ((nu * _correction(state.nu_power, g)).sqrt() + c.eps)


def _normalised_moments(g: Real, state: State, c: Constants) -> State:
    """Spec 4.4."""
    nu = _average(state.nu, g * g, c.beta2, c.rest2)
    normalised = g / ((_real(nu, g) * _correction(state.nu_power, g)).sqrt() + c.eps)
    return state._replace(mu=_average(state.mu, normalised, c.beta1, c.rest1), nu=nu)


def _laprop(g: Real, state: State, c: Constants, base: Base) -> Real:
    return _real(state.mu, g) * _correction(state.mu_power, g)


class _Entry(NamedTuple):
    moments: Moments
    direction: Direction
    fields: tuple[str, ...]  # what it keeps, besides μ where the rule needs it


_POWERS = ("mu", "nu", "mu_power", "nu_power")
_BASES: dict[type, _Entry] = {
    SGD: _Entry(_momentum, _sgd, ("mu",)),
    RMSProp: _Entry(_both_moments, _rmsprop, ("nu",)),
    Adam: _Entry(_both_moments, _adam, _POWERS),
    AdamW: _Entry(_both_moments, _adam, _POWERS),
    LaProp: _Entry(_normalised_moments, _laprop, _POWERS),
}


def advance_powers(state: State, c: Constants, /, *, xp: Namespace) -> State:
    """β₁ᵗ and β₂ᵗ as running products (spec 4.3), once a step and parameter, before the moments."""
    if state.mu_power is None:
        return state
    mu_power, nu_power = real(state.mu_power, xp=xp) * c.beta1, real(state.nu_power, xp=xp) * c.beta2
    return state._replace(mu_power=mu_power.flush().array, nu_power=nu_power.flush().array)


def advance_moments(g: Real, state: State, c: Constants, /, *, base: Base) -> State:
    """The state after a dense step of ``base``, whose running products have been advanced."""
    return _BASES[type(base)].moments(g, state, c)


def direction(g: Real, state: State, c: Constants, /, *, base: Base) -> Real:
    """Δ₀ of ``base`` from its new state."""
    return _BASES[type(base)].direction(g, state, c, base)


def direction_uses_gradient(base: Base, /) -> bool:
    """Whether `direction` looks at the gradient again, besides what the moments took from it."""
    return isinstance(base, RMSProp) or (isinstance(base, SGD) and base.nesterov)


def state_fields(base: Base, rule: Rule, /) -> tuple[str, ...]:
    """The moments of ``base`` under ``rule``, by their names in `State`; TypeError for an unknown base."""
    if type(base) not in _BASES:
        known = ", ".join(kind.__name__ for kind in _BASES)
        raise TypeError(f"base must be an instance of one of {known}, got {base!r}")
    fields = _BASES[type(base)].fields
    return ("mu", *fields) if rule.uses_score and "mu" not in fields else fields


def initial_moment(field: str, param: Array, /, *, xp: Namespace) -> Array:
    """Zeros in the parameter's shape for a moment, 1 for a running product."""
    device = xp.device(param)
    if field.endswith("_power"):
        return xp.full((), 1.0, dtype=xp.float32, device=device)
    return xp.full(tuple(param.shape), 0.0, dtype=xp.float32, device=device)


def _average(old: Array | None, new: Real, decay: Operand, rest: Operand) -> Array:
    return (decay * _real(old, new) + rest * new).flush().array


def _correction(power: Array | None, g: Real) -> Real:
    """1 / (1 − βᵗ): a scalar, so that the tensor is only multiplied (spec 1.1)."""
    return 1.0 / (1.0 - _real(power, g))


def _real(x: Array | None, g: Real) -> Real:
    assert x is not None  # check_state has seen to it
    return real(x, xp=g.xp)
