"""Hard synthetic values: kinds that have made implementations differ, or might.

Each kind is a function of a generator, a shape and a format. Values are made in float64 and converted via float32.
"""

from collections.abc import Callable
from typing import TypeAlias

import ml_dtypes
import numpy as np

Make: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

FORMATS = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([-1.0, 1.0], size=shape)


def _wide(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """60 orders of magnitude in one block; squares stay below the overflow of float32."""
    return _signs(rng, shape) * 10.0 ** rng.uniform(-42.0, 18.0, shape)


def _tiny(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Subnormals, and magnitudes with subnormal squares or products."""
    return _signs(rng, shape) * 2.0 ** rng.uniform(-149.0, -60.0, shape)


def _threshold(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A few units in the last place around 2⁻¹⁰⁰, 2⁻¹²⁶ and their square roots."""
    centre = rng.choice([2.0**-100, 2.0**-126, 2.0**-50, 2.0**-63], size=shape)
    return _signs(rng, shape) * centre * (1.0 + rng.integers(-2, 3, shape) * 2.0**-23)


def _zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


def _signed_zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.copysign(0.0, _signs(rng, shape))


def _outlier(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One element 10⁴ times the others, which then quantise to a few integers."""
    x = rng.standard_normal(shape)
    if x.size:
        x.reshape(-1)[rng.integers(x.size)] *= 1e4
    return x


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Halfway between two integers after scaling by 2^(15−e): quantisation ties."""
    x = (rng.integers(-(2**14), 2**14, shape) + 0.5) * 2.0**-15
    if x.size:
        x.reshape(-1)[0] = 0.75  # e = 0 where the tensor is one block
    return x


def _powers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Powers of two and their neighbours: the edges of the block exponent."""
    neighbour = rng.choice([1.0, 1.0 - 2.0**-24, 1.0 + 2.0**-23], size=shape)
    return _signs(rng, shape) * 2.0 ** rng.integers(-4, 5, shape) * neighbour


def _huge(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Squares overflow, and so do sums of the largest."""
    return _signs(rng, shape) * 2.0 ** rng.uniform(100.0, 127.99, shape)


def _not_finite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A few infinities and NaNs among ordinary values."""
    x = rng.standard_normal(shape)
    special = rng.choice([np.inf, -np.inf, np.nan], size=shape)
    return np.where(rng.random(shape) < 0.06, special, x)


KINDS: dict[str, Make] = {
    "normal": _normal,
    "wide": _wide,
    "tiny": _tiny,
    "threshold": _threshold,
    "zeros": _zeros,
    "signed-zeros": _signed_zeros,
    "outlier": _outlier,
    "ties": _ties,
    "powers": _powers,
    "huge": _huge,
    "not-finite": _not_finite,
}
POISON = ("huge", "not-finite")
"""Kinds after which moments stay infinite or NaN; they come last in a trajectory."""


def make(kind: str, shape: tuple[int, ...], fmt: str, rng: np.random.Generator, /) -> np.ndarray:
    """Values of ``kind`` in format ``fmt`` (a key of `FORMATS`); out of range becomes infinite."""
    with np.errstate(all="ignore"):
        values = np.asarray(KINDS[kind](rng, shape), dtype=np.float64)
        if fmt == "float16" and kind not in POISON:  # stay inside its narrow range
            values = np.clip(values, -100.0, 100.0)
        return values.astype(np.float32).astype(FORMATS[fmt])


def make_mixture(shape: tuple[int, ...], fmt: str, rng: np.random.Generator, /) -> np.ndarray:
    """Initial parameters: a mixture of finite kinds, mostly ordinary values."""
    kinds = ["normal", "normal", "normal", "tiny", "threshold", "signed-zeros", "wide"]
    layers = np.stack([make(kind, shape, fmt, rng) for kind in kinds])
    choice = rng.integers(len(kinds), size=shape)
    return np.take_along_axis(layers, choice[None], axis=0)[0]
