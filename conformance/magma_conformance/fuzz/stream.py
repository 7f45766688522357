"""Random choices that a label determines, on every machine and with every version of NumPy.

NumPy guarantees the raw words of its bit generators, but not the output of `numpy.random.Generator`. Everything here
comes from these words by exact arithmetic.
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
        label: determines all words.

    Example:
        >>> Stream("a").below(100) == Stream("a").below(100)
        True
    """

    def __init__(self, label: str) -> None:
        key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "little")
        self._generator = np.random.Philox(key=key)

    def words(self, count: int) -> np.ndarray:
        """``count`` uint64 words."""
        return np.asarray(self._generator.random_raw(count), np.uint64)

    def below(self, bound: int) -> int:
        """An integer in [0, bound); ``bound`` is at most 2⁶⁴."""
        return int(self._generator.random_raw()) * bound >> 64

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, one_in: int) -> bool:
        """True with probability 1 / ``one_in``."""
        return self.below(one_in) == 0

    def one_of(self, choices: Sequence[_T]) -> _T:
        """One of ``choices``."""
        return choices[self.below(len(choices))]

    def magnitude(self, low: int, high: int) -> float:
        """A binary64 with a uniform exponent in [low, high] and a uniform significand."""
        return math.ldexp(2**52 + self.below(2**52), self.between(low, high) - 52)
