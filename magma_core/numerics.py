"""binary32 arithmetic that every backend and compiler rounds alike (spec 1.1 to 1.3).

`Real` wraps an array so that a formula is written with operators and still means one rounding per operator.
"""

import numbers
import struct
from typing import Any, TypeAlias

from magma_core.config import SMALLEST
from magma_core.namespace import Array, DType, Namespace

Operand: TypeAlias = "Real | float"


def binary32(value: float, /) -> float:
    """The nearest binary32 of a Python float, flushed to 0 below 2⁻¹⁰⁰ (spec 1.3)."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return 0.0 if abs(rounded) < SMALLEST else float(rounded)


class Real:
    """A float32 array whose every operator is one correctly rounded operation (spec 1.1).

    Python floats among the operands are rounded to binary32 first (spec 1.3). Where a compiler may see two
    operations at once, a fence keeps it from contracting, reassociating or rewriting them.
    """

    __slots__ = ("_zero", "array", "constant", "xp")

    def __init__(self, array: Array, /, *, xp: Namespace, constant: bool = False, zero: Array | None = None) -> None:
        self.array = array
        self.xp = xp
        self.constant = constant  # known when the program is compiled, so no source of run-time zeros
        self._zero = zero

    def __add__(self, other: Operand) -> "Real":
        return self._operate("add", other)

    def __radd__(self, other: float) -> "Real":
        return self._lift(other)._operate("add", self)

    def __sub__(self, other: Operand) -> "Real":
        return self._operate("subtract", other)

    def __rsub__(self, other: float) -> "Real":
        return self._lift(other)._operate("subtract", self)

    def __mul__(self, other: Operand) -> "Real":
        return self._operate("multiply", other)

    def __rmul__(self, other: float) -> "Real":
        return self._lift(other)._operate("multiply", self)

    def __truediv__(self, other: Operand) -> "Real":
        return self._operate("divide", other)

    def __rtruediv__(self, other: float) -> "Real":
        return self._lift(other)._operate("divide", self)

    def __abs__(self) -> "Real":
        return self._same(self.xp.abs(self.array))

    def __neg__(self) -> "Real":
        return self._same(self.xp.negative(self.array))

    def __lt__(self, other: Operand) -> Array:
        return self.xp.less(self.array, self._lift(other).array)

    def sqrt(self) -> "Real":
        """√x, correctly rounded."""
        return self._fenced(self.xp.sqrt(self.array), self.run_time_zero(), constant=self.constant)

    def rint(self) -> "Real":
        """The nearest integer, ties to even."""
        return self._same(self.xp.round(self.array))

    def flush(self) -> "Real":
        """+0 where |x| < 2⁻¹⁰⁰, so that flushing of subnormals cannot be seen (spec 1.2). NaN stays.

        What was flushed is its own source of zeros: nothing that comes after depends on what came before, so that a
        compiler may overwrite old moments with new ones.
        """
        faster = getattr(self.xp, "flush", None)
        flushed = faster(self.array) if faster else self.replace(abs(self) < SMALLEST, 0.0).array
        return Real(flushed, xp=self.xp, constant=self.constant)

    def replace(self, condition: Array, value: Operand, /) -> "Real":
        """``value`` where ``condition`` holds, this elsewhere."""
        return self._same(self.xp.where(condition, self._lift(value).array, self.array))

    def at_most(self, limit: float, /) -> "Real":
        """The smaller of this and ``limit``; NaN stays."""
        return self.replace(self._lift(limit) < self, limit)

    def bits(self) -> Array:
        """The pattern of the bits as int32."""
        return self.xp.bitcast(self.array, self.xp.int32)

    def astype(self, dtype: DType, /) -> Array:
        """The plain array, converted once (to nearest even)."""
        return self.array if dtype == self.xp.float32 else self.xp.astype(self.array, dtype)

    def _lift(self, other: Operand) -> "Real":
        if isinstance(other, Real):
            return other
        xp = self.xp
        constant = xp.asarray(binary32(other), dtype=xp.float32, device=xp.device(self.array))
        return Real(constant, xp=xp, constant=True)

    def _operate(self, operation: str, other: Operand) -> "Real":
        other = self._lift(other)
        zero = self._common_zero(other)
        left, right = self, other
        if operation == "divide":
            if len(right.array.shape) < len(left.array.shape):
                raise TypeError("a tensor is not divided by a scalar but multiplied by its inverse (spec 1.1)")
            # 1/x would become an approximate reciprocal (docs/numerics.md, F2)
            left, right = (x._fenced(x.array, zero) if x.constant else x for x in (left, right))
        result = getattr(self.xp, operation)(left.array, right.array)
        return self._fenced(result, zero, constant=self.constant and other.constant)

    def _same(self, array: Array) -> "Real":
        return Real(array, xp=self.xp, constant=self.constant, zero=self._zero)

    def _fenced(self, array: Array, zero: Array | None, constant: bool = False) -> "Real":
        """The array behind an xor with a zero that only run time knows (docs/numerics.md, F1)."""
        xp = self.xp
        if zero is None:
            return Real(array, xp=xp, constant=constant)
        bits = xp.bitwise_xor(xp.bitcast(array, xp.int32), zero)
        return Real(xp.bitcast(bits, xp.float32), xp=xp, zero=zero)

    def _common_zero(self, other: "Real") -> Array | None:
        """A zero that is unknown to the compiler if any of the operands is."""
        mine, others = self.run_time_zero(), other.run_time_zero()
        if mine is None or others is None or mine is others:
            return others if mine is None else mine
        return self.xp.bitwise_or(mine, others)

    def run_time_zero(self) -> Array | None:
        """An int32 zero computed from these bits; None for a constant, and where no compiler is at work."""
        if self._zero is None and not self.constant and self.xp.fused(self.array):
            self._zero = run_time_zero(self.bits(), xp=self.xp)
        return self._zero


def run_time_zero(bits: Array, /, *, xp: Namespace) -> Array:
    """Zeros computed from the int32 patterns of some floats: a square is never 5 modulo 8.

    A constant zero, x ^ x or x & 0 would be folded, and the fence with it. So would anything made of bits that the
    compiler knows: the low half of a widened bfloat16 is zero, and all but the exponent of a power of two.
    """
    mixed = xp.bitwise_xor(xp.bitwise_right_shift(bits, 16), xp.bitwise_right_shift(bits, 23))
    low = xp.bitwise_and(mixed, 0xFF)
    five = xp.equal(xp.bitwise_and(xp.multiply(low, low), 7), 5)
    return xp.astype(five, xp.int32)


def real(x: Any, /, *, xp: Namespace, device: Any = None) -> Real:
    """An array widened exactly to float32, or a Python float rounded once (spec 1.3, 1.4)."""
    if isinstance(x, numbers.Real):
        return Real(xp.asarray(binary32(float(x)), dtype=xp.float32, device=device), xp=xp, constant=True)
    return Real(x if x.dtype == xp.float32 else xp.astype(x, xp.float32), xp=xp)


def integer_to_real(n: Array, /, *, xp: Namespace) -> Real:
    """An int64 with |n| ≤ 2⁶² as float32, from three pieces that convert exactly (spec 5.3).

    Frameworks convert int64 to float32 by different routes, some through float64 with two roundings.
    """
    magnitude = xp.abs(n)
    high = xp.bitwise_right_shift(magnitude, 38)
    middle = xp.bitwise_and(xp.bitwise_right_shift(magnitude, 14), 0xFFFFFF)
    low = xp.bitwise_and(magnitude, 0x3FFF)
    pieces = [Real(xp.astype(piece, xp.float32), xp=xp) for piece in (high, middle, low)]
    value = (2.0**38 * pieces[0] + 2.0**14 * pieces[1]) + pieces[2]
    return value.replace(xp.less(n, 0), -value)


def power_of_two(exponent: Array, /, *, xp: Namespace) -> Real:
    """2 to an int32 exponent in [-126, 127], built from bits."""
    bits = xp.bitwise_left_shift(xp.add(exponent, 127), 23)
    return Real(xp.bitcast(bits, xp.float32), xp=xp)
