"""Values for vectors, drawn from the oracle's own cipher: the same on every machine and NumPy version."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from magma_conformance.vectors import oracle

_T = TypeVar("_T")


class Draws:
    """A stream of numbers that ``label`` determines."""

    def __init__(self, label: str) -> None:
        digest = hashlib.sha256(label.encode()).digest()
        self._key = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
        self._count = 0

    def word(self) -> int:
        """An integer in [0, 2³²)."""
        self._count += 1
        return oracle.threefry(*self._key, self._count, 0)[0]

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]; high − low is below 2³²."""
        return low + self.word() * (high - low + 1) // 2**32

    def one_of(self, choices: Sequence[_T]) -> _T:
        """One of ``choices``."""
        return choices[self.between(0, len(choices) - 1)]

    def real(self, low: int, high: int) -> float:
        """A binary32 number of either sign with an exponent in [low, high] and any 24-bit mantissa."""
        magnitude = oracle.rounded(math.ldexp(2**23 + self.between(0, 2**23 - 1), self.between(low, high) - 23))
        return magnitude if self.word() & 1 else -magnitude


Draw: TypeAlias = Callable[[Draws, int], float]  # the element of a stream at an index


def _threshold(draws: Draws, i: int) -> float:
    centre = 2.0 ** draws.one_of([-100, -126, -50, -63])
    return math.copysign(centre * (1 + draws.between(-2, 2) * 2.0**-23), draws.real(0, 0))


def _tie(draws: Draws, i: int) -> float:
    return (draws.between(-(2**14), 2**14 - 1) + 0.5) * 2.0**-15 if i else 0.75


def _power(draws: Draws, i: int) -> float:
    neighbour = draws.one_of([1.0, 1 - 2.0**-24, 1 + 2.0**-23])
    return math.copysign(2.0 ** draws.between(-4, 4) * neighbour, draws.real(0, 0))


def _special(draws: Draws, i: int) -> float:
    return draws.one_of([math.inf, -math.inf, math.nan]) if i % 5 == 2 else draws.real(-3, 1)


VALUES: dict[str, Draw] = {
    "ordinary values": lambda draws, i: draws.real(-3, 1),
    "values over sixty orders of magnitude": lambda draws, i: draws.real(-140, 60),
    "tiny and subnormal values": lambda draws, i: draws.real(-148, -90),
    "neighbours of 2^-100, 2^-126 and their roots": _threshold,
    "zeros": lambda draws, i: 0.0,
    "zeros of both signs": lambda draws, i: math.copysign(0.0, draws.real(0, 0)),
    "one value far above the others": lambda draws, i: draws.real(-3, 1) * (2.0**13 if i == 1 else 1.0),
    "halves on the grid of 16 bits": _tie,
    "powers of two and their neighbours": _power,
    "values whose squares overflow": lambda draws, i: draws.real(100, 127),
    "infinities and NaNs": _special,
}
"""Kinds of values, by the names in the vectors' comments."""


def values(kind: str, count: int, format: str, draws: Draws, /) -> list[float]:
    """``count`` numbers of ``kind`` in ``format``."""
    return [oracle.rounded(oracle.rounded(VALUES[kind](draws, i)), format) for i in range(count)]
