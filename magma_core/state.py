"""The optimizer's state for one parameter, and its report of one step."""

from typing import NamedTuple

from magma_core.namespace import Array

POWERS = ("mu_power", "nu_power")
"""The scalar fields of `State`: running products of decay rates."""


class State(NamedTuple):
    """The state of one parameter: float32, None for fields that base and rule do not use.

    Block shape is the parameter's extents along its block axes, in the order given.
    """

    mu: Array | None = None  # parameter shape: first moment μ
    nu: Array | None = None  # parameter shape: second moment ν
    mu_power: Array | None = None  # (): β₁ᵗ as a running product
    nu_power: Array | None = None  # (): β₂ᵗ as a running product
    score: Array | None = None  # block shape: s


class Alignment(NamedTuple):
    """A step's observations of one masked parameter, in block shape."""

    cosine: Array | None  # float32, of momentum and gradient; None if the rule does not use scores
    score: Array | None  # float32; None if the rule does not use scores
    keep: Array  # bool
    sums: Array | None  # (3, *block shape) int64: ΣXY, ΣXX, ΣYY, the sums behind the cosine


class Report(NamedTuple):
    """A step's observations of one parameter; None for what the rule does not measure or mask."""

    sums: Array | None = None  # (3, *block shape) int64: ΣXY, ΣXX, ΣYY
    cosine: Array | None = None  # block shape, float32: c
    keep: Array | None = None  # block shape, bool: k
