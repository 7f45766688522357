"""Operands for the probe: float32 and integer arrays, from a generator per expression."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

COUNT = 2**16
"""Elements of each operand that is not a scalar."""

Input: TypeAlias = Callable[[np.random.Generator], np.ndarray]


def floats(low: int, high: int, /, *, signs: bool = True) -> Input:
    """Random mantissas, exponents uniform in [low, high), random signs if ``signs``, otherwise positive."""

    def make(generator: np.random.Generator) -> np.ndarray:
        bits = generator.integers(2**23, size=COUNT) + (generator.integers(low, high, COUNT) + 127) * 2**23
        bits += generator.integers(1 + signs, size=COUNT) * 2**31
        return bits.astype(np.uint32).view(np.float32)

    return make


def full(value: float, /) -> Input:
    """One value everywhere."""
    return lambda generator: np.full(COUNT, value, np.float32)


def scalar(value: float, /) -> Input:
    """A 0-d array: a number that is a run-time operand."""
    return lambda generator: np.asarray(value, np.float32)


def normal(generator: np.random.Generator) -> np.ndarray:
    """Standard normal values, like gradients."""
    return generator.standard_normal(COUNT).astype(np.float32)


def cancelling(generator: np.random.Generator) -> np.ndarray:
    """Values with sum 0, so that a computed sum consists of its rounding errors."""
    half = normal(generator)[: COUNT // 2]
    return generator.permutation(np.concatenate([half, -half]))


def subnormal(generator: np.random.Generator) -> np.ndarray:
    """Positive values below 2⁻¹²⁶."""
    return generator.integers(1, 2**23, COUNT).astype(np.uint32).view(np.float32)


def halves(generator: np.random.Generator) -> np.ndarray:
    """Multiples of 1/2; every other one is a tie."""
    return (generator.integers(-(2**22), 2**22, COUNT) / 2).astype(np.float32)


def rounded(generator: np.random.Generator) -> np.ndarray:
    """Whole numbers below 2³⁰ in float32."""
    return np.rint(floats(-2, 30)(generator))


def int32s(generator: np.random.Generator) -> np.ndarray:
    """int32 of all magnitudes."""
    return (generator.integers(-(2**31), 2**31, COUNT) >> generator.integers(8, size=COUNT)).astype(np.int32)


def int64s(generator: np.random.Generator) -> np.ndarray:
    """int64 of all magnitudes up to 2⁶²."""
    return generator.integers(-(2**62), 2**62, COUNT) >> generator.integers(39, size=COUNT)
