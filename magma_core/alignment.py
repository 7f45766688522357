"""The alignment score: exact cosine of momentum and gradient, sigmoid, moving average (spec section 5).

All sums are integers, so no order of summation, layout, sharding or thread count can change them.
"""

from collections.abc import Sequence

from magma_core.blocks import Blocks, Shard
from magma_core.config import SMALLEST
from magma_core.hyperparameters import RuleNumbers
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real, integer_to_real, power_of_two, real

# exp(-x) = 2^-n · exp(-r). ln 2 is split in two parts; the first is short enough for exact products with n ≤ 92. The
# polynomial approximates exp on [-ln 2 / 2, ln 2 / 2] with the Taylor coefficients 1/k!.
_INV_LN2 = 1.4426950408889634
_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.4286068203094173e-06
_EXP = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_LARGEST_EXPONENT = 64.0


def alignment_sums(mu: Real, g: Real, blocks: Blocks, shard: Shard | None = None, /) -> Array:
    """ΣXY, ΣXX, ΣYY of every block, exact: shape (3, *block shape), int64 (spec 5.1, 5.2).

    ``g`` is flushed only here, after rounding: two reductions and the moments use it, so XLA would otherwise write the
    flushed gradient to memory. With ``shard``, the sums cover whole blocks of the whole parameter, for the blocks that
    the part touches.
    """
    xp = g.xp
    if 0 in blocks.shape:
        return xp.full((3, *blocks.block_shape), 0, dtype=xp.int64, device=xp.device(g.array))
    inner = blocks.inner_axes
    peaks = largest((mu, g), inner)
    if shard is not None:
        peaks = [shard.largest(peak) for peak in peaks]
    m, n = (on_grid(x, grid(peak, xp=xp)) for x, peak in zip((mu, g), peaks, strict=True))
    sums = integer_sums(m, n.replace(abs(g) < SMALLEST, 0.0), inner)
    if shard is not None:
        sums = [shard.total(part) for part in sums]
    flags = [xp.squeeze(finite(peak, xp=xp), axis=inner) for peak in peaks]
    return xp.stack([blocks.order(total, xp=xp) for total in finite_sums(sums, *flags, xp=xp)], axis=0)


def largest(operands: Sequence[Real], axes: tuple[int, ...], /) -> list[Array]:
    """The int32 bit patterns of max|x| over ``axes``, kept as extents of 1; a NaN gives a pattern above that of ∞.

    Read as integers, magnitudes keep their order, with infinity and NaN on top. One exact maximum therefore gives the
    exponent and tells whether the block is finite. The maximum of a block is the maximum of its parts.
    """
    xp = operands[0].xp
    faster = getattr(xp, "largest", None)
    if faster:
        return list(faster([x.array for x in operands], axis=axes))
    magnitudes = [xp.bitwise_and(x.bits(), 0x7FFFFFFF) for x in operands]
    return [xp.max(x, axis=axes, keepdims=True) for x in magnitudes] if axes else magnitudes


def finite(peak: Array, /, *, xp: Namespace) -> Array:
    """Whether a block with the `largest` value ``peak`` contains no infinity and no NaN."""
    return xp.less(peak, 0x7F800000)


def grid(peak: Array, /, *, xp: Namespace) -> Real:
    """2^(15−e) with 2^(e−1) ≤ max|x| < 2^e, from `largest` (spec 5.1)."""
    biased = xp.clip(xp.bitwise_right_shift(peak, 23), min=127 - 100)  # e + 126; any value suits zero blocks
    return power_of_two(xp.subtract(15 + 126, biased), xp=xp)


def on_grid(x: Real, scale: Real, /) -> Real:
    """X = rint(x · `grid`), an integer, |X| ≤ 2¹⁵ (spec 5.1)."""
    return x.shift(scale).rint()


def finite_sums(sums: Sequence[Array], x_finite: Array, y_finite: Array, /, *, xp: Namespace) -> Sequence[Array]:
    """The sums, with 0 wherever an operand's block is not finite (spec 5.1)."""
    xy, xx, yy = sums
    zero = xp.full((), 0, dtype=xp.int64, device=xp.device(xy))
    xy = xp.where(x_finite, xp.where(y_finite, xy, zero), zero)
    return xy, xp.where(x_finite, xx, zero), xp.where(y_finite, yy, zero)


def integer_sums(x: Real, y: Real, axes: tuple[int, ...], /) -> Sequence[Array]:
    """ΣXY, ΣXX, ΣYY over ``axes``, int64 (spec 5.2).

    A block's sums are the sums over its parts. `finite_sums` handles blocks that are not finite.
    """
    own = getattr(x.xp, "integer_sums", None)
    return own(x.array, y.array, axis=axes) if own else plain_integer_sums(x.array, y.array, axis=axes, xp=x.xp)


def plain_integer_sums(x: Array, y: Array, /, *, axis: tuple[int, ...], xp: Namespace) -> Sequence[Array]:
    """`integer_sums` in standard functions; a backend may compute the same integers differently."""
    m, n = xp.astype(x, xp.int32), xp.astype(y, xp.int32)
    products = (xp.multiply(m, n), xp.multiply(m, m), xp.multiply(n, n))
    if not axis:
        return [xp.astype(product, xp.int64) for product in products]
    return [xp.sum(product, axis=axis, dtype=xp.int64) for product in products]


def cosine(sums: Array, /, *, xp: Namespace) -> Real:
    """c = ΣXY / (√ΣXX · √ΣYY) in [-1, 1], 0 where either norm is 0; from shape (3, …) (spec 5.3)."""
    totals = integer_to_real(sums, xp=xp).array
    xy, xx, yy = (Real(totals[i, ...], xp=xp) for i in range(3))
    norms = xx.sqrt() * yy.sqrt()
    either_zero = norms < 1.0
    ratio = xy / norms.replace(either_zero, 1.0)
    ratio = ratio.at_most(1.0)
    return -((-ratio).at_most(1.0))


def sigmoid(z: Real, /) -> Real:
    """1 / (1 + exp(−z)) for finite z, with |z| clamped to 64 (spec 5.4)."""
    x = abs(z).at_most(_LARGEST_EXPONENT)
    n = (x * _INV_LN2).rint()
    r = (n * _LN2_HIGH - x) + n * _LN2_LOW  # −x = r − n·ln 2
    polynomial = real(_EXP[0], xp=z.xp, device=z.xp.device(z.array))
    for coefficient in _EXP[1:]:
        polynomial = polynomial * r + coefficient
    e = polynomial * power_of_two(z.xp.astype((-n).array, z.xp.int32), xp=z.xp)  # exp(−|z|)
    return (1.0 / (1.0 + e)).replace(z < 0.0, e / (1.0 + e))


def update_score(score: Array, c: Real, numbers: RuleNumbers, /) -> Real:
    """s ← a·s + (1−a)·sigmoid(c/τ) (spec 5.5)."""
    fresh = sigmoid(c * numbers.inverse_tau)
    return (numbers.ema * real(score, xp=c.xp) + numbers.rest * fresh).flush()
