"""int32 formulas that trace quickly: each operator is one operation of `jax.lax`.

Array operators call jax.numpy functions, which take five times as long to trace. Outside CUDA, `magma_jax.gpu.rounding`
is traced but not used, so tracing is its only cost there.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Other: TypeAlias = "Integers | int"


class Integers:
    """An int32 array that wraps at 32 bits, or the bool array of a comparison; extents of 1 broadcast."""

    __slots__ = ("_array",)

    def __init__(self, array: jax.Array, /) -> None:
        self._array = array

    @classmethod
    def bits_of(cls, x: jax.Array, /) -> "Integers":
        """The bit pattern of a float32 array."""
        return cls(lax.bitcast_convert_type(x, jnp.int32))

    def float32(self) -> jax.Array:
        """The reverse of `bits_of`."""
        return lax.bitcast_convert_type(self._array, jnp.float32)

    def __add__(self, other: Other) -> "Integers":
        return self._with(lax.add, other)

    def __sub__(self, other: Other) -> "Integers":
        return self._with(lax.sub, other)

    def __mul__(self, other: Other) -> "Integers":
        return self._with(lax.mul, other)

    def __and__(self, other: Other) -> "Integers":
        return self._with(lax.bitwise_and, other)

    def __or__(self, other: Other) -> "Integers":
        return self._with(lax.bitwise_or, other)

    def __xor__(self, other: Other) -> "Integers":
        return self._with(lax.bitwise_xor, other)

    def __lshift__(self, other: Other) -> "Integers":
        return self._with(lax.shift_left, other)

    def __rshift__(self, other: Other) -> "Integers":
        return self._with(lax.shift_right_arithmetic, other)

    def __lt__(self, other: Other) -> "Integers":
        return self._with(lax.lt, other)

    def __le__(self, other: Other) -> "Integers":
        return self._with(lax.le, other)

    def __gt__(self, other: Other) -> "Integers":
        return self._with(lax.gt, other)

    def __ge__(self, other: Other) -> "Integers":
        return self._with(lax.ge, other)

    def __abs__(self) -> "Integers":
        return Integers(lax.abs(self._array))

    def clip(self, low: int, high: int, /) -> "Integers":
        """Clipped to [low, high]."""
        return Integers(lax.clamp(np.int32(low), self._array, np.int32(high)))

    def count(self) -> "Integers":
        """1 where a comparison holds, 0 elsewhere."""
        return Integers(lax.convert_element_type(self._array, jnp.int32))

    def with_sign_of(self, other: "Integers", /) -> "Integers":
        """Negated where the other is negative."""
        return self.replace(other < 0, Integers(lax.neg(self._array)))

    def replace(self, condition: "Integers", other: Other, /) -> "Integers":
        """``other`` where ``condition`` holds, otherwise this."""
        value = other._array if isinstance(other, Integers) else lax.full_like(self._array, other)
        return Integers(lax.select(condition._array, value, self._array))

    def _with(self, operation: Any, other: Other) -> "Integers":
        value = other._array if isinstance(other, Integers) else np.int32(other)  # an int might become an int64
        return Integers(operation(self._array, value))
