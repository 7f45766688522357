"""The one comparator: compares bits and locates the first difference (spec 1.5)."""

from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

FLOATS = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


@dataclass(frozen=True)
class Difference:
    """The first place where two arrays differ.

    ``ulp`` is the distance in units in the last place for finite floats, the distance for integers, and None where
    distance has no meaning.
    """

    what: str  # "dtype", "shape" or "value"
    index: tuple[int, ...] | None
    expected: str
    actual: str
    ulp: int | None
    count: int  # elements that differ

    def __str__(self) -> str:
        if self.what != "value":
            return f"{self.what} {self.actual}, expected {self.expected}"
        where = f"[{', '.join(map(str, self.index or ()))}]"
        distance = "" if self.ulp is None else f" ({self.ulp} ulp)"
        return f"{where} {self.actual}, expected {self.expected}{distance}; {self.count} differ"

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON types."""
        return asdict(self)


def first_difference(actual: Any, expected: Any, /) -> Difference | None:
    """Compare dtype, shape and bits. NaNs equal each other; −0 and +0 differ.

    Args:
        actual: any array that NumPy can read.
        expected: any array that NumPy can read.

    Returns:
        None if they are equal.

    Example:
        >>> import numpy as np
        >>> print(first_difference(np.float32([1, -0.0]), np.float32([1, 0.0])))
        [1] -0.0 0x80000000, expected 0.0 0x00000000 (0 ulp); 1 differ
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.dtype != expected.dtype:
        return Difference("dtype", None, str(expected.dtype), str(actual.dtype), None, actual.size)
    if actual.shape != expected.shape:
        return Difference("shape", None, str(expected.shape), str(actual.shape), None, actual.size)
    differs = bits_of(actual) != bits_of(expected)
    if actual.dtype in FLOATS:
        differs &= ~(isnan(actual) & isnan(expected))
    if not differs.any():
        return None
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    a, b = actual[index], expected[index]
    return Difference("value", index, _show(b), _show(a), _distance(a, b), int(differs.sum()))


def assert_bits_equal(actual: Any, expected: Any, /, label: str = "array") -> None:
    """Raise AssertionError with the first difference in dtype, shape or bits."""
    difference = first_difference(actual, expected)
    if difference is not None:
        raise AssertionError(f"{label}: {difference}")


def isnan(x: np.ndarray) -> np.ndarray:
    """Where a float is NaN."""
    with np.errstate(invalid="ignore"):  # ml_dtypes warns about signalling NaNs
        return np.isnan(x)


def bits_of(x: np.ndarray) -> np.ndarray:
    """The bits as unsigned integers; bools unchanged."""
    return x if x.dtype == bool else np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")


def _show(x: Any) -> str:
    if x.dtype not in FLOATS:
        return str(x)
    return f"{float(x)!r} 0x{int(bits_of(np.asarray(x))):0{2 * x.dtype.itemsize}x}"


def _distance(a: Any, b: Any) -> int | None:
    if a.dtype == bool:
        return None
    if a.dtype not in FLOATS:
        return abs(int(a) - int(b))
    if isnan(a) or isnan(b) or np.isinf(a) or np.isinf(b):
        return None
    return abs(_ordinal(a) - _ordinal(b))


def _ordinal(x: Any) -> int:
    """Consecutive integers for consecutive floats; 0 for both zeros."""
    bits = int(bits_of(np.asarray(x)))
    sign = 1 << (8 * x.dtype.itemsize - 1)
    return -(bits - sign) if bits & sign else bits
