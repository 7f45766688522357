"""What the optimizer remembers of one parameter, and what it reports of one step."""

from typing import NamedTuple

from magma_core.namespace import Array

POWERS = ("mu_power", "nu_power")
"""The fields of `State` that are single numbers: running products of decay rates."""


class State(NamedTuple):
    """The state of one parameter; float32 throughout, None where base and rule have no use for a field.

    Block shape is the parameter's extent along its block axes, in the order in which they were given.
    """

    mu: Array | None = None  # parameter shape: first moment μ
    nu: Array | None = None  # parameter shape: second moment ν
    mu_power: Array | None = None  # (): β₁ᵗ as a running product
    nu_power: Array | None = None  # (): β₂ᵗ as a running product
    score: Array | None = None  # block shape: s


class Alignment(NamedTuple):
    """What a step of an optimizer saw in one masked parameter, in block shape."""

    cosine: Array | None  # float32, of momentum and gradient; None if the rule does not use scores
    score: Array | None  # float32, likewise
    keep: Array  # bool
    sums: Array | None  # (3, *block shape) int64: ΣXY, ΣXX, ΣYY, what the cosine was made of


class Report(NamedTuple):
    """What one step saw in one parameter; None where the rule does not look or nothing is masked."""

    sums: Array | None = None  # (3, *block shape) int64: ΣXY, ΣXX, ΣYY
    cosine: Array | None = None  # block shape, float32: c
    keep: Array | None = None  # block shape, bool: k
