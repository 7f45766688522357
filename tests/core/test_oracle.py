"""magma_core on NumPy and the oracle, which shares no code with it, give the same bits."""

import itertools
import math
import random
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from magma_conformance.bits import assert_bits_equal
from magma_conformance.vectors import oracle
from magma_numpy import namespace as xp
from oracle_terms import BASES, DTYPES, FIELDS, RULES, array, core_settings

import magma_core
from magma_core import alignment
from magma_core.hyperparameters import rule_numbers
from magma_core.numerics import real

LAYOUTS = [
    ((5, 7), None),
    ((5, 7), ()),
    ((5, 7), (0,)),
    ((5, 7), (1,)),
    ((5, 7), (1, 0)),
    ((3, 4, 5), (2, 0)),
    ((3, 4, 5), (1,)),
    ((6,), (0,)),
    ((), ()),
    ((), None),
    ((0, 3), (1,)),
    ((0, 3), (0,)),
    ((3, 0), ()),
]


def cast(values, dtype):
    """Any floats as a list of numbers of the dtype."""
    with np.errstate(all="ignore"):
        return np.array(values, np.float32).astype(dtype).astype(np.float64).ravel().tolist()


def compare(theta, gradients, *, shape, format, name="layers.0.w", first=1, lr=0.01, seed=5, block_axes, base, rule):
    """One step for each gradient on both sides; every result must have the same bits."""
    dtype, (core_base, core_rule) = DTYPES[format], core_settings(base, rule)
    param = array(theta, shape, dtype)
    both = {"name": name, "lr": lr, "seed": seed, "block_axes": block_axes}
    state = magma_core.init(param, base=core_base, rule=core_rule, block_axes=block_axes, xp=xp)
    expected = oracle.init(shape=shape, block_axes=block_axes, base=base, rule=rule)
    block_shape = None if block_axes is None else tuple(shape[axis] for axis in block_axes)
    compare_states(state, expected, shape, block_shape)
    for t, gradient in enumerate(gradients, first):
        param, state, report = magma_core.update(
            param, array(gradient, shape, dtype), state, step=t, base=core_base, rule=core_rule, xp=xp, **both
        )
        theta, expected, seen = oracle.step(
            theta, gradient, expected, shape=shape, t=t, base=base, rule=rule, format=format, **both
        )
        assert_bits_equal(param, array(theta, shape, dtype), f"parameter after step {t}")
        compare_states(state, expected, shape, block_shape)
        compare_reports(report, seen, block_shape)


def compare_states(state, expected, shape, block_shape):
    shapes = {"mu": shape, "nu": shape, "score": block_shape}
    for field, key in FIELDS.items():
        actual = getattr(state, field)
        assert (actual is not None) == (key in expected), field
        if actual is not None:
            assert_bits_equal(actual, array(expected[key], shapes.get(field, ()), np.float32), field)


def compare_reports(report, seen, block_shape):
    assert (report.keep is not None) == (block_shape is not None)
    if report.keep is not None:
        assert_bits_equal(report.keep, np.array(seen["keep"], bool).reshape(block_shape), "keep")
    scored = report.sums is not None
    assert scored == (report.cosine is not None)
    if scored:
        sums = np.array(seen["sums"], np.int64).reshape(*block_shape, 3)
        assert_bits_equal(report.sums, np.moveaxis(sums, -1, 0), "sums")
        assert_bits_equal(report.cosine, array(seen["cosine"], block_shape, np.float32), "cosine")
    else:
        assert not seen["sums"]


def plain(rng, n):
    return [rng.gauss(0, 1) for _ in range(n)]


def mixed(rng, n):
    return [rng.choice((-1, 1)) * 10 ** rng.uniform(-30, 38) * 3 for _ in range(n)]


def tiny(rng, n):
    """Around the flush threshold 2^-100, and subnormals."""
    return [rng.choice((-1, 1)) * rng.uniform(0.5, 2) * 2.0 ** rng.choice((-148, -127, -101, -100)) for _ in range(n)]


def roots(rng, n):
    """Squares and shares of these pass the flush threshold in the second moments."""
    return [rng.choice((-1, 1)) * rng.uniform(0.5, 2) * 2.0 ** rng.randint(-52, -40) for _ in range(n)]


def zeros(rng, n):
    """Signed zeros, with few other values."""
    return [rng.choice((0.0, -0.0, -0.0, 1.5)) for _ in range(n)]


def special(rng, n):
    """Infinities and NaNs in a few places, so that blocks without any remain."""
    x = plain(rng, n)
    for value in (math.inf, -math.inf, math.nan)[: max(n // 6, 1)]:
        if n:
            x[rng.randrange(n)] = value
    return x


def outlier(rng, n):
    x = plain(rng, n)
    if n:
        x[rng.randrange(n)] = 3e38
    return x


KINDS = (plain, mixed, outlier, tiny, zeros, roots, special)


def draw(rng, kind, n, format):
    return cast(kind(rng, n), DTYPES[format])


@pytest.mark.parametrize("format", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("base", BASES)
def test_core_and_oracle_agree_for_every_layout(base, rule, format):
    rng = random.Random(f"{base} {rule} {format}")
    turn = itertools.cycle(KINDS)
    for shape, block_axes in LAYOUTS:
        size = math.prod(shape)
        # Special values come last: the moments that they enter never leave them.
        kinds = [next(turn), plain, next(turn)]
        compare(
            draw(rng, next(turn), size, format),
            [draw(rng, kind, size, format) for kind in sorted(kinds, key=lambda kind: kind is special)],
            shape=shape,
            format=format,
            block_axes=block_axes,
            base={"kind": base},
            rule={"kind": rule},
        )


OPTIONS = {
    "nesterov": ({"kind": "sgd", "nesterov": True, "weight_decay": 0.1}, {}),
    "no momentum": ({"kind": "sgd", "momentum": 0.0}, {}),
    "largest beta": ({"kind": "adamw", "beta1": 1 - 2.0**-24, "beta2": 1 - 2.0**-24}, {}),
    "betas 0": ({"kind": "laprop", "beta1": 0.0, "beta2": 0.0}, {}),
    "large eps": ({"kind": "rmsprop", "eps": 1e3, "beta2": 0.5, "momentum": 0.3}, {}),
    "dense decay": ({"kind": "adamw", "weight_decay": 0.3}, {"decay": "dense"}),
    "dense decay of sgd": ({"kind": "sgd", "weight_decay": 3.0}, {"decay": "dense"}),
    "decay that rounds to 0": ({"kind": "sgd", "weight_decay": 1e-31}, {"decay": "dense"}),
    "momentum before": ({"kind": "adam"}, {"momentum": "before"}),
    "momentum before, rmsprop": ({"kind": "rmsprop"}, {"momentum": "before"}),
    "initial score 0": ({"kind": "adam"}, {"initial_score": 0.0}),
    "initial score 1": ({"kind": "sgd"}, {"initial_score": 1.0}),
    "first score decides alone": ({"kind": "laprop"}, {"a": 0.0}),
    "slow score": ({"kind": "sgd"}, {"a": 1 - 2.0**-24, "initial_score": 0.0}),
    "steep": ({"kind": "adamw"}, {"tau": 0.01, "a": 0.5}),
    "steeper than the clamp": ({"kind": "sgd"}, {"tau": 2.0**-100, "a": 0.1}),
    "flat": ({"kind": "sgd"}, {"tau": 1e30}),
    "p 0": ({"kind": "adamw"}, {"p": 0.0}),
    "p 1": ({"kind": "adamw"}, {"p": 1.0}),
    "p that rounds to 0": ({"kind": "sgd"}, {"p": 2.0**-25}),
    "smallest p that keeps": ({"kind": "sgd"}, {"p": 2.0**-25 * 1.5}),
    "p 0.1": ({"kind": "rmsprop", "weight_decay": 0.1}, {"p": 0.1}),
    "p 0 and dense decay": ({"kind": "adamw"}, {"p": 0.0, "decay": "dense"}),
}
ACCEPTS = {
    "dense": {"decay"},
    "skip_update": {"decay", "p"},
    "magma": {"decay", "p", "tau", "a", "initial_score", "momentum"},
    "score_survival": {"decay", "tau", "a", "initial_score", "momentum"},
}


@pytest.mark.parametrize("label", OPTIONS)
def test_core_and_oracle_agree_for_options(label):
    rng = random.Random(label)
    base, options = OPTIONS[label]
    turn = itertools.cycle(KINDS)
    for rule, accepted in ACCEPTS.items():
        if not options.keys() <= accepted:
            continue
        for format, (shape, block_axes) in zip(
            DTYPES, [((4, 6), (0,)), ((3, 2, 4), (2, 0)), ((4, 5), None)], strict=True
        ):
            size = math.prod(shape)
            compare(
                draw(rng, next(turn), size, format),
                [draw(rng, kind, size, format) for kind in (plain, plain, next(turn), next(turn))],
                shape=shape,
                format=format,
                block_axes=block_axes,
                base=base,
                rule={"kind": rule} | options,
            )


@pytest.mark.parametrize("lr", [0.0, 2.0**-149, 1e-30, 2.0**-100, 0.1, 1e20, 3e38])
@pytest.mark.parametrize(("seed", "first"), [(0, 1), (2**64 - 1, 2**32 - 2), (2**32, 77)])
def test_core_and_oracle_agree_for_learning_rates_seeds_and_steps(lr, seed, first):
    rng = random.Random(lr)
    for format, name in zip(DTYPES, ("", "ünï/θ", "w"), strict=True):
        compare(
            draw(rng, plain, 24, format),
            [draw(rng, kind, 24, format) for kind in (plain, mixed)],
            shape=(2, 3, 4),
            format=format,
            name=name,
            first=first,
            lr=lr,
            seed=seed,
            block_axes=(1,),
            base={"kind": "adamw"},
            rule={"kind": "magma", "decay": "dense" if name else "masked"},
        )


@st.composite
def problems(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    axes = draw(st.permutations(range(len(shape))))
    block_axes = draw(st.sampled_from([None, *(tuple(axes[:k]) for k in range(len(shape) + 1))]))
    format = draw(st.sampled_from(list(DTYPES)))
    size = math.prod(shape)
    real = st.floats(width=32) | st.floats(-4, 4, width=16) | st.sampled_from((0.0, -0.0, 2.0**-100, 2.0**-50))
    tensor = st.lists(real, min_size=size, max_size=size).map(lambda values: cast(values, DTYPES[format]))
    beta, share = st.floats(0, 1 - 2.0**-24), st.floats(0, 1)
    decay = st.just(0.0) | st.floats(0, 1) | st.floats(0, 3e38)
    eps = st.sampled_from((2.0**-100, 1e-8, 1.0)) | st.floats(2.0**-100, 3e38)
    kind = draw(st.sampled_from(list(BASES)))
    base = {"kind": kind}
    for key, values in {
        "beta1": beta,
        "beta2": beta,
        "momentum": beta,
        "eps": eps,
        "weight_decay": decay,
    }.items():
        if key in oracle.BASES[kind] and not (kind == "adam" and key == "weight_decay") and draw(st.booleans()):
            base[key] = draw(values)
    if kind == "sgd":
        base["nesterov"] = draw(st.booleans())
    rule = {"kind": draw(st.sampled_from(list(ACCEPTS)))}
    options = {
        "decay": st.sampled_from(("masked", "dense")),
        "p": share,
        "tau": st.floats(2.0**-100, 3e38) | st.floats(2.0**-8, 8),
        "a": beta,
        "initial_score": share,
        "momentum": st.sampled_from(("after", "before")),
    }
    for key, values in options.items():
        if key in ACCEPTS[rule["kind"]] and draw(st.booleans()):
            rule[key] = draw(values)
    return {
        "theta": draw(tensor),
        "gradients": draw(st.lists(tensor, min_size=1, max_size=3)),
        "shape": shape,
        "format": format,
        "name": draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=5)),
        "first": draw(st.integers(1, 2**32 - 3)),
        "lr": draw(st.floats(0, 1) | st.floats(0, 3e38)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "block_axes": block_axes,
        "base": base,
        "rule": rule,
    }


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(problems())
def test_core_and_oracle_agree_for_anything(problem):
    compare(problem.pop("theta"), problem.pop("gradients"), **problem)


def test_core_and_oracle_agree_in_a_block_of_thousands():
    """Small tensors have small sums; here they need all three pieces of 5.3."""
    rng = random.Random(1)
    theta, *gradients = ([x + 1 for x in draw(rng, plain, 2100, "float32")] for _ in range(3))
    gradients = [cast(g, DTYPES["float32"]) for g in gradients]
    rest = {"shape": (3, 700), "format": "float32", "block_axes": (0,)}
    compare(cast(theta, DTYPES["float32"]), gradients, base={"kind": "sgd"}, rule={"kind": "magma"}, **rest)


def test_core_and_oracle_agree_in_the_cosine_of_any_sums():
    rng = random.Random(2)
    sums = [(0, 0, 5), (0, 5, 0), (2**62, 2**62, 2**62), (-(2**62), 2**62, 2**62), (1, 2**62, 2**62)]
    while len(sums) < 3000:
        xx, yy = (rng.randrange(1, 2 ** rng.randint(1, 62)) for _ in "xy")
        largest = math.isqrt(xx * yy)
        sums.append((rng.choice((rng.randint(-largest, largest), largest, -largest)), xx, yy))
    actual = alignment.cosine(np.array(sums, np.int64).T, xp=xp).array
    assert_bits_equal(actual, array([oracle.cosine(*three) for three in sums], (-1,), np.float32))


@pytest.mark.parametrize("tau", [2.0**-100, 0.012, 0.0157, 0.1, 0.3, 1.0, 2.0, 30.0, 2.0**30])
def test_core_and_oracle_agree_in_the_sigmoid(tau):
    """With a = 0 the score is the sigmoid, and nothing is hidden by the average."""
    rng = random.Random(tau)
    c = cast([0.0, 1.0, -1.0, 2.0**-62] + [rng.uniform(-1, 1) for _ in range(400)], DTYPES["float32"])
    actual = alignment.update_score(
        np.full(len(c), 0.5, np.float32),
        real(array(c, (-1,), np.float32), xp=xp),
        rule_numbers(magma_core.magma(tau=tau, ema=0.0)),
    )
    assert_bits_equal(actual.array, array([oracle.sigmoid(x, tau) for x in c], (-1,), np.float32))


@pytest.mark.parametrize("rule", ["magma", "score_survival"])
@pytest.mark.parametrize("base", BASES)
def test_no_result_depends_on_subnormals(base, rule, monkeypatch):
    """Section 1.2: hardware may take subnormal operands, results or both for zeros."""

    def without(x):
        return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x

    def flushing(operation, operands, result):
        def run(*xs):
            value = operation(*(map(without, xs) if operands else xs))
            return without(value) if result else value

        return run

    operations = {key: getattr(oracle, key) for key in ("add", "sub", "mul", "div", "sqrt")}
    rng = random.Random(f"{base} {rule}")
    for decay, format in itertools.product(("masked", "dense"), ("float32", "bfloat16")):
        theta = draw(rng, tiny, 24, format)
        gradients = [draw(rng, kind, 24, format) for kind in (tiny, roots, mixed, tiny)]
        given = {"base": {"kind": base, "eps": 2.0**-100}, "rule": {"kind": rule, "decay": decay, "p": 0.9}}
        given |= {"shape": (3, 8), "block_axes": (0,)}
        if base != "adam":
            given["base"]["weight_decay"] = 0.5
        results = []
        for operands, result in itertools.product((False, True), repeat=2):
            for key, operation in operations.items():
                monkeypatch.setattr(oracle, key, flushing(operation, operands, result))
            x, state, steps = theta, oracle.init(**given), []
            for t, g in enumerate(gradients, 1):
                x, state, report = oracle.step(x, g, state, t=t, name="w", lr=0.1, seed=1, format=format, **given)
                steps.append((x, state, report))
            results.append(repr(steps))
        assert len(set(results)) == 1


def test_rounding_is_that_of_the_formats():
    """The oracle rounds by arithmetic; struct knows binary32 and binary16, ml_dtypes bfloat16."""
    rng = random.Random(0)
    for _ in range(3000):
        x = math.ldexp(
            rng.choice((1.0, 1.5, 1 + 2.0**-24, 1 + 3 * 2.0**-12, rng.uniform(1, 2))), rng.randint(-152, 130)
        )
        for code, format in (("f", "float32"), ("e", "float16")):
            try:
                expected = struct.unpack(code, struct.pack(code, x))[0]
            except OverflowError:
                expected = math.inf
            assert oracle.rounded(x, format) == expected
            assert oracle.rounded(-x, format) == -expected
        once = oracle.rounded(x)
        with np.errstate(all="ignore"):
            assert oracle.rounded(once, "bfloat16") == float(np.float32(once).astype(ml_dtypes.bfloat16))
