"""Random choices that a label determines, the same on every machine and with every version of NumPy.

NumPy guarantees the raw words of its bit generators, not what `numpy.random.Generator` makes of them. Everything here
is made of these words by exact arithmetic.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


class Stream:
    """A stream of random words.

    Args:
        label: decides all of them.

    Example:
        >>> Stream("a").below(100) == Stream("a").below(100)
        True
    """

    def __init__(self, label: str) -> None:
        key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "little")
        self._generator = np.random.Philox(key=key)

    def words(self, count: int) -> np.ndarray:
        """``count`` uint64."""
        return np.asarray(self._generator.random_raw(count), np.uint64)

    def below(self, bound: int) -> int:
        """In [0, bound); ``bound`` is at most 2⁶⁴."""
        return int(self._generator.random_raw()) * bound >> 64

    def between(self, low: int, high: int) -> int:
        """In [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, one_in: int) -> bool:
        """True once in ``one_in`` times."""
        return self.below(one_in) == 0

    def one_of(self, choices: Sequence[_T]) -> _T:
        """Any of them."""
        return choices[self.below(len(choices))]

    def magnitude(self, low: int, high: int) -> float:
        """A binary64 with an exponent in [low, high], all equally likely, and any significand."""
        return math.ldexp(2**52 + self.below(2**52), self.between(low, high) - 52)
