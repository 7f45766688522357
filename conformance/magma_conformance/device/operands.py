"""Operands that division and square root are most likely to get wrong."""

from collections.abc import Callable

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]

COUNT = 2**21

_POSITIVE = [0, 1, 1 + 2**-23, 2 - 2**-23, 3, 2.0**-126, 2.0**-100, 2.0**127, 3.4028235e38, np.inf, np.nan]
_SPECIAL = np.asarray([*_POSITIVE, *(-x for x in _POSITIVE), -0.0], np.float32)


def _words(rng: np.random.Generator) -> Pair:
    """All pairs of special values, then random bits; subnormals, which some frameworks flush, become zeros."""
    a, b = rng.integers(2**32, size=(2, COUNT), dtype=np.uint32).view(np.float32)
    special = np.meshgrid(_SPECIAL, _SPECIAL)
    a[: special[0].size], b[: special[0].size] = (x.ravel() for x in special)
    return _small(a), _small(b)


def _significands(rng: np.random.Generator) -> Pair:
    """Random significands, with every quotient in range."""
    bits = rng.integers(2**23, size=(2, COUNT)) + (rng.integers(64, 190, (2, COUNT)) << 23)
    a, b = bits.astype(np.uint32).view(np.float32)
    return a, b


def _nearly_halfway(rng: np.random.Generator) -> Pair:
    """a·2²⁴ = k·b − d with odd k, so that a/b lies d/(b·2²⁴) below the middle of two numbers; |d| = 1 is the closest.

    k is the number in [2²⁴, 2²⁵) with k·b = d modulo 2²⁴.
    """
    b = rng.integers(2**22, 2**23, COUNT, dtype=np.uint64) * 2 + 1
    d = rng.choice(np.array([1, 3, 5, 7, 9, -1, -3, -5, -7, -9]), COUNT).astype(np.uint64)
    inverse = b  # correct to 3 bits; each iteration doubles them
    for _ in range(4):
        inverse = inverse * (np.uint64(2) - b * inverse)
    k = (d * inverse) % np.uint64(2**24) + np.uint64(2**24)
    a = (k * b - d) >> np.uint64(24)
    fits = a < 2**24  # the others have one bit too many
    a, b = (np.resize(x[fits], COUNT) for x in (a, b))
    exponents = rng.integers(-20, 20, (2, COUNT))
    return np.ldexp(a.astype(np.float32), exponents[0]), np.ldexp(b.astype(np.float32), exponents[1])


PAIRS: dict[str, Callable[[np.random.Generator], Pair]] = {
    "any bits": _words,
    "any significands": _significands,
    "nearly halfway": _nearly_halfway,
}


def binades() -> np.ndarray:
    """All numbers in [1, 4): all other roots have the same significands."""
    return np.arange(0x3F800000, 0x40800000, dtype=np.int32).view(np.float32)


def right_quotients(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """NumPy's quotients. Operands and results below 2⁻¹²⁶ become zero, also if rounded up to it, as spec 1.2 allows."""
    a, b = _small(a), _small(b)
    with np.errstate(all="ignore"):
        wide = a.astype(np.float64) / b
        return np.where(abs(wide) < 2.0**-126, np.copysign(np.float32(0), wide.astype(np.float32)), a / b)


def right_roots(a: np.ndarray) -> np.ndarray:
    """NumPy's square roots, with operands below 2⁻¹²⁶ as zeros."""
    with np.errstate(all="ignore"):
        return np.sqrt(_small(a))


def _small(x: np.ndarray) -> np.ndarray:
    return np.where(abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)
