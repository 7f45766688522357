"""Arrays as hexadecimal words, the same in JSON and in text (docs/porting.md).

A word is the bits of one element, most significant first: 3f800000 is 1 in binary32. Words are in row-major order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in ("float32", "float16", "float64", "bool", "uint8", "int32", "int64")},
    **{name: np.dtype(name) for name in ("uint32", "uint64")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The supported dtypes by name; a bool is the byte 00 or 01."""


def to_bits(array: np.ndarray, /) -> str:
    """The words of all elements, separated by single spaces.

    Example:
        >>> to_bits(np.float32([1.0, -2.0]))
        '3f800000 c0000000'
    """
    size = array.dtype.itemsize
    integers = np.ascontiguousarray(array).reshape(-1).view(f"u{size}")
    return integers.astype(f">u{size}").tobytes().hex(" ", size)


def from_bits(dtype: str, shape: Sequence[int], bits: str, /) -> np.ndarray:
    """The array with these words.

    Raises:
        ValueError: for an unknown dtype, or if the words have the wrong number, length or characters.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    kind, extents = DTYPES[dtype], [int(extent) for extent in shape]
    if any(extent < 0 for extent in extents):
        raise ValueError(f"extents must not be negative, got {extents}")
    digits, count = 2 * kind.itemsize, int(np.prod(extents, dtype=object)) if extents else 1
    if len(bits) < 2**16 or len(bits) + 1 != count * (digits + 1):  # a long text of the right length need not be split
        words = bits.split()
        if odd := next((word for word in words if len(word) != digits), None):
            raise ValueError(f"words of {dtype} must have {digits} hexadecimal digits, got {odd[:60]!r}")
        if len(words) != count:
            raise ValueError(f"{dtype} of shape {tuple(extents)} must have {count} words, got {len(words)}")
    try:
        big = np.frombuffer(bytes.fromhex(bits), dtype=f">u{kind.itemsize}")
    except ValueError as error:
        raise ValueError(f"words must be hexadecimal: {error}") from None
    if dtype == "bool" and big.max(initial=0) > 1:
        raise ValueError("words of bool must be 00 or 01")
    return big.astype(f"u{kind.itemsize}").view(kind).reshape(extents)


def to_json(array: np.ndarray, /) -> dict[str, Any]:
    """``array`` as JSON types.

    Example:
        >>> to_json(np.array([True, False]))
        {'dtype': 'bool', 'shape': [2], 'bits': '01 00'}
    """
    return {"dtype": str(array.dtype), "shape": list(array.shape), "bits": to_bits(array)}


def from_json(entry: Mapping[str, Any], /) -> np.ndarray:
    """The inverse of `to_json`; raises what `from_bits` raises."""
    return from_bits(entry["dtype"], entry["shape"], entry["bits"])
