"""Alignment: sums are exact in any order; cosine, sigmoid and score are accurate."""

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from magma_conformance.bits import assert_bits_equal
from magma_numpy import namespace as xp

import magma_core
from magma_core.alignment import alignment_sums, cosine, grid, integer_sums, largest, on_grid, sigmoid, update_score
from magma_core.blocks import cut
from magma_core.hyperparameters import rule_numbers
from magma_core.numerics import Real, integer_to_real

UNIT = 2.0**-24
"""Relative error of one correctly rounded operation: half a unit in the last place of 1."""

COSINE_ROUNDING = 8 * UNIT
"""Relative error of the cosine as computed from given sums, in the worst case. `integer_to_real` rounds twice; a root
halves the relative error of its argument and rounds once: 2 for ΣXY, 2 for each norm, 1 for their product, 1 for the
quotient. (Measured: 3.6.)"""

INTEGER_ULP = 1.0
"""`integer_to_real` adds three exact pieces, so it rounds twice, each time by at most half an ulp. (Measured: 1.0.)"""

SIGMOID_ULP = 2.5
"""exp(−|z|) carries about 1.5 ulp from the reduced argument and the polynomial; the sum 1 ⊕ E and the quotient add
half an ulp each. (Measured: 2.41 in [−64, 100]; 1.41 where τ = 2 puts z, |z| ≤ 1/2.)"""

JUMP_ULP = 1
"""Where n in −x = r − n·ln 2 changes, two polynomials meet within their error: neighbours may swap by an ulp."""

SCORE_LOW, SCORE_HIGH = 0.378, 0.622
"""The range of the score at τ = 2: sigmoid(∓1/2), to three digits as documented."""

NOISE_SCORE = 0.554
"""The score of pure noise at β = 0.9, τ = 2: momentum contains this step's gradient, so cos = √(1 − β²) = 0.436."""


def noise_energy(ratio: float, headroom: float) -> float:
    """Energy of the rounding noise of 16 bits relative to that of the block.

    The grid's unit is 2^(e−15) with max = headroom · 2^e, so max/headroom · 2^-15; the noise has variance 1/12 of
    its square, the block has (max/ratio)². With ``headroom`` = 1, max just below a power of two, this is
    ratio² · 2^-30 / 12; with 1/2, just above one, four times that.
    """
    return (ratio / headroom) ** 2 * 2.0**-30 / 12


def sums_of(mu: Any, g: Any, axes: tuple[int, ...], backend: Any = None) -> np.ndarray:
    space = backend.xp if backend else xp
    arrays = [backend.from_numpy(x) for x in (mu, g)] if backend else [mu, g]
    with space.scope():
        sums = alignment_sums(*(Real(x, xp=space) for x in arrays), cut(mu.shape, axes, name="x"))
    return backend.to_numpy(sums) if backend else sums


def python_quantised(block: list[float]) -> list[int]:
    """Spec 5.1 in exact fractions; Python rounds a Fraction half to even."""
    largest = max(map(abs, block), default=0.0)
    if not all(map(math.isfinite, block)) or largest == 0:
        return [0] * len(block)
    exponent = math.frexp(largest)[1]
    return [round(Fraction(x) * Fraction(2) ** (15 - exponent)) for x in block]


def python_sums(mu: np.ndarray, g: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Spec 5.2 in Python's integers, blocks in row-major order of ``axes`` as given."""
    inner = [axis for axis in range(mu.ndim) if axis not in axes]
    block_shape = [mu.shape[axis] for axis in axes]
    rows = [x.transpose([*axes, *inner]).reshape(math.prod(block_shape), -1).tolist() for x in (mu, g)]
    sums = []
    for x, y in zip(*[map(python_quantised, side) for side in rows], strict=True):
        sums.append([sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((x, y), (x, x), (y, y))])
    return np.array(sums, np.int64).reshape(-1, 3).T.reshape(3, *block_shape)


def normals(seed: int, shape: tuple[int, ...], spread: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.ldexp(rng.normal(size=shape), rng.integers(-spread, spread + 1, shape)).astype(np.float32)


AXES = [(), (0,), (1,), (2,), (0, 1), (1, 0), (2, 0), (0, 1, 2), (2, 1, 0)]

# Values as they come after flush, from tiny to large, in a small block whose layout Hypothesis chooses.
FINITE = st.floats(2.0**-100, 2.0**120, width=32) | st.sampled_from([1.0, 2.0**-15, 1.5 * 2**-15, 0.0])
VALUES = st.tuples(FINITE, st.sampled_from([1.0, -1.0])).map(lambda pair: pair[0] * pair[1] + 0.0)
SHAPE = (2, 3, 2)
TENSORS = hnp.arrays(np.float32, SHAPE, elements=VALUES)
MODERATE = hnp.arrays(np.float32, SHAPE, elements=st.floats(-(2.0**20), 2.0**20, width=32).map(lambda x: x + 0.0))


# Exact sums


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_alignment_sums_are_exact(backend, axes):
    """Ordinary values, 2¹²⁰ beside 2⁻¹⁰⁰, ties of rounding, and blocks of zeros, with infinities and with NaN."""
    mu, g = normals(0, (3, 4, 5)), normals(1, (3, 4, 5), spread=20)
    mu[0, 0, :3], g[0, 0, 1:4] = [2.0**120, 2.0**-100, 0], [1, 1.5 * 2**-15, 2.5 * 2**-15]
    mu[1, 1, 1], mu[1, 2, 2], g[2, 3, 3] = np.inf, np.nan, -np.inf
    mu[2, 0], g[2, 1] = 0, 0
    assert_bits_equal(sums_of(mu, g, axes, backend), python_sums(mu, g, axes), backend.name)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), (0, 0)])
@pytest.mark.parametrize("axes", [(), (0,)])
def test_alignment_sums_of_empty_blocks_and_no_blocks(backend, shape, axes):
    x = np.zeros(shape, np.float32)
    expected = np.zeros((3, *(shape[axis] for axis in axes)), np.int64)
    assert_bits_equal(sums_of(x, x, axes, backend), expected, backend.name)


def test_alignment_sums_of_a_scalar(backend):
    """A scalar is a block of one element, with (); there are no axes to name."""
    assert sums_of(np.float32(0.75), np.float32(-3.0), (), backend).tolist() == [-(24576**2), 24576**2, 24576**2]


def test_alignment_sums_beyond_2_53(backend):
    """An odd sum above 2⁵³, which float64 cannot hold, and products of 2³⁰, which fill an int32."""
    n = 2**23 + 5
    mu = np.full(n, np.nextafter(np.float32(1), np.float32(0)))  # quantised to 2¹⁵
    mu[0] = 2.0**-15  # quantised to 1
    sums = sums_of(mu, -mu, (), backend).tolist()
    total = (n - 1) * 2**30 + 1
    assert total > 2**53
    assert sums == [-total, total, total]


@given(mu=TENSORS, g=TENSORS, axes=st.sampled_from(AXES))
def test_alignment_sums_are_exact_for_any_values(mu, g, axes):
    assert_bits_equal(sums_of(mu, g, axes), python_sums(mu, g, axes))


@given(mu=TENSORS, g=TENSORS, order=st.permutations(range(6)))
def test_alignment_sums_permutation_within_a_block(mu, g, order):
    """The order of summation cannot show."""
    rows = [x.reshape(2, 6) for x in (mu, g)]
    assert_bits_equal(sums_of(*(x[:, order] for x in rows), (0,)), sums_of(*rows, (0,)))


@given(mu=TENSORS, g=TENSORS, order=st.permutations(range(3)), axes=st.sampled_from(AXES))
def test_alignment_sums_transposition(mu, g, order, axes):
    """(out, in) in one framework is (in, out) in another; with the axes mapped, the scores are the same."""
    mapped = tuple(order.index(axis) for axis in axes)
    assert_bits_equal(sums_of(mu.transpose(order), g.transpose(order), mapped), sums_of(mu, g, axes))


@given(mu=TENSORS, g=TENSORS, axes=st.sampled_from([axes for axes in AXES if len(axes) > 1]))
def test_alignment_sums_order_of_the_block_axes(mu, g, axes):
    """Blocks are the same whatever the order of their axes; the order is that of the block index."""
    ascending = tuple(sorted(axes))
    expected = sums_of(mu, g, ascending).transpose(0, *(1 + ascending.index(axis) for axis in axes))
    assert_bits_equal(sums_of(mu, g, axes), expected)


@given(mu=TENSORS, g=TENSORS, axes=st.sampled_from([(0,), (1,), (0, 2)]))
def test_alignment_sums_of_a_block_ignore_other_blocks(mu, g, axes):
    together = sums_of(mu, g, axes)
    for index in itertools.product(*(range(SHAPE[axis]) for axis in axes)):
        window = [slice(None)] * 3
        for axis, i in zip(axes, index, strict=True):
            window[axis] = slice(i, i + 1)
        alone = sums_of(mu[tuple(window)], g[tuple(window)], ())
        assert_bits_equal(together[(slice(None), *index)], alone)


@given(mu=TENSORS, g=TENSORS, at=st.integers(0, 12))
def test_alignment_sums_splitting_a_block(mu, g, at):
    """What devices that hold a part each add up, once they agree on the exponent, is the sum over the whole."""
    sides = [side.reshape(12) for side in (mu, g)]
    pieces = [[Real(side[part], xp=xp) for side in sides] for part in (slice(at), slice(at, None))]
    pieces = [piece for piece in pieces if piece[0].array.size]
    with xp.scope():
        whole = [np.max(largest(of_all, (0,)), axis=0) for of_all in zip(*pieces, strict=True)]
        grids = [grid(peak, xp=xp) for peak in whole]
        parts = [integer_sums(*map(on_grid, piece, grids), (0,)) for piece in pieces]
    assert np.sum(parts, axis=0).tolist() == sums_of(mu, g, ()).tolist()


@given(mu=MODERATE, g=MODERATE, scales=st.tuples(st.integers(-60, 60), st.integers(-60, 60)))
def test_alignment_sums_scaling_by_powers_of_two(mu, g, scales):
    """Each operand has its own exponent, so loss scaling cannot be seen."""
    for x in (mu, g):
        assume(np.all((x == 0) | (abs(x) >= 2.0**-30)))
    scaled = [np.ldexp(x, k) for x, k in zip((mu, g), scales, strict=True)]
    assert_bits_equal(sums_of(*scaled, (0,)), sums_of(mu, g, (0,)))


@given(mu=TENSORS, g=TENSORS)
def test_alignment_sums_exchange_and_sign(mu, g):
    xy, xx, yy = sums_of(mu, g, (0,))
    assert_bits_equal(sums_of(g, mu, (0,)), np.stack([xy, yy, xx]))
    assert_bits_equal(sums_of(mu, -g, (0,)), np.stack([-xy, xx, yy]))


@given(x=TENSORS)
def test_grid_uses_sixteen_bits(x):
    """The largest of a block comes to [2¹⁴, 2¹⁵], so that no more than half a unit in 2¹⁴ is lost."""
    block = Real(x, xp=xp)
    scaled = (block * grid(largest([block], (1, 2))[0], xp=xp)).rint()
    peaks = abs(scaled.array).max(axis=(1, 2))
    assert all(2**14 <= q <= 2**15 if nonzero else q == 0 for q, nonzero in zip(peaks, x.any((1, 2)), strict=True))


# Integers to reals


def test_integer_to_real_is_exact_below_2_24(backend):
    n = np.concatenate([np.arange(0, 2**24, 1013), 2**24 - np.arange(1, 100), [2**24, 2**40, 2**62]])
    n = np.concatenate([n, -n]).astype(np.int64)
    with backend.xp.scope():
        x = integer_to_real(backend.from_numpy(n), xp=backend.xp).array
    expected = n.astype(np.float32)  # one of the values is a zero, and it is +0
    assert_bits_equal(backend.to_numpy(x), expected, backend.name)


def test_integer_to_real_is_near_and_antisymmetric(backend):
    """Random integers of every length up to 2⁶², and their negatives; the same bits as NumPy's."""
    rng = np.random.default_rng(2)
    n = np.concatenate([rng.integers(2 ** (k - 1), 2**k, 400) for k in range(25, 63)])
    with backend.xp.scope():
        positive, negative = (integer_to_real(backend.from_numpy(x), xp=backend.xp).array for x in (n, -n))
    positive, negative = backend.to_numpy(positive), backend.to_numpy(negative)
    assert_bits_equal(negative, -positive, backend.name)
    assert_bits_equal(positive, integer_to_real(n, xp=xp).array, backend.name)
    ulp = [2 ** max(0, exponent - 24) for exponent in map(int.bit_length, n.tolist())]
    error = [abs(int(x) - m) / u for x, m, u in zip(positive.tolist(), n.tolist(), ulp, strict=True)]
    assert max(error) <= INTEGER_ULP


@given(n=st.integers(-(2**62), 2**62))
def test_integer_to_real_error_for_any_integer(n):
    x = int(integer_to_real(np.array(n), xp=xp).array)
    assert abs(x - n) <= INTEGER_ULP * 2 ** max(0, abs(n).bit_length() - 24)


# Cosine


def exact_cosine(xy: int, xx: int, yy: int) -> mpmath.mpf:
    with mpmath.workprec(200):
        return mpmath.mpf(xy) / mpmath.sqrt(mpmath.mpf(xx) * yy) if xx and yy else mpmath.mpf(0)


def cosine_of(*sums: int) -> float:
    return float(cosine(np.array(sums, np.int64), xp=xp).array)


LENGTHS = st.integers(1, 62).flatmap(lambda bits: st.integers(1, 2**bits))


@given(xx=LENGTHS, yy=LENGTHS, share=st.fractions(-1, 1))
def test_cosine_rounding_error(xx, yy, share):
    """Sums of any size that Cauchy and Schwarz allow."""
    xy = int(share * math.isqrt(xx * yy))
    exact = exact_cosine(xy, xx, yy)
    assert abs(cosine_of(xy, xx, yy) - exact) <= COSINE_ROUNDING * abs(exact)


def test_cosine_of_zero_norms_is_zero(backend):
    """Whichever norm is zero, and +0 rather than −0; a norm of 1, the smallest there is, is none of them."""
    sums = np.array([[0, 0, 0, 1, -1], [0, 5, 0, 1, 1], [0, 0, 7, 1, 1]], np.int64)
    with backend.xp.scope():
        c = cosine(backend.from_numpy(sums), xp=backend.xp).array
    assert_bits_equal(backend.to_numpy(c), np.float32([0, 0, 0, 1, -1]), backend.name)


@given(xx=LENGTHS, sign=st.sampled_from([1, -1]))
def test_cosine_never_leaves_the_interval(xx, sign):
    """Parallel vectors, where rounding would put the quotient an ulp above 1."""
    c = cosine_of(sign * xx, xx, xx)
    assert 1 - COSINE_ROUNDING <= sign * c <= 1


def float64_cosine(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(math.fsum(x * y) / math.sqrt(math.fsum(x * x) * math.fsum(y * y)))


def outlier_block(seed: int, n: int, ratio: float, headroom: float) -> np.ndarray:
    """Noise with one outlier, such that max/rms is ``ratio`` and max is ``headroom`` · 2^10."""
    x = np.random.default_rng(seed).normal(size=n)
    x[seed] = 0
    largest = headroom * 2.0**10 * (1 - 2.0**-20)
    x *= largest * math.sqrt((n / ratio**2 - 1) / np.sum(x * x))
    x[seed] = largest
    return x.astype(np.float32)


@pytest.mark.parametrize("headroom", [0.5 + 2.0**-19, 1.0])
@pytest.mark.parametrize("ratio", [10, 50, 1000])
def test_cosine_against_float64(ratio, headroom):
    """The cosine shrinks by half the noise energy of both operands; what else is lost is random or rounding.

    At max/rms = 1000 that is 8·10⁻⁵ where max is just below a power of two and 3·10⁻⁴ just above one, half of it
    for each operand; at 50 it is 2·10⁻⁷ and 8·10⁻⁷. The random part has variance (sum of the energies) / n.
    """
    n = 2**21
    x = outlier_block(1, n, ratio, headroom)
    y = (0.8 * x + 0.6 * outlier_block(2, n, ratio, headroom)).astype(np.float32)
    y[1] = x[1]
    energies = [
        noise_energy(np.abs(v).max() / math.sqrt(np.mean(v.astype(np.float64) ** 2)), h)
        for v, h in ((x, headroom), (y, np.abs(y).max() / 2.0 ** math.frexp(np.abs(y).max())[1]))
    ]
    exact = float64_cosine(x, y)
    expected = exact / math.sqrt(math.prod(1 + energy for energy in energies))
    tolerance = 6 * math.sqrt(sum(energies) / n) + COSINE_ROUNDING
    c = cosine_of(*sums_of(x, y, ()).tolist())
    assert abs(c - expected) <= tolerance
    assert abs(c - exact) <= noise_energy(ratio, 0.5) * abs(exact) + tolerance


@given(data=st.data(), n=st.integers(1, 40))
def test_cosine_worst_case(data, n):
    """Any block: each operand is off by at most half a unit in every element, and its largest has 2¹⁴ units."""
    elements = st.floats(-(2.0**10), 2.0**10, width=32).map(lambda v: v if abs(v) >= 2.0**-100 else 0.0)
    x, y = (data.draw(hnp.arrays(np.float32, n, elements=elements)) for _ in "xy")
    assume(x.any() and y.any())
    c = cosine_of(*sums_of(x, y, ()).tolist())
    assert abs(c - float64_cosine(x, y)) <= math.sqrt(n) * 2.0**-14 + COSINE_ROUNDING


@pytest.mark.parametrize("n", [2**10, 2**20])
def test_cosine_worst_case_is_nearly_reached(n):
    """All small elements just below half a unit, and a partner along them: half of the bound √n·2⁻¹⁴ is lost.

    So the bound is not an idle one. A block like this has max/rms = √n, where no gradient comes near.
    """
    x = np.full(n, np.nextafter(np.float32(2.0**-15), np.float32(0)))
    x[0] = 1
    y = np.ones(n, np.float32)
    error = abs(cosine_of(*sums_of(x, y, ()).tolist()) - float64_cosine(x, y))
    bound = math.sqrt(n) * 2.0**-14
    assert 0.45 * bound <= error <= bound


# Sigmoid and score


def sigmoid_of(z: np.ndarray, backend: Any = None) -> np.ndarray:
    space = backend.xp if backend else xp
    with space.scope():
        result = sigmoid(Real(backend.from_numpy(z) if backend else z, xp=space)).array
    return backend.to_numpy(result) if backend else result


def ulps(actual: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return abs(actual - exact) / np.spacing(exact.astype(np.float32)).astype(np.float64)


def test_sigmoid_error_against_mpmath():
    z = np.concatenate([np.linspace(-64, 100, 4001), np.linspace(-0.5, 0.5, 1001)]).astype(np.float32)
    exact = np.array([float(1 / (1 + mpmath.exp(-mpmath.mpf(float(v))))) for v in z])
    assert ulps(sigmoid_of(z), exact).max() <= SIGMOID_ULP


def test_sigmoid_error_on_a_dense_grid():
    """Against float64, whose own error is a millionth of an ulp here."""
    z = np.linspace(-64, 100, 2**21 + 1).astype(np.float32)
    assert ulps(sigmoid_of(z), 1 / (1 + np.exp(-z.astype(np.float64)))).max() <= SIGMOID_ULP


def test_sigmoid_is_the_same_on_every_backend(backend):
    z = np.concatenate([np.linspace(-100, 100, 2**14 + 1), np.linspace(-0.5, 0.5, 2**14 + 1)]).astype(np.float32)
    z = np.concatenate([z[abs(z) >= 2.0**-100], np.float32([0.0, -0.0])])
    assert_bits_equal(sigmoid_of(z, backend), sigmoid_of(z), backend.name)


def test_sigmoid_is_clamped_beyond_64():
    beyond = np.float32([64, 64.00001, 88, 100, 3e38])
    assert set(sigmoid_of(beyond).tolist()) == {1.0}
    assert set(sigmoid_of(-beyond).tolist()) == {float(sigmoid_of(np.float32([-64]))[0])}
    assert 1.6e-28 < sigmoid_of(-beyond)[0] < 1.61e-28


def test_sigmoid_is_monotonic_on_a_grid():
    assert np.all(np.diff(sigmoid_of(np.linspace(-100, 100, 2**21 + 1).astype(np.float32))) >= 0)


def test_sigmoid_is_monotonic_to_an_ulp_where_n_changes():
    """The worst places: 2·2¹⁰ consecutive floats about each (n + 1/2)·ln 2."""
    places = np.float32([(n + 0.5) * math.log(2) for n in range(92)])
    z = (places.view(np.int32)[:, None] + np.arange(-(2**10), 2**10, dtype=np.int32)).view(np.float32)
    for s in (sigmoid_of(z), sigmoid_of(-z)[:, ::-1]):
        assert np.diff(s.view(np.int32), axis=1).min() >= -JUMP_ULP


def test_sigmoid_of_zero_is_a_half():
    assert sigmoid_of(np.float32([0.0, -0.0])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("c", [-1.0, 1.0])
def test_score_range_at_the_default_temperature(c):
    """However long momentum and gradient stay (anti)parallel."""
    score = np.full(1, 0.5, np.float32)
    for _ in range(400):
        score = update_score(score, Real(np.full(1, c, np.float32), xp=xp), rule_numbers(magma_core.magma())).array
        assert SCORE_LOW - 5e-4 <= score[0] <= SCORE_HIGH + 5e-4
    assert round(float(score[0]), 3) == (SCORE_LOW if c < 0 else SCORE_HIGH)


@pytest.mark.parametrize("ema", [0.0, 0.25, 0.9, 1 - 2.0**-24])
@pytest.mark.parametrize("tau", [0.1, 2.0])
def test_score_is_a_moving_average(ema, tau):
    """``ema`` is the share of the old score; three roundings, and what the sigmoid may be off."""
    score, c = np.float32([0.0, 0.25, 0.5, 1.0]), np.float32([-1.0, 0.5, -0.25, 1.0])
    numbers = rule_numbers(magma_core.magma(ema=ema, tau=tau))
    new = update_score(score, Real(c, xp=xp), numbers).array
    fresh = 1 / (1 + np.exp(-c.astype(np.float64) / tau))
    exact = ema * score.astype(np.float64) + (1 - ema) * fresh
    assert np.all(abs(new - exact) <= 3 * UNIT + (1 - ema) * SIGMOID_ULP * np.spacing(np.float32(fresh)))


@pytest.mark.parametrize("base", [magma_core.SGD(), magma_core.AdamW(), magma_core.RMSProp()], ids=repr)
def test_score_of_pure_noise(base):
    """Independent gradients: whatever the scale of its momentum, a base meets its own last gradient."""
    shape, rng = (64, 1024), np.random.default_rng(6)
    options = {"base": base, "rule": magma_core.magma(), "block_axes": (0,), "xp": xp}
    param = np.zeros(shape, np.float32)
    state = magma_core.init(param, **options)
    for step in range(1, 81):
        grad = rng.normal(size=shape).astype(np.float32)
        param, state, _ = magma_core.update(param, grad, state, name="w", step=step, lr=0.0, seed=0, **options)
    assert abs(float(state.score.mean()) - NOISE_SCORE) < 1e-3


def test_score_of_a_zero_gradient_stays_at_a_half(backend):
    """s₀ = 1/2 is the one start that steps without a gradient leave alone."""
    zeros = backend.from_numpy(np.zeros((2, 3), np.float32))
    options = {"base": magma_core.SGD(), "rule": magma_core.magma(), "block_axes": (0,), "xp": backend.xp}
    _, state, report = magma_core.update(
        zeros, zeros, magma_core.init(zeros, **options), name="w", step=1, lr=0.1, seed=0, **options
    )
    assert_bits_equal(backend.to_numpy(state.score), np.float32([0.5, 0.5]), backend.name)
    assert_bits_equal(backend.to_numpy(report.cosine), np.float32([0, 0]), backend.name)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_score_of_a_block_with_infinity_or_nan(backend, bad):
    """Its cosine is 0 and its score stays a number; the blocks beside it do not notice."""
    grad = normals(7, (2, 3))
    broken = grad.copy()
    broken[0, 1] = bad
    options = {"base": magma_core.SGD(), "rule": magma_core.magma(), "block_axes": (0,), "xp": backend.xp}
    results = []
    for g in (grad, broken):
        g = backend.from_numpy(g)
        state = magma_core.init(g, **options)
        _, state, report = magma_core.update(g, g, state, name="w", step=1, lr=0.1, seed=0, **options)
        results.append([backend.to_numpy(x) for x in (report.sums, report.cosine, state.score)])
    (sums, c, score), (broken_sums, broken_c, broken_score) = results
    assert broken_sums[:, 0].tolist() == [0, 0, 0]
    assert_bits_equal(broken_c[0], np.float32(0))
    assert abs(broken_score[0] - 0.5) <= 2 * UNIT
    for whole, other in ((sums[:, 1], broken_sums[:, 1]), (c[1], broken_c[1]), (score[1], broken_score[1])):
        assert_bits_equal(other, whole)
