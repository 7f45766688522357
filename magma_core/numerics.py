"""binary32 arithmetic that every backend and compiler rounds identically (spec 1.1 to 1.3).

`Real` wraps an array, so formulas use operators and each operator still rounds once.
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


# Known compiler rewrites (docs/numerics.md, F1): for each operation, the operations that must not visibly feed it.
_REWRITTEN = {
    "add": {"multiply", "square", "add", "subtract"},  # contracted, reassociated
    "subtract": {"multiply", "square", "add", "subtract"},
    "multiply": {"multiply", "square", "divide", "sqrt"},
    "divide": {"divide", "sqrt"},
    "sqrt": {"square"},  # |x|
}
_ROUNDED = {"multiply", "square", "divide", "sqrt"}
"""Operations whose results are fenced before they leave: what consumes them is unknown here."""


class Real:
    """A float32 array; every operator is one correctly rounded operation (spec 1.1).

    Python floats among the operands are first rounded to binary32 (spec 1.3). A fence separates two operations that a
    compiler could see at once and contract, reassociate or rewrite. It is created on demand, so a Real belongs to the
    program that created it.
    """

    __slots__ = ("_made_by", "_value", "constant", "xp")

    def __init__(self, array: Array, /, *, xp: Namespace, constant: bool = False, made_by: str = "") -> None:
        self._value = array
        self._made_by = made_by  # the operation whose rounding must be kept
        self.constant = constant  # known at compile time
        self.xp = xp

    @property
    def array(self) -> Array:
        """The plain array."""
        return self.fenced() if self._made_by in _ROUNDED else self._value

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
        return self._same(self.xp.abs(self._value))

    def __neg__(self) -> "Real":
        return self._same(self.xp.negative(self._value))

    def __lt__(self, other: Operand) -> Array:
        return self.xp.less(self._value, self._lift(other)._value)

    def sqrt(self) -> "Real":
        """√x, correctly rounded."""
        return self._result("sqrt", self.xp.sqrt(self._feed("sqrt")), constant=self.constant)

    def shift(self, power: "Real", /) -> "Real":
        """This times a power of two: exact, so it needs no fence, or so small that `rint` makes it 0."""
        return self._same(self.xp.multiply(self._value, power._value))

    def rint(self) -> "Real":
        """The nearest integer, ties to even."""
        return self._result("", self.xp.round(self._value), constant=self.constant)

    def flush(self) -> "Real":
        """+0 where |x| < 2⁻¹⁰⁰, so flushing of subnormals is invisible (spec 1.2). NaN stays."""
        own = getattr(self.xp, "flush", None)
        return self._same(own(self._value)) if own else self.replace(abs(self) < SMALLEST, 0.0)

    def replace(self, condition: Array, value: Operand, /) -> "Real":
        """``value`` where ``condition`` holds, otherwise this."""
        value = self._lift(value)
        chosen = self.xp.where(condition, value.array, self._value)
        return self._result(self._made_by or value._made_by, chosen, self.constant)

    def at_most(self, limit: float, /) -> "Real":
        """The smaller of this and ``limit``; NaN stays."""
        return self.replace(self._lift(limit) < self, limit)

    def bits(self) -> Array:
        """The bit pattern as int32."""
        return self.xp.bitcast(self._value, self.xp.int32)

    def astype(self, dtype: DType, /) -> Array:
        """The plain array, converted once (to nearest even)."""
        return self.array if dtype == self.xp.float32 else self.xp.astype(self.array, dtype)

    def _lift(self, other: Operand) -> "Real":
        if isinstance(other, Real):
            return other
        xp = self.xp
        constant = xp.asarray(binary32(other), dtype=xp.float32, device=xp.device(self._value))
        return Real(constant, xp=xp, constant=True)

    def _operate(self, operation: str, other: Operand) -> "Real":
        other = self._lift(other)
        left, right = self._feed(operation), other._feed(operation)
        if operation == "divide":
            if len(right.shape) < len(left.shape):
                raise TypeError("a tensor is not divided by a scalar but multiplied by its inverse (spec 1.1)")
            # 1/x would become an approximate reciprocal (docs/numerics.md, F2)
            left, right = self._hidden(left, right), other._hidden(right, left)
        result = getattr(self.xp, operation)(left, right)
        if operation == "multiply" and self is other:
            operation = "square"
        return self._result(operation, result, self.constant and other.constant)

    def _result(self, operation: str, array: Array, constant: bool) -> "Real":
        return Real(array, xp=self.xp, constant=constant, made_by=operation)

    def _same(self, array: Array) -> "Real":
        """A selection from this, or a sign change: compilers see through both."""
        return self._result(self._made_by, array, self.constant)

    def _feed(self, operation: str) -> Array:
        """The array as an operand."""
        return self.fenced() if self._made_by in _REWRITTEN[operation] else self._value

    def fenced(self) -> Array:
        """The array behind a fence made of its own bits; it needs no other fence afterwards."""
        if not self.constant and self.xp.fused(self._value):
            self._value = fence(self._value, self._value, xp=self.xp)
        self._made_by = ""
        return self._value

    def fenced_like(self, other: "Real", /) -> "Real":
        """This behind a fence made of another's bits, so two fences cost little more than one."""
        if self.constant or not self.xp.fused(self._value):
            return self
        return self._result("", fence(self._value, other._value, xp=self.xp), False)

    def _hidden(self, array: Array, other: Array) -> Array:
        """``array``, fenced with the other operand's bits if it is a constant."""
        return fence(array, other, xp=self.xp) if self.constant and self.xp.fused(other) else array


def fence(x: Array, source: Array, /, *, xp: Namespace) -> Array:
    """Add to the bits of ``x`` a zero that only run time knows (docs/numerics.md, F1).

    Two fences become adjacent when a compiler removes a multiplication by 1 between them. They must not cancel. An xor
    would: x ^ z ^ z is x. But x + z + z is x only if z is known to be 0.
    """
    own = getattr(xp, "fence", None)
    return own(x, source) if own else plain_fence(x, source, xp=xp)


def plain_fence(x: Array, source: Array, /, *, xp: Namespace) -> Array:
    """`fence` in namespace functions; a backend overrides it where the fence needs a derivative."""
    zero = run_time_zero(xp.bitcast(source, xp.int32), xp=xp)
    return xp.bitcast(xp.add(xp.bitcast(x, xp.int32), zero), xp.float32)


def run_time_zero(bits: Array, /, *, xp: Namespace) -> Array:
    """Zeros computed from the int32 bit patterns of results: an odd square is 1 modulo 8.

    Compilers fold a constant zero, x ^ x and x & 0, and the fence with it. They know some bits of integers, but none of
    a rounded result unless they know them all. They may then fold a value fenced by its own bits, with correct
    rounding.
    """
    high = xp.bitwise_right_shift(bits, 16)  # its square does not overflow
    square = xp.multiply(high, high)
    return xp.bitwise_and(xp.bitwise_and(square, xp.bitwise_right_shift(square, 2)), 1)


def real(x: Any, /, *, xp: Namespace, device: Any = None) -> Real:
    """An array widened exactly to float32, or a Python float rounded once (spec 1.3, 1.4)."""
    if isinstance(x, numbers.Real):
        return Real(xp.asarray(binary32(float(x)), dtype=xp.float32, device=device), xp=xp, constant=True)
    return Real(x if x.dtype == xp.float32 else xp.astype(x, xp.float32), xp=xp)


def integer_to_real(n: Array, /, *, xp: Namespace) -> Real:
    """An int64 with |n| ≤ 2⁶² as float32, from three pieces that convert exactly (spec 5.3).

    Frameworks convert int64 to float32 in different ways; some round twice, through float64.
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
