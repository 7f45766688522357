"""Correctly rounded float32 division and square root for CUDA, where XLA's own are approximations.

On CUDA, a/b is div.full and √a is sqrt.approx, wrong by one or two units in the last place. Here they only supply a
start. Operands are split into exponents and significands. The rest is integer arithmetic, which no compiler contracts,
reassociates or flushes, so it needs no fences. With significands a and b, or m,

    a·2²³ = q·b + r,  2²³ ≤ q < 2²⁴        m·2²³ = s² + r,  2²³ ≤ s < 2²⁴

and q or s from the start, r is so small that its lower 32 bits determine it. The error of the start, in units, is the
number of odd multiples of b/2, or of s, that |r| exceeds. There are no ties: no quotient and no root of normal numbers
lies halfway between two of them. Operands and results below 2⁻¹²⁶ count as zeros (spec 1.2).
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from magma_jax.integers import Integers

# The largest error of a start in units: 2 for div.full, 2 for sqrt.approx (2⁻²³ of the root), 3 for a product with an
# approximate reciprocal, which a compiler may substitute for a quotient.
_UNITS = range(1, 4)

_HIDDEN, _FRACTION, _MAGNITUDE, _SIGN = 0x00800000, 0x007FFFFF, 0x7FFFFFFF, -0x80000000
_SMALLEST, _ONE, _INFINITY, _NAN = 0x00800000, 0x3F800000, 0x7F800000, 0x7FC00000

Start = Callable[..., jax.Array]


@jax.jit
def divide(x1: Any, x2: Any, /) -> jax.Array:
    """x1 ⊘ x2; float32 is correctly rounded on CUDA too, with the derivatives of `jax.numpy.divide`."""
    if jnp.result_type(x1, x2) != jnp.float32:
        return jnp.divide(x1, x2)
    return _divide(*(lax.convert_element_type(x, jnp.float32) for x in (x1, x2)))


@jax.jit
def sqrt(x: Any, /) -> jax.Array:
    """√x; float32 is correctly rounded on CUDA too, with the derivatives of `jax.numpy.sqrt`."""
    return _sqrt(x) if jnp.result_type(x) == jnp.float32 else jnp.sqrt(x)


@jax.custom_jvp
def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.platform_dependent(a, b, cuda=quotient, default=jnp.divide)


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, cuda=root, default=jnp.sqrt)


@_divide.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _divide(*primals), jax.jvp(jnp.divide, primals, tangents)[1]


@_sqrt.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _sqrt(*primals), jax.jvp(jnp.sqrt, primals, tangents)[1]


def quotient(a: jax.Array, b: jax.Array, /, *, start: Start = lax.div) -> jax.Array:
    """a ⊘ b in float32; ``start`` divides a significand in [1, 4) by one in [1, 2), with a quotient in [1, 2)."""
    rank = max(a.ndim, b.ndim)
    x, y = (Integers.bits_of(lax.broadcast_to_rank(v, rank)) for v in (a, b))
    p, q = x & _MAGNITUDE, y & _MAGNITUDE
    m, n = _significand(p), _significand(q)
    doubled = (m < n).count()  # double a, so the quotient is at least 1; it rounds to less than 2
    first = _units(start(_scaled(m, doubled), _scaled(n)))
    r = (m << (doubled + 23)) - first * n
    off = _total((abs(r) * 2 > n * (2 * k - 1)).count() for k in _UNITS)
    exponent = (p >> 23) - (q >> 23) - doubled + 127
    zero = (p < _SMALLEST) | (q >= _INFINITY) | (exponent <= 0)
    infinite = (q < _SMALLEST) | (p >= _INFINITY) | (exponent >= 255)
    undefined = (p > _INFINITY) | (q > _INFINITY) | (zero & infinite)  # NaN, 0/0, ∞/∞
    bits = _packed(first + off.with_sign_of(r), exponent)
    bits = bits.replace(infinite, _INFINITY).replace(zero, 0) | ((x ^ y) & _SIGN)
    return bits.replace(undefined, _NAN).float32()


def root(a: jax.Array, /, *, start: Start = lax.sqrt) -> jax.Array:
    """√a in float32; ``start`` takes the root of significands in [1, 4)."""
    x = Integers.bits_of(a)
    m, exponent = _significand(x), (x >> 23) + 127  # exponent: twice the root's
    odd = exponent & 1
    first = _units(start(_scaled(m, odd)))
    r = (m << (odd + 23)) - first * first
    # (s ± (k − ½))² = s² ± (2k − 1)·s + k·(k − 1) + ¼, and r is an integer: below s, one less suffices
    below = r >> 31
    off = _total((abs(r) > first * (2 * k - 1) + (below ^ (k * (k - 1)))).count() for k in _UNITS)
    bits = _packed(first + off.with_sign_of(r), exponent >> 1)
    bits = bits.replace(x >= _INFINITY, x).replace(x < 0, _NAN)  # ∞ and NaN; but −0:
    return bits.replace((x & _MAGNITUDE) < _SMALLEST, x & _SIGN).float32()


def _significand(bits: Integers) -> Integers:
    """The significand, from 2²³ to 2²⁴ − 1."""
    return (bits & _FRACTION) | _HIDDEN


def _scaled(significand: Integers, power: Integers | None = None) -> jax.Array:
    """The significand as float32 in [1, 2), times a power of 2."""
    bits = significand + (_ONE - _HIDDEN)
    return (bits if power is None else bits + (power << 23)).float32()


def _units(x: jax.Array) -> Integers:
    """A start in units of 2⁻²³, clipped to [1, 2), the known range of the result; x may be anything, even NaN."""
    return Integers.bits_of(x).clip(_ONE, _ONE + _FRACTION) - (_ONE - _HIDDEN)


def _total(counts: Any) -> Integers:
    return reduce(Integers.__add__, counts)


def _packed(significand: Integers, exponent: Integers) -> Integers:
    """The bits of significand · 2^(exponent − 150); the significand's leading bit adds 1 to the exponent."""
    return significand + ((exponent - 1) << 23)
