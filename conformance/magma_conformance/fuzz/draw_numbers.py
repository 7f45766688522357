"""Random hyper-parameters, over the whole ranges of spec section 9 and at the values where behaviour changes."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from magma_conformance.fuzz.stream import Stream
from magma_core.arguments import LARGEST
from magma_core.config import LARGEST_BETA, SMALLEST

Draw: TypeAlias = Callable[[Stream], float]


def _decay_rate(stream: Stream) -> float:
    """β or a, in [0, 1 − 2⁻²⁴]: 1 − β rounds to 1 below 2⁻²⁵, and β itself is flushed below 2⁻¹⁰⁰."""
    kind = stream.below(4)
    if kind == 0:
        special = [0.0, 2.0**-149, 2.0**-101, 2.0**-100, 1e-8, 2.0**-26, 2.0**-25, 1.5 * 2.0**-25, 2.0**-24]
        return stream.one_of([*special, 0.25, 0.5, 0.75, 1 - 2.0**-23, LARGEST_BETA])
    if kind == 1:
        return stream.magnitude(-149, -1)
    if kind == 2:
        return 1 - stream.magnitude(-24, -1)
    return stream.one_of([0.9, 0.95, 0.98, 0.99, 0.999])


def _probability(stream: Stream) -> float:
    """p or s₀, in [0, 1]: coins have 24 bits."""
    kind = stream.below(4)
    if kind == 0:
        special = [0.0, 1.0, 2.0**-25, 1.5 * 2.0**-25, 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-25, 1 - 2.0**-53]
        return stream.one_of([*special, 2.0**-149, 0.25, 0.5, 0.75])
    if kind == 1:
        return stream.magnitude(-149, -1)
    return stream.below(2**53) * 2.0**-53 if kind == 2 else 0.5


def _divisor(ordinary: float, low: int, high: int) -> Draw:
    """ε or τ, at least 2⁻¹⁰⁰ and finite, often with an exponent in [low, high]: 1/τ is flushed above 2¹⁰⁰."""

    def draw(stream: Stream) -> float:
        kind = stream.below(4)
        if kind == 0:
            special = [SMALLEST, 2.0**-50, 2.0**-24, 0.5, 1.0, 2.0, 2.0**64, 2.0**100, 2.0**101, 2.0**127]
            return stream.one_of([*special, 0.1, LARGEST])
        if kind == 1:
            return min(stream.magnitude(-100, 127), LARGEST)
        return stream.magnitude(low, high) if kind == 2 else ordinary

    return draw


def _coefficient(low: int, high: int) -> Draw:
    """λ or lr, not negative and finite; mostly with an exponent in [low, high]."""

    def draw(stream: Stream) -> float:
        kind = stream.below(6)
        if kind == 0:
            special = [0.0, 2.0**-149, 2.0**-101, 2.0**-100, 2.0**-24, 0.25, 0.5, 1.0, 2.0, 2.0**100, 2.0**127]
            return stream.one_of([*special, 1 - 2.0**-53, LARGEST])
        return min(stream.magnitude(-149, 127), LARGEST) if kind == 1 else stream.magnitude(low, high)

    return draw


_DRAWS: dict[str, Draw] = {
    "beta1": _decay_rate,
    "beta2": _decay_rate,
    "momentum": _decay_rate,
    "ema": _decay_rate,
    "p": _probability,
    "initial_score": _probability,
    "eps": _divisor(1e-8, -40, 0),
    "tau": _divisor(2.0, -6, 3),
    "weight_decay": _coefficient(-10, 0),
    "lr": _coefficient(-14, 0),
}


def draw_number(name: str, stream: Stream, /, *, single: bool) -> float:
    """A value for the hyper-parameter ``name``.

    Args:
        name: a field of a base or rule, or ``lr``.
        stream: the source of randomness.
        single: whether it must be a binary32, as an input of a compiled program must.
    """
    value = _DRAWS[name](stream)
    if not single:
        return value
    rounded = float(np.float32(value))
    return min(rounded, LARGEST_BETA) if _DRAWS[name] is _decay_rate else min(rounded, LARGEST)


def draw_numbers(fields: dict[str, Any], stream: Stream, /, *, single: bool) -> dict[str, Any]:
    """The fields of a base or rule with their numbers redrawn; see `draw_number`."""
    return {
        name: draw_number(name, stream, single=single) if name in _DRAWS and isinstance(value, float) else value
        for name, value in fields.items()
    }


def is_single(value: float, /) -> bool:
    """Whether a Python float is a binary32 number."""
    return not math.isfinite(value) or float(np.float32(value)) == value
