"""Hyper-parameters in the form that a step computes with (spec 1.3).

Python floats: expressions such as 1 − β are evaluated in binary64, then rounded. A framework with run-time
hyper-parameters may pass 0-d arrays instead. They are binary32 already, and each expression is one binary32 operation.
Both give the same bits if the floats are binary32 numbers.
"""

from typing import Any, NamedTuple

from magma_core.config import Base, Rule
from magma_core.namespace import Array
from magma_core.numerics import Operand, Real, real


class BaseNumbers(NamedTuple):
    """A base's numbers; 0 for those it lacks. SGD and RMSProp store their momentum as β₁."""

    beta1: Operand
    rest1: Operand  # 1 − β₁
    beta2: Operand
    rest2: Operand  # 1 − β₂
    eps: Operand
    weight_decay: Operand
    correction1: Operand = 1.0  # 1 / (1 − β₁ᵗ)
    correction2: Operand = 1.0  # 1 / (1 − β₂ᵗ)
    rate: Operand = 1.0  # lr, or `masked_rate`


class RuleNumbers(NamedTuple):
    """A rule's numbers, except the initial score, which belongs to the state."""

    limit: int | Array  # T: a coin below it keeps its block
    inverse_p: Operand  # 1/p, or 1 if no block is kept
    inverse_tau: Operand  # 1/τ
    ema: Operand  # a
    rest: Operand  # 1 − a


def base_numbers(base: Base, /, **given: Operand) -> BaseNumbers:
    """The numbers of ``base``, without bias corrections; ``given`` overrides them by field name."""

    def value(*names: str) -> Operand:
        found = [given[name] if name in given else getattr(base, name) for name in names if hasattr(base, name)]
        return found[0] if found else 0.0

    beta1, beta2 = value("beta1", "momentum"), value("beta2")
    return BaseNumbers(beta1, 1 - beta1, beta2, 1 - beta2, value("eps"), value("weight_decay"))


def rule_numbers(rule: Rule, /, **given: Operand) -> RuleNumbers:
    """The numbers of ``rule``; ``given`` overrides them by field name."""
    p, tau, ema = (given.get(name, getattr(rule, name)) for name in ("p", "tau", "ema"))
    limit = coin_limit(p)
    return RuleNumbers(limit, _inverse(p, limit), 1 / tau, ema, 1 - ema)


def masked_rate(rate: Real, lr_scale: float | Array, /) -> Real:
    """The learning rate of masked parameters, flush([lr] ⊗ [lr_scale]) (spec 1.3); ``rate`` is [lr].

    A product of Python floats, rounded once, would differ from a product of arrays.
    """
    if isinstance(lr_scale, int | float) and lr_scale == 1:
        return rate
    xp = rate.xp
    return (rate * real(lr_scale, xp=xp, device=xp.device(rate.array)).flush()).flush()


def coin_limit(probability: Operand, /) -> Any:
    """T: a block is kept iff the upper 24 bits of its coin are below T; 0 and 1 are exact (spec 7.3)."""
    if isinstance(probability, Real):
        return probability.xp.astype((probability * 2.0**24).rint().array, probability.xp.int64)
    return round(probability * 2**24)


def _inverse(p: Operand, limit: int | Array) -> Operand:
    if isinstance(p, Real):
        return (1.0 / p).replace(p.xp.equal(limit, 0), 1.0)
    return 1 / p if limit else 1.0
