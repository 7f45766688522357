"""The oracle and magma_core on NumPy give numbers worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_conformance.vectors import oracle
from magma_numpy import namespace as xp
from oracle_terms import DTYPES, FIELDS, array, core_settings

import magma_core
from magma_core.hyperparameters import coin_limit
from magma_core.keep import keep_mask, threefry2x32
from magma_core.numerics import real

SGD = {"kind": "sgd", "momentum": 0.0}  # the momentum is the gradient, so is the direction
PLAIN = {"kind": "dense"}
ALONE = {"a": 0.0}  # the score is this step's sigmoid


def by_oracle(theta, g, *, format, shape, momentum, base, rule, block_axes, **rest):
    options = {"shape": shape, "block_axes": block_axes, "base": base, "rule": rule}
    state = oracle.init(**options)
    if momentum is not None:
        state["mu"] = list(momentum)
    theta, state, report = oracle.step(theta, g, state, format=format, **options, **rest)
    return {"theta": theta} | state | report


def by_core(theta, g, *, format, shape, momentum, base, rule, block_axes, t, **rest):
    base, rule = core_settings(base, rule)
    options = {"base": base, "rule": rule, "block_axes": block_axes, "xp": xp}
    param = array(theta, shape, DTYPES[format])
    state = magma_core.init(param, **options)
    if momentum is not None:
        state = state._replace(mu=array(momentum, shape, np.float32))
    grad = array(g, shape, DTYPES[format])
    param, state, report = magma_core.update(param, grad, state, step=t, **rest, **options)
    result = {"theta": param} | {FIELDS[field]: x for field, x in state._asdict().items()} | report._asdict()
    result = {key: x.astype(np.float64).ravel().tolist() for key, x in result.items() if x is not None}
    if report.sums is not None:
        result["sums"] = [tuple(column) for column in report.sums.reshape(3, -1).T.tolist()]
    return result


@pytest.fixture(params=[by_oracle, by_core])
def step(request):
    """One step of one parameter; lists in, lists out. ``momentum`` is μ before the step."""

    def run(theta, g, *, base=SGD, rule=PLAIN, shape=None, block_axes=(), lr=0.5, format="float32", momentum=None):
        theta, g = list(map(float, theta)), list(map(float, g))
        shape = (len(theta),) if shape is None else shape
        rest = {"name": "w", "t": 1, "seed": 3, "lr": lr, "format": format, "momentum": momentum}
        return SimpleNamespace(
            **request.param(theta, g, shape=shape, base=base, rule=rule, block_axes=block_axes, **rest)
        )

    return run


def assert_same(actual, expected):
    """Bits, so that −0 is not 0."""
    assert_bits_equal(np.array(actual, np.float64), np.array(expected, np.float64))


# ---- Bases (4)


@pytest.mark.parametrize("block_axes", [None, (), (0,)])
def test_sgd_without_momentum(step, block_axes):
    # θ − 0.5 g
    assert_same(step([1, 2, -4], [0.5, -1, 8], block_axes=block_axes).theta, [0.75, 2.5, -8])


@pytest.mark.parametrize(("nesterov", "theta"), [(False, -0.25), (True, -0.375)])
def test_sgd_with_momentum(step, nesterov, theta):
    # μ = 0.5·1 + 1 = 1.5: 0.5 − 0.5·1.5 = −0.25; or Δ = 1 + 0.5·1.5 = 1.75: 0.5 − 0.875 = −0.375
    base = {"kind": "sgd", "momentum": 0.5, "nesterov": nesterov}
    after = step([0.5], [1], base=base, momentum=[1.0])
    assert_same(after.mu, [1.5])
    assert_same(after.theta, [theta])


def test_rmsprop(step):
    # ν = 0.25·16 = 4, Δ = 4 / (2 + 2) = 1
    after = step([1], [4], base={"kind": "rmsprop", "beta2": 0.75, "eps": 2.0})
    assert_same(after.nu, [4])
    assert_same(after.theta, [0.5])
    assert not hasattr(after, "mu")  # nobody looks at it


@pytest.mark.parametrize(("kind", "decay", "theta"), [("adam", 0, 0.75), ("adamw", 0, 0.75), ("adamw", 0.25, 0.625)])
def test_adam(step, kind, decay, theta):
    # μ = 0.5·4 = 2, ν = 0.25·16 = 4; C1 = 1 / (1 − 0.5) = 2, C2 = 1 / (1 − 0.75) = 4;
    # Δ = 2·2 / (√(4·4) + 4) = 0.5, and with decay 0.5 + 0.25·1 = 0.75
    base = {"kind": kind, "beta1": 0.5, "beta2": 0.75, "eps": 4.0}
    after = step([1], [4], base=base | ({"weight_decay": decay} if kind == "adamw" else {}))
    assert_same(after.mu, [2])
    assert_same(after.nu, [4])
    assert_same(np.ravel([after.p1, after.p2]), [0.5, 0.75])
    assert_same(after.theta, [theta])


def test_laprop(step):
    # ĝ = 4 / (√(4·4) + 4) = 0.5, μ = 0.5·0.5 = 0.25, Δ = 0.25·2 = 0.5
    after = step([1], [4], base={"kind": "laprop", "beta1": 0.5, "beta2": 0.75, "eps": 4.0})
    assert_same(after.mu, [0.25])
    assert_same(after.theta, [0.75])


# ---- Alignment (5)


def look(step, momentum, g, **rule):
    """What a step sees in one block with this μ (before) and g."""
    rule = {"kind": "damping", "momentum": "before"} | rule
    return step([0.0] * len(g), g, momentum=list(map(float, momentum)), rule=rule)


@pytest.mark.parametrize(
    ("momentum", "g", "sums", "cosine"),
    [
        # 1 has e = 1 and becomes 1·2^14
        ([1, 0], [0, 1], (0, 2**28, 2**28), 0.0),
        ([1, 1, 1, 1], [8, 8, 8, 8], (2**30, 2**30, 2**30), 1.0),
        ([1, 1, 1, 1], [-8, -8, -8, -8], (-(2**30), 2**30, 2**30), -1.0),
        # The root of 2^29, squared again, rounds to 2^29 (1 − 2^-24), and the quotient to 1 + 2^-23: the clamp.
        ([1, 1], [1, 1], (2**29, 2**29, 2**29), 1.0),
        ([1, 1], [-1, -1], (-(2**29), 2**29, 2**29), -1.0),
        # g has e = 3: 3·2^12 and 4·2^12; |g| = 5·2^12. 3/5 in binary32 is 0x1.333334p-1.
        ([1, 0], [3, 4], (3 * 2**26, 2**28, 25 * 2**24), float.fromhex("0x1.333334p-1")),
        # 1·4 + 2·3 + 3·2 + 4·1 = 20 and 1 + 4 + 9 + 16 = 30, in units of (2^12)^2
        ([1, 2, 3, 4], [4, 3, 2, 1], (20 * 2**24, 30 * 2**24, 30 * 2**24), None),
        # A power of two 2 = 2^(2−1) has e = 2; the number below it e = 1, and rounds up to 2^15.
        ([2, 1], [2 - 2**-23, 0], (2**14 * 2**15, 2**28 + 2**26, 2**30), None),
        # An infinity anywhere makes all of its operand 0, and so does NaN; the other operand is as it was.
        ([1, math.inf], [1, 1], (0, 0, 2**29), 0.0),
        ([1, 1], [math.nan, 1], (0, 2**29, 0), 0.0),
        ([0, 0], [1, 1], (0, 0, 2**29), 0.0),
    ],
)
def test_sums_and_cosine(step, momentum, g, sums, cosine):
    seen = look(step, momentum, g)
    assert seen.sums == [sums]
    if cosine is not None:
        assert_same(seen.cosine, [cosine])


def test_quantisation_rounds_ties_to_even(step):
    # The largest is 1, so X = rint(x·2^14): 2.5 → 2, 3.5 → 4, −2.5 → −2, 0.5 → 0, 1.5 → 2
    block = [1.0] + [k * 2.0**-14 for k in (2.5, 3.5, -2.5, 0.5, 1.5)]
    total = 2**28 + 4 + 16 + 4 + 0 + 4
    assert look(step, block, block).sums == [(total, total, total)]


def test_score(step):
    # Worked out with real numbers, hence a tolerance of an ulp or two here and in the next tests; the bits of the
    # score are compared in test_oracle.py.
    # c = 1, τ = 2: 0.9·0.5 + 0.1 / (1 + exp(−0.5)) = 0.45 + 0.0622459331…
    assert look(step, [1], [1]).score == pytest.approx([0.5122459331], abs=2**-24)
    # c = −1: 0.45 + 0.1·0.3775406687…
    assert look(step, [1], [-1]).score == pytest.approx([0.4877540669], abs=2**-24)
    # far beyond the clamp: 1 / (1 + exp(−64)), which is 1, and exp(−64)
    assert_same(look(step, [1], [1], tau=2.0**-100, **ALONE).score, [1])
    assert look(step, [1], [-1], tau=2.0**-100, **ALONE).score == pytest.approx([math.exp(-64)], rel=1e-6, abs=0)


@pytest.mark.parametrize("g", [[0, 0], [-0.0, 0], [2.0**-101, -(2.0**-149)], [math.nan, 1], [math.inf, 1]])
def test_a_block_without_direction_has_cosine_0(step, g):
    # [0.9]·0.5 + [0.1]·0.5 = 0.5 − 3·2^-28, which rounds to 0.5
    seen = look(step, [1, 1], g)
    assert_same(seen.cosine, [0])
    assert_same(seen.score, [0.5])
    assert_same(look(step, [1, 1], g, a=0.5, initial_score=0.0).score, [0.25])


def test_a_nan_stays_in_its_block(step):
    after = step([1, 1, 1, 1], [math.nan, 1, 1, 1], shape=(2, 2), block_axes=(0,), rule={"kind": "damping"} | ALONE)
    assert math.isnan(after.theta[0])
    # the row's other element moves with the weight 0.5 that c = 0 gives: 1 − 0.5·0.5·1
    assert_same(after.theta[1], 0.75)
    assert_same(after.score[0], 0.5)
    # c = 1, τ = 2 in the other row: 1 / (1 + exp(−0.5))
    assert after.score[1] == pytest.approx(0.6224593312, abs=2**-23)
    assert after.theta[2:] == pytest.approx([1 - 0.5 * 0.6224593312] * 2, abs=2**-23)


# ---- Rules, keeping and writing (6 to 8)


@pytest.mark.parametrize(("p", "kept"), [(0.0, 0), (2.0**-26, 0), (1.0, 64), (1 - 2.0**-26, 64)])
def test_p_0_keeps_nothing_and_p_1_everything(step, p, kept):
    # round(p·2^24) is 0 or 2^24
    after = step([1] * 64, [1] * 64, block_axes=(0,), rule={"kind": "skip_update", "p": p})
    assert sum(after.keep) == kept
    assert_same(after.theta, [0.5 if kept else 1.0] * 64)


@pytest.mark.parametrize("more", [0, 1])
def test_a_coin_is_kept_below_the_threshold_only(step, more):
    # T is the coin's upper 24 bits, or one more
    coin = oracle.coin(3, "w", 1, 0) >> 8
    p = (coin + more) / 2**24
    assert step([1], [1], rule={"kind": "skip_update", "p": p}).keep == [more]


def test_the_threshold_of_a_score_ties_to_even():
    # s·2^24 = 2.5 → 2, 3.5 → 4, 3 → 3, 2^24 → 2^24
    score = real(np.array([2.5, 3.5, 3, 2**24], np.float32) * np.float32(2.0**-24), xp=xp)
    thresholds = np.array([2, 4, 3, 2**24])
    for below in (0, 255):  # the lower 8 bits of the coin do not count
        for distance, kept in ((-1, True), (0, False)):
            u = (thresholds + distance) * 256 + below
            assert keep_mask(u, coin_limit(score), xp=xp).tolist() == [kept] * 4


def test_scale_is_flushed(step):
    # lr·s = 2^-100·0.5 is flushed, lr·1 = 2^-100 is not: 2^-100·2^100 = 1
    rule = {"kind": "damping", "initial_score": 0.5}
    far = step([4], [2.0**100], lr=2.0**-100, rule=rule)
    assert far.score[0] < 1
    assert_same(far.theta, [4])
    assert_same(step([4], [2.0**100], lr=2.0**-100).theta, [3])
    assert_same(step([4], [2.0**100], lr=2.0**-101).theta, [4])


def test_skip_update_with_one_half_doubles_the_steps_that_are_left(step):
    # 1 − 0.25·2·1
    after = step([1] * 32, [1] * 32, block_axes=(0,), lr=0.25, rule={"kind": "skip_update"})
    assert_same(after.theta, [0.5 if keep else 1.0 for keep in after.keep])
    assert 0 < sum(after.keep) < 32


def test_masks_follow_the_listed_order_of_axes(step):
    # b is row-major in the block shape, so the transposed list keeps the same coins in another order
    rule = {"kind": "skip_update"}
    one = step([1] * 24, [1] * 24, shape=(4, 6), block_axes=(0, 1), rule=rule)
    other = step([1] * 24, [1] * 24, shape=(6, 4), block_axes=(1, 0), rule=rule)
    assert np.array_equal(np.reshape(one.theta, (4, 6)), np.reshape(other.theta, (6, 4)).T)
    assert list(one.keep) == list(other.keep)


@pytest.mark.parametrize(
    ("p", "decay", "kept", "left"),
    [
        # masked: Δ = 1 + 0.5·4 = 3, weighted with 1/p
        (1.0, "masked", 4 - 0.25 * 3, None),
        (0.5, "masked", 4 - 0.25 * 2 * 3, 4),
        (0.0, "masked", None, 4),
        # dense: θ' = 4·(1 − 0.25·0.5) = 3.5 for all, Δ = 1
        (1.0, "dense", 3.5 - 0.25, None),
        (0.5, "dense", 3.5 - 0.25 * 2, 3.5),
        (0.0, "dense", None, 3.5),
    ],
)
def test_decay_with_the_mask_and_without(step, p, decay, kept, left):
    rule = {"kind": "skip_update", "p": p, "decay": decay}
    after = step([4] * 16, [1] * 16, base=SGD | {"weight_decay": 0.5}, block_axes=(0,), lr=0.25, rule=rule)
    assert_same(after.theta, [kept if keep else left for keep in after.keep])
    assert set(after.keep) == {kept is not None, left is None}


def test_decay_is_added_before_the_flush(step):
    # Δ = 2^-100 + 0.5·2^-100, where 0.5·2^-100 alone would have been flushed: (1 − 2·1.5)·2^-100
    after = step([2.0**-100], [2.0**-100], base=SGD | {"weight_decay": 0.5}, lr=2.0)
    assert_same(after.theta, [-(2.0**-99)])


TINY = [2.0**-149, -0.0, -1.5 * 2.0**-127, 2.0**-101, -0.0]


def test_a_block_that_is_left_keeps_its_bits(step):
    assert_same(step(TINY, [1] * 5, rule={"kind": "magma", "p": 0.0}).theta, TINY)


@pytest.mark.parametrize("block_axes", [None, ()])
def test_a_block_that_is_written_is_flushed(step, block_axes):
    assert_same(step(TINY, [0] * 5, block_axes=block_axes).theta, [0.0] * 5)
    assert_same(step([2.0**-100], [0], block_axes=block_axes).theta, [2.0**-100])


@pytest.mark.parametrize(
    ("format", "theta", "lr", "new"),
    [
        # a unit in the last place of 1 is 2^-7: half of it ties, to even 1; three halves to even 1 + 2·2^-7
        ("bfloat16", 1, 2.0**-8, 1),
        ("bfloat16", 1, 3 * 2.0**-8, 1 + 2.0**-6),
        ("bfloat16", 1, 2.0**-8 + 2.0**-23, 1 + 2.0**-7),
        # and 2^-10
        ("float16", 1, 2.0**-11, 1),
        ("float16", 1, 3 * 2.0**-11, 1 + 2.0**-9),
        # subnormals: units of 2^-24
        ("float16", 0, 2.5 * 2.0**-24, 2.0**-23),
        # 65504 is the largest, 65520 the tie with 65536
        ("float16", 65504, 15.9375, 65504),
        ("float16", 65504, 16, math.inf),
    ],
)
def test_the_parameter_is_rounded_once(step, format, theta, lr, new):
    assert_same(step([theta], [-1], lr=lr, format=format).theta, [new])


# ---- Threefry-2x32-20 (7.1): counter; key -> output, as in Random123's known answers

KNOWN = """
00000000 00000000; 00000000 00000000 -> 6b200159 99ba4efe
ffffffff ffffffff; ffffffff ffffffff -> 1cb996fc bb002be7
243f6a88 85a308d3; 13198a2e 03707344 -> c4923a9c 483df7a0
"""


@pytest.mark.parametrize("line", KNOWN.split("\n")[1:-1])
def test_threefry_gives_the_known_answers(line):
    counter, key, answer = ([int(word, 16) for word in part.split()] for part in line.replace("->", ";").split(";"))
    assert list(oracle.threefry(*key, *counter)) == answer
    key, counter = ([np.array([word], np.int64) for word in words] for words in (key, counter))
    assert [word.tolist() for word in threefry2x32(tuple(key), tuple(counter), xp=xp)] == [[word] for word in answer]
