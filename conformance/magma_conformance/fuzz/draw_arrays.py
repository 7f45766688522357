"""Random parameters, gradients and states: ordinary values, and those that have made implementations differ."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from magma_conformance.cases.inputs import FORMATS
from magma_conformance.fuzz.stream import Stream
from magma_core.config import SMALLEST
from magma_core.state import POWERS

Shape: TypeAlias = tuple[int, ...]
Make: TypeAlias = Callable[[Stream, int, int], np.ndarray]  # stream, count, exponent of the scale: binary64

_SCALES = {"float32": (-140, 127), "bfloat16": (-130, 127), "float16": (-22, 15)}


def _normal(stream: Stream, count: int, scale: int) -> np.ndarray:
    """Nearly normal: exact sums of twelve uniform numbers."""
    parts = stream.words(3 * count).view(np.uint16).reshape(count, 12).astype(np.int64)
    return np.ldexp((parts.sum(axis=1) - 6 * 65535).astype(np.float64), scale - 16)


def _heavy_tailed(stream: Stream, count: int, scale: int) -> np.ndarray:
    """A magnitude above 2ᵏ has probability 2⁻ᵏ, so there is no mean."""
    words = stream.words(count)
    low = words & ((~words) + np.uint64(1))  # the lowest set bit
    exponents = np.frexp(np.maximum(low, np.uint64(1)).astype(np.float64))[1]
    return np.ldexp(_normal(stream, count, scale), exponents)


def _wide(stream: Stream, count: int, scale: int) -> np.ndarray:
    """Sixty orders of magnitude in one block."""
    exponents = (stream.words(count) % np.uint64(200)).astype(np.int64) - 140
    return np.ldexp(_normal(stream, count, 0), exponents)


def _ties(stream: Stream, count: int, scale: int) -> np.ndarray:
    """Halfway between two integers on the 16-bit grid (spec 5.1)."""
    x = (stream.words(count) % np.uint64(2**15)).astype(np.float64) - 2.0**14 + 0.5
    if count:
        x[stream.below(count)] = 0.75 * 2.0**15
    return np.ldexp(x, scale - 15)


def _powers(stream: Stream, count: int, scale: int) -> np.ndarray:
    """Powers of two and their neighbours: the edges of a block's exponent."""
    words = stream.words(count)
    neighbours = np.array([1.0, 1.0 - 2.0**-24, 1.0 + 2.0**-23])[(words % np.uint64(3)).astype(np.int64)]
    exponents = ((words >> np.uint64(8)) % np.uint64(9)).astype(np.int64) - 4 + scale
    return np.ldexp(_signed(neighbours, words), exponents)


def _threshold(stream: Stream, count: int, scale: int) -> np.ndarray:
    """A few units in the last place around 2⁻¹⁰⁰, 2⁻¹²⁶ and their square roots."""
    words = stream.words(count)
    centres = np.array([2.0**-100, 2.0**-126, 2.0**-50, 2.0**-63])[(words % np.uint64(4)).astype(np.int64)]
    steps = ((words >> np.uint64(8)) % np.uint64(5)).astype(np.float64) - 2
    return _signed(centres * (1 + steps * 2.0**-23), words)


def _subnormal(stream: Stream, count: int, scale: int) -> np.ndarray:
    return np.ldexp(_normal(stream, count, 0), -132 - stream.below(16))


def _zeros(stream: Stream, count: int, scale: int) -> np.ndarray:
    return np.zeros(count)


def _negative_zeros(stream: Stream, count: int, scale: int) -> np.ndarray:
    return np.full(count, -0.0)


def _signed_zeros(stream: Stream, count: int, scale: int) -> np.ndarray:
    return _signed(np.zeros(count), stream.words(count))


def _constant(stream: Stream, count: int, scale: int) -> np.ndarray:
    return np.full(count, math.ldexp(stream.one_of([1.0, -1.0, 1.5, 1 / 3]), scale))


def _one_hot(stream: Stream, count: int, scale: int) -> np.ndarray:
    x = np.zeros(count)
    if count:
        x[stream.below(count)] = math.ldexp(stream.one_of([1.0, -1.0, 1 / 3]), scale)
    return x


def _outlier(stream: Stream, count: int, scale: int) -> np.ndarray:
    """One element far above the others, which land on a few integers of the grid."""
    x = _normal(stream, count, scale)
    if count:
        x[stream.below(count)] *= 2.0 ** stream.between(5, 20)
    return x


def _not_finite(stream: Stream, count: int, scale: int) -> np.ndarray:
    """Some infinities and NaNs among ordinary values."""
    words = stream.words(count)
    special = np.array([np.inf, -np.inf, np.nan])[(words % np.uint64(3)).astype(np.int64)]
    return np.where((words >> np.uint64(8)) % np.uint64(12) == 0, special, _normal(stream, count, scale))


def _signed(x: np.ndarray, words: np.ndarray) -> np.ndarray:
    return np.copysign(x, np.where(words >> np.uint64(63), -1.0, 1.0))


FINITE: dict[str, Make] = {
    "normal": _normal,
    "heavy-tailed": _heavy_tailed,
    "wide": _wide,
    "ties": _ties,
    "powers": _powers,
    "threshold": _threshold,
    "subnormal": _subnormal,
    "zeros": _zeros,
    "negative-zeros": _negative_zeros,
    "signed-zeros": _signed_zeros,
    "constant": _constant,
    "one-hot": _one_hot,
    "outlier": _outlier,
}
ANY_BITS = "any-bits"
"""Random bit patterns, including infinities and NaNs with payloads."""

KINDS = (*FINITE, "not-finite", ANY_BITS)


def draw_array(stream: Stream, shape: Shape, format: str, /, *, calm: bool = False) -> np.ndarray:
    """Values of a random kind and scale.

    Args:
        stream: the source of randomness.
        shape: of the array.
        format: a key of `FORMATS`; out of range becomes infinite.
        calm: finite values of ordinary scale, as most steps of a run have.
    """
    low, high = _SCALES[format]
    if calm:
        kind, scale = stream.one_of(["normal", "normal", "heavy-tailed", "outlier"]), stream.between(-8, 1)
    else:
        kind = stream.one_of(KINDS)
        scale = stream.between(low, high) if stream.chance(3) else stream.between(-12, 3)
    count, dtype = math.prod(shape), FORMATS[format]
    if kind == ANY_BITS:
        return _from_words(stream, count, dtype).reshape(shape)
    make = FINITE.get(kind, _not_finite)
    with np.errstate(all="ignore"):
        return make(stream, count, scale).astype(np.float32).astype(dtype).reshape(shape)


def _from_words(stream: Stream, count: int, dtype: np.dtype) -> np.ndarray:
    width = dtype.itemsize
    words = stream.words(-(-count * width // 8))
    return words.astype("<u8").view(f"<u{width}")[:count].astype(f"u{width}").view(dtype)


def draw_state(stream: Stream, field: str, like: np.ndarray, /, *, decay: float) -> np.ndarray:
    """A possible value of a `magma_core.State` field: flushed, ν not negative, scores in [0, 1].

    Args:
        stream: the source of randomness.
        field: its name.
        like: an array of its shape.
        decay: [β] of a running product.
    """
    if field in POWERS:
        share = stream.one_of([1.0, decay, 0.5, 2.0**-20, 0.0, stream.below(2**24) * 2.0**-24])
        value = np.multiply(like, np.float32(decay) * np.float32(share))  # share of 1
    elif field == "score":
        fractions = (stream.words(like.size) >> np.uint64(40)).astype(np.float64) * 2.0**-24
        value = np.float32(stream.one_of([fractions, np.round(fractions), 0.378 + 0.244 * fractions]))
    else:
        value = draw_array(stream, like.shape, "float32", calm=not stream.chance(3))
        value = abs(value) if field == "nu" else value
    with np.errstate(invalid="ignore"):
        return np.where(abs(value) < np.float32(SMALLEST), np.float32(0), value).astype(np.float32).reshape(like.shape)
