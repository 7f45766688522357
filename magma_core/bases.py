"""The base optimizers: moments, which are always dense, and the direction Δ (spec section 4).

To add a base, write its dataclass in config.py and its function here, and register it with `_BASES`.
A function takes the flushed gradient g and the state; it returns Δ and the state with new moments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from magma_core.config import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real, real
from magma_core.state import State

Step: TypeAlias = tuple[Real, State]


def sgd(g: Real, state: State, config: SGD, rule: Rule) -> Step:
    """Spec 4.1."""
    mu = (config.momentum * _real(state.mu, g) + g).flush()
    direction = g + config.momentum * mu if config.nesterov else mu
    return direction, state._replace(mu=mu.array)


def rmsprop(g: Real, state: State, config: RMSProp, rule: Rule) -> Step:
    """Spec 4.2."""
    nu = _average(state.nu, g * g, config.beta2, g)
    state = state._replace(nu=nu.array)
    if rule.uses_score:
        state = state._replace(mu=_average(state.mu, g, config.momentum, g).array)
    return g / (nu.sqrt() + config.eps), state


def adam(g: Real, state: State, config: Adam, rule: Rule) -> Step:
    """Spec 4.3."""
    mu = _average(state.mu, g, config.beta1, g)
    nu = _average(state.nu, g * g, config.beta2, g)
    mu_power, mu_correction = _bias_correction(state.mu_power, config.beta1, g)
    nu_power, nu_correction = _bias_correction(state.nu_power, config.beta2, g)
    direction = (mu * mu_correction) / ((nu * nu_correction).sqrt() + config.eps)
    return direction, State(mu.array, nu.array, mu_power.array, nu_power.array, state.score)


def laprop(g: Real, state: State, config: LaProp, rule: Rule) -> Step:
    """Spec 4.4."""
    nu = _average(state.nu, g * g, config.beta2, g)
    nu_power, nu_correction = _bias_correction(state.nu_power, config.beta2, g)
    normalised = g / ((nu * nu_correction).sqrt() + config.eps)
    mu = _average(state.mu, normalised, config.beta1, g)
    mu_power, mu_correction = _bias_correction(state.mu_power, config.beta1, g)
    direction = mu * mu_correction
    return direction, State(mu.array, nu.array, mu_power.array, nu_power.array, state.score)


class _Entry(NamedTuple):
    step: Callable[[Real, State, Any, Rule], Step]
    fields: tuple[str, ...]  # the moments that it keeps, besides μ where the rule needs it


_BASES: dict[type, _Entry] = {
    SGD: _Entry(sgd, ("mu",)),
    RMSProp: _Entry(rmsprop, ("nu",)),
    Adam: _Entry(adam, ("mu", "nu", "mu_power", "nu_power")),
    AdamW: _Entry(adam, ("mu", "nu", "mu_power", "nu_power")),
    LaProp: _Entry(laprop, ("mu", "nu", "mu_power", "nu_power")),
}


def advance(g: Real, state: State, /, *, base: Base, rule: Rule) -> Step:
    """One dense step of ``base``: (Δ, new state)."""
    return _BASES[type(base)].step(g, state, base, rule)


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


def _average(old: Array | None, new: Real, decay: float, g: Real) -> Real:
    return (decay * _real(old, g) + (1 - decay) * new).flush()


def _bias_correction(power: Array | None, decay: float, g: Real) -> tuple[Real, Real]:
    """βᵗ as a running product, and 1 / (1 − βᵗ): a scalar, so that the tensor is only multiplied."""
    product = (_real(power, g) * decay).flush()
    return product, 1.0 / (1.0 - product)


def _real(x: Array | None, g: Real) -> Real:
    assert x is not None  # check_state has seen to it
    return real(x, xp=g.xp)
