"""What must hold of a step whatever its numbers: masks, limits, resuming, order, and compiled programs.

`tests/test_oracle.py` says which bits are right; here one way to a result is compared with another.
"""

import dataclasses
import itertools
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import pytest
from conftest import BACKENDS, load_backend
from hypothesis import example, given
from hypothesis import strategies as st
from magma_conformance.bits import assert_bits_equal

import magma_core
from magma_core import SGD, Adam, AdamW, LaProp, Report, RMSProp, State, damping, dense, magma, score_survival
from magma_core import skip_update as skip
from magma_core.keep import keep_mask
from magma_core.numerics import Real

BASES = [
    SGD(),
    SGD(nesterov=True, weight_decay=0.1),
    RMSProp(weight_decay=0.1),
    Adam(),
    AdamW(),
    LaProp(weight_decay=0.1),
]
RULES = [
    dense(),
    skip(p=0.3),
    magma(),
    magma(momentum="before", decay="dense", tau=0.5),
    damping(),
    score_survival(),
    score_survival(damped=True, decay="dense"),
]
PAIRS = [(AdamW(), magma()), (SGD(nesterov=True, weight_decay=0.1), skip(p=0.3, decay="dense"))]
PAIRS += [(RMSProp(weight_decay=0.1), score_survival(damped=True)), (LaProp(), damping(momentum="before"))]

# One parameter cut into rows, one whole, one whose axes are out of order, one that is not masked, a scalar, and one
# with no elements: each must find its own among the blocks of all.
LAYOUT = {
    "w": ((6, 8), (0,)),
    "v": ((4,), ()),
    "u": ((2, 3, 4), (2, 0)),
    "plain": ((4,), None),
    "scalar": ((), ()),
    "empty": ((0, 3), (0,)),
}
AXES = {name: axes for name, (_, axes) in LAYOUT.items()}
NAMES = list(LAYOUT)


def label(value: Any) -> str:
    """``SGD-nesterov``, ``p-score``: enough to tell the cases apart."""
    if isinstance(value, magma_core.Rule):
        return f"{value.survival}.{value.weight}.{value.momentum}.{value.decay}"
    if isinstance(value, tuple):
        return "+".join(map(label, value))
    return type(value).__name__ + ("nesterov" if getattr(value, "nesterov", False) else "")


def on_every_backend(name: str, values: list[Any], *, jax: int) -> Any:
    """Parametrise over backends and values, over the first ``jax`` values on JAX: eager, it compiles each
    operation for each shape, and what is compared here does not depend on the framework."""
    cases = [
        pytest.param(backend, value, id=f"{label(value)}-{backend}")
        for backend in BACKENDS
        for value in (values[:jax] if backend == "jax" else values)
    ]
    return pytest.mark.parametrize(("backend", name), cases, indirect=["backend"])


def parameters(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, (shape, _) in LAYOUT.items()}


def gradients(step: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Of many magnitudes, with zeros, subnormals and values on both sides of 2⁻¹⁰⁰."""
    rng = np.random.default_rng(step)
    grads = {}
    for name, (shape, _) in LAYOUT.items():
        x = np.ldexp(rng.normal(size=shape), rng.integers(-12, 3, shape)).astype(dtype)
        flat = x.reshape(-1)
        flat[3:7] = np.array([0.0, -0.0, 2.0**-101, 1e-40], dtype)[: len(flat[3:7])]
        grads[name] = x
    return grads


def to_numpy(backend: Any, results: Any) -> Any:
    """The same nest of lists and NamedTuples with NumPy arrays."""
    if results is None:
        return None
    if isinstance(results, State | Report):
        return type(results)(*(to_numpy(backend, x) for x in results))
    if isinstance(results, list | tuple):
        return [to_numpy(backend, x) for x in results]
    return backend.to_numpy(results)


def from_numpy(backend: Any, results: Any) -> Any:
    if results is None:
        return None
    if isinstance(results, State):
        return State(*(from_numpy(backend, x) for x in results))
    return [from_numpy(backend, x) for x in results] if isinstance(results, list) else backend.from_numpy(results)


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Bits of whole nests, with the path to the first difference."""
    if expected is None:
        assert actual is None, where
    elif isinstance(expected, list | tuple):
        fields = getattr(expected, "_fields", range(len(expected)))
        assert len(actual) == len(expected), where
        for field, a, b in zip(fields, actual, expected, strict=True):
            assert_same(a, b, f"{where}.{field}")
    else:
        assert_bits_equal(actual, expected, where)


class Run:
    """An optimisation of ``names``, step by step; ``results`` are NumPy arrays (params, states, reports)."""

    def __init__(self, backend: Any, base: Any, rule: Any, names: list[str] = NAMES, dtype: Any = np.float32):
        self.backend, self.names, self.dtype, self.step = backend, names, dtype, 0
        self.options = {"base": base, "rule": rule, "xp": backend.xp}
        self.params = [backend.from_numpy(parameters(dtype)[name]) for name in names]
        self.states = [
            magma_core.init(p, block_axes=AXES[name], name=name, **self.options)
            for p, name in zip(self.params, names, strict=True)
        ]
        self.reports: list[Report] = []

    def advance(self, steps: int = 1, seed: int = 7, lr: float = 0.05) -> "Run":
        for _ in range(steps):
            self.step += 1
            given = gradients(self.step, self.dtype)
            self.params, self.states, self.reports = magma_core.update_all(
                self.params,
                [self.backend.from_numpy(given[name]) for name in self.names],
                self.states,
                names=self.names,
                step=self.step,
                lr=lr,
                seed=seed,
                block_axes={name: AXES[name] for name in self.names},
                **self.options,
            )
        return self

    @property
    def results(self) -> Any:
        return to_numpy(self.backend, [self.params, self.states, self.reports])


# Every backend gives the reference's bits


@pytest.mark.parametrize("pair", PAIRS, ids=label)
def test_update_all_has_the_same_bits_on_every_backend(backend, numpy_backend, pair):
    assert_same(Run(backend, *pair).advance(3).results, Run(numpy_backend, *pair).advance(3).results)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_update_all_has_the_same_bits_in_half_precision(backend, numpy_backend, kind):
    if kind not in backend.formats:
        pytest.skip(f"{backend.name} has no {kind}: the standard has no half precision")
    dtype = backend.numpy_dtype(kind)
    for pair in PAIRS[:2]:
        actual, expected = (Run(one, *pair, dtype=dtype).advance(2) for one in (backend, numpy_backend))
        assert_same(actual.results, expected.results)
        assert {p.dtype for p in expected.params} == {dtype}
        assert {x.dtype for state in expected.states for x in state if x is not None} == {np.dtype(np.float32)}


# Masks


def one_step(backend: Any, param: np.ndarray, grad: np.ndarray, axes: Any, base: Any, rule: Any, **changes: Any) -> Any:
    """(param, state, report) as NumPy arrays after the first step."""
    options = {"base": base, "rule": rule, "block_axes": axes, "xp": backend.xp}
    p = backend.from_numpy(param)
    arguments = {"name": "w", "step": 1, "lr": 0.1, "seed": 3} | changes
    result = magma_core.update(p, backend.from_numpy(grad), magma_core.init(p, **options), **arguments, **options)
    return to_numpy(backend, result)


def keep_of(shape: tuple[int, ...], axes: Any = (0,), rule: Any = None, **changes: Any) -> np.ndarray:
    x = np.zeros(shape, np.float32)
    return one_step(load_backend("numpy"), x, x, axes, SGD(), rule or skip(), **changes)[2].keep


def any_bits(kind: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Random patterns with −0 and the smallest and largest subnormals; ``kind`` says whether with NaNs."""
    bits = 8 * dtype.itemsize
    x = np.random.default_rng(11).integers(0, 2**bits, shape).astype(f"u{dtype.itemsize}")
    x[:, :3] = [1 << (bits - 1), 1, (1 << (bits - 1)) + 1]
    x = x.view(dtype)
    with np.errstate(invalid="ignore"):
        return x if kind == "nan" else np.where(np.isfinite(x), x, np.ones((), dtype))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", [skip(), magma(), score_survival()], ids=label)
def test_masked_blocks_keep_their_bits(backend, kind, rule):
    """Subnormals and −0 too, which a kept block would lose."""
    if kind not in backend.formats:
        pytest.skip(f"{backend.name} has no {kind}: the standard has no half precision")
    param = any_bits("finite", (8, 16), backend.numpy_dtype(kind))
    new, _, report = one_step(backend, param, np.ones_like(param), (0,), SGD(), rule)
    assert 0 < report.keep.sum() < 8
    assert_bits_equal(new[~report.keep], param[~report.keep], backend.name)
    assert np.all((new != param)[report.keep].any(axis=1))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_masked_blocks_keep_the_payload_of_nan(numpy_backend, kind):
    """NumPy only: elsewhere all NaNs are one (spec 1.5)."""
    dtype = numpy_backend.numpy_dtype(kind)
    param = any_bits("nan", (8, 64), dtype)
    new, _, report = one_step(numpy_backend, param, np.ones_like(param), (0,), SGD(), magma())
    unsigned = f"u{dtype.itemsize}"
    assert_bits_equal(new.view(unsigned)[~report.keep], param.view(unsigned)[~report.keep])


@pytest.mark.parametrize("rule", [skip(p=0), magma(p=0)], ids=label)
@on_every_backend("base", BASES, jax=2)
def test_p_zero_moves_moments_only(backend, base, rule):
    """p = 0 changes no parameter, and the moments are those of a step that keeps everything."""
    grad = gradients(1)["w"]
    param = any_bits("finite", grad.shape, grad.dtype)
    new, state, report = one_step(backend, param, grad, (0,), base, rule)
    assert not report.keep.any()
    assert_bits_equal(new, param, backend.name)
    everything = skip(p=1) if rule.weight == "inverse_p" else damping()
    assert_same(state, one_step(backend, param, grad, (0,), base, everything)[1])
    assert any(x.any() for field, x in state._asdict().items() if x is not None and not field.endswith("power"))


@pytest.mark.parametrize("p", [0.0, 2.0**-26, 1 - 2.0**-26, 1.0])
def test_p_is_rounded_to_24_bits(p):
    """Below 2⁻²⁵ nothing is kept, above 1 − 2⁻²⁵ everything: spec 7.3."""
    assert set(keep_of((4096,), rule=skip(p=p)).tolist()) == {p > 0.5}


@pytest.mark.parametrize("decay", ["masked", "dense"])
@on_every_backend("base", BASES, jax=2)
def test_p_one_is_the_dense_rule_is_not_masked(backend, base, decay):
    """Three ways to say the base optimizer itself, bit for bit."""
    grad, param = gradients(1)["w"], parameters()["w"]
    unmasked = one_step(backend, param, grad, None, base, magma(decay=decay))
    for rule in (dense(decay=decay), skip(p=1, decay=decay)):
        new, state, report = one_step(backend, param, grad, (0,), base, rule)
        assert report.keep.all()
        assert_same([new, state], unmasked[:2])
    assert_same(unmasked[2], Report())


AXES_OF_THREE = [axes for count in range(4) for axes in itertools.permutations(range(3), count)]
DAMPED_OR_ONE = [rule for rule in RULES if rule.weight != "inverse_p"]  # whose weight does not depend on p


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    axes=st.sampled_from(AXES_OF_THREE),
    base=st.sampled_from(BASES),
    rule=st.sampled_from(DAMPED_OR_ONE),
    seed=st.integers(0, 2**64 - 1),
)
@example(shape=(2, 3, 4), axes=(1, 2, 0), base=SGD(), rule=magma(), seed=0)
@example(shape=(2, 3, 4), axes=(2, 0, 1), base=SGD(), rule=score_survival(), seed=1)
def test_kept_blocks_step_as_if_all_were_kept(numpy_backend, shape, axes, base, rule, seed):
    """Whether others are kept, and with what probability, is nothing to a block: nor to any moment or score.

    Which elements are a block's is worked out here index by index.
    """
    param, grad = (np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in (1, 2))

    def step(rule: Any) -> Any:
        return one_step(numpy_backend, param, grad, axes, base, rule, seed=seed)

    new, state, report = step(rule)
    all_new, all_state, _ = step(dataclasses.replace(rule, survival="p", p=1.0))
    left = step(skip(p=0, decay="dense"))[0] if rule.decay == "dense" else param
    keep = np.zeros(shape, bool)
    for index in np.ndindex(shape):
        keep[index] = report.keep[tuple(index[axis] for axis in axes)]
    assert_bits_equal(new, np.where(keep, all_new, left))
    if rule.weight == "score":  # else a rule that keeps everything has no scores
        assert_same(state, all_state)


def test_keep_mask_threshold(backend):
    """Kept iff the upper 24 bits of the coin are below T, to the last coin on either side (spec 7.3)."""
    xp = backend.xp

    def keeps(coin: int, rule: Any, score: float | None = None) -> bool:
        with xp.scope():
            s = None if score is None else Real(backend.from_numpy(np.float32([score])), xp=xp)
            return bool(keep_mask(backend.from_numpy(np.int64([coin])), rule, s, xp=xp)[0])

    for p in (0.3, 0.5, 2.0**-24, 1 - 2.0**-24):
        last = round(p * 2**24) * 256 - 1
        p32 = float(np.float32(p))
        for coin, kept in [(0, True), (last, True), (last + 1, False), (2**32 - 1, False)]:
            assert keeps(coin, skip(p=p)) is kept
            if p32 * 2**24 == round(p * 2**24):
                assert keeps(coin, score_survival(), p32) is kept
    for coin in (0, 2**32 - 1):
        for p in (0.0, 1.0):
            assert keeps(coin, skip(p=p)) is bool(p)
            assert keeps(coin, score_survival(), p) is bool(p)


def test_masks_are_nested_in_p():
    """The coins do not depend on p: raising it only adds blocks."""
    masks = [keep_of((1024,), rule=skip(p=p)) for p in (0.1, 0.3, 0.5, 0.9)]
    for smaller, larger in itertools.pairwise(masks):
        assert np.all(larger | ~smaller)
        assert (larger & ~smaller).any()


def test_masks_depend_on_seed_name_and_step_only():
    """Not on rule, base, the extent of a block, its values, or how the axes are called."""
    reference = keep_of((64,))
    assert_bits_equal(keep_of((64,), rule=magma()), reference)
    assert_bits_equal(keep_of((64, 5)), reference)
    assert_bits_equal(keep_of((5, 64), axes=(1,)), reference)
    assert_bits_equal(keep_of((5, 64), axes=(-1,)), reference)
    assert_bits_equal(keep_of((8, 8), axes=(0, 1)).reshape(64), reference)
    assert_bits_equal(keep_of((4, 16), axes=(1, 0)).reshape(64), reference)
    assert_bits_equal(keep_of((1024,))[:64], reference)


@pytest.mark.parametrize(
    "changes",
    [
        [{"name": name} for name in ("w", "v", "W", "w ", "", "layers.0.w", "layers.1.w", "\u00e9", "e\u0301")],
        [{"seed": seed} for seed in (0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1)],
        [{"step": step} for step in (1, 2, 3, 2**16, 2**31 - 1, 2**31, 2**32 - 1)],
    ],
    ids=["name", "seed", "step"],
)
def test_masks_of_other_names_seeds_and_steps_differ(changes):
    """128 coins are the same by chance once in 2¹²⁸; every bit of the words counts, also the high ones."""
    masks = [keep_of((128,), **change).tobytes() for change in changes]
    assert len(set(masks)) == len(changes)


def test_masks_of_a_step_and_seed_given_as_arrays(backend, numpy_backend):
    """As a compiled training loop has them; a seed's high word too, whatever the sign of its integer."""
    grad, param = gradients(1)["w"], parameters()["w"]
    seeds = [(5, np.int32(5)), (2**40 + 5, np.int64(2**40 + 5)), (2**64 - 3, np.int64(-3))]
    for seed, array in seeds:
        expected = one_step(numpy_backend, param, grad, (0,), SGD(), magma(), step=9, seed=seed, lr=0.125)
        with backend.xp.scope():
            given = {"step": backend.from_numpy(np.int32(9)), "seed": backend.from_numpy(array)}
            given["lr"] = backend.from_numpy(np.float32(0.125))
            assert_same(one_step(backend, param, grad, (0,), SGD(), magma(), **given), expected)


CHANCE = 1e-6
"""A fair coin fails one of the tests below this often; they are deterministic, so it happened here or never will."""


def tail(statistic: float, degrees: int) -> float:
    """The probability of a χ² this large."""
    return float(mpmath.gammainc(mpmath.mpf(degrees) / 2, mpmath.mpf(statistic) / 2, regularized=True))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("vary", ["step", "seed", "name", "block"])
def test_keep_frequency_is_p(p, vary):
    """χ² of the counts in 16 groups of 2¹² coins that differ in step, seed, name or block; neither tail is rare."""
    groups, coins = 16, 2**12
    if vary == "block":
        kept = keep_of((groups * coins,), rule=skip(p=p)).reshape(groups, coins).sum(axis=1)
    else:
        changes = [{vary: f"layer.{i}" if vary == "name" else i + 1} for i in range(groups)]
        kept = np.array([keep_of((coins,), rule=skip(p=p), **change).sum() for change in changes])
    statistic = float(np.sum((kept - coins * p) ** 2) / (coins * p * (1 - p)))
    assert CHANCE < tail(statistic, groups) < 1 - CHANCE


@pytest.mark.parametrize("vary", ["step", "seed", "block", "name"])
def test_keep_of_neighbours_is_independent(vary):
    """χ² of the four pairs (kept, kept) … of coins that are next to each other, at p = 1/2."""
    coins = 2**16
    first = keep_of((coins + 1,), step=5, seed=5)
    other = {
        "step": {"step": 6, "seed": 5},
        "seed": {"step": 5, "seed": 6},
        "name": {"name": "x", "step": 5, "seed": 5},
    }
    second = first[1:] if vary == "block" else keep_of((coins + 1,), **other[vary])[:coins]
    pairs = np.bincount(2 * first[:coins] + second, minlength=4)
    statistic = float(np.sum((pairs - coins / 4) ** 2) / (coins / 4))
    assert tail(statistic, 4) > CHANCE


# Many parameters


@on_every_backend("pair", PAIRS[:3], jax=1)
def test_update_all_is_update_one_at_a_time(backend, pair):
    """So masks depend neither on the other parameters nor on the position among them."""
    together = Run(backend, *pair).advance(2).results
    for i, name in enumerate(NAMES):
        if backend.name != "jax" or name in ("w", "u"):  # the others take it ten seconds to compile
            alone = Run(backend, *pair, names=[name]).advance(2).results
            assert_same([[kind[i]] for kind in together], alone, name)


def test_update_of_one_parameter_is_update_all(backend):
    base, rule = PAIRS[0]
    run = Run(backend, base, rule, names=["w"]).advance()
    param, grad = parameters()["w"], gradients(1)["w"]
    one = one_step(backend, param, grad, (0,), base, rule, lr=0.05, seed=7)
    assert_same([[x] for x in one], run.results)


def test_update_all_in_another_order(backend):
    order = [3, 5, 0, 4, 2, 1]
    expected = Run(backend, *PAIRS[0]).advance(2).results
    actual = Run(backend, *PAIRS[0], names=[NAMES[i] for i in order]).advance(2).results
    assert_same(actual, [[kind[i] for i in order] for kind in expected])


def test_update_all_of_nothing(backend):
    empty = {"names": [], "block_axes": {}}
    options = {"base": SGD(), "rule": magma(), "step": 1, "lr": 0.1, "seed": 0, "xp": backend.xp}
    assert magma_core.update_all([], [], [], **empty, **options) == ([], [], [])


def test_update_planned_is_update_all(backend):
    """Plans made once serve every step."""
    base, rule = PAIRS[0]
    run = Run(backend, base, rule)
    options = {"names": NAMES, "base": base, "rule": rule, "seed": 7, "block_axes": AXES, "xp": backend.xp}
    plans = magma_core.plan_all(run.params, **options)
    params, states = run.params, run.states
    for step in (1, 2):
        given = [backend.from_numpy(gradients(step)[name]) for name in NAMES]
        params, states, reports = magma_core.update_planned(
            plans, params, given, states, step=step, lr=0.05, xp=backend.xp
        )
    assert_same(to_numpy(backend, [params, states, reports]), run.advance(2).results)


# Resuming and purity


@on_every_backend("pair", PAIRS, jax=1)
def test_resuming_is_not_to_be_told_from_going_on(backend, pair):
    """State and parameters through NumPy, as a checkpoint takes them, after two of four steps."""
    whole = Run(backend, *pair).advance(4)
    first = Run(backend, *pair).advance(2)
    saved = to_numpy(backend, [first.params, first.states])
    second = Run(backend, *pair)
    second.step = 2
    second.params, second.states = from_numpy(backend, saved)
    assert_same(second.advance(2).results, whole.results)


@on_every_backend("pair", PAIRS, jax=1)
def test_inputs_are_not_modified(backend, pair):
    run = Run(backend, *pair).advance()
    before = to_numpy(backend, [run.params, run.states])
    before = [[p.copy() for p in before[0]], [State(*(x if x is None else x.copy() for x in s)) for s in before[1]]]
    lists = [run.params, run.states]
    kept = [list(x) for x in lists]
    run.advance()
    assert all(a is b for old, new in zip(lists, kept, strict=True) for a, b in zip(old, new, strict=True))
    assert_same(to_numpy(backend, lists), before)


@pytest.mark.parametrize("base", BASES, ids=label)
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_read_only_arrays_are_accepted(numpy_backend, base, rule):
    """A memory-mapped checkpoint is read-only: writing in place would raise here."""
    grad, param = gradients(1)["w"], parameters()["w"]
    options = {"base": base, "rule": rule, "block_axes": (0,), "xp": numpy_backend.xp}
    state = magma_core.init(param, **options)
    for x in (param, grad, *state):
        if x is not None:
            x.flags.writeable = False
    for step in (1, 2):
        param, state, _ = magma_core.update(param, grad, state, name="w", step=step, lr=0.1, seed=3, **options)
        for x in (param, *state):
            if x is not None:
                x.flags.writeable = False


class Recorder:
    """The NumPy namespace, noting the shapes that `divide` meets."""

    def __init__(self, xp: ModuleType) -> None:
        self.xp, self.shapes = xp, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.xp, name)

    def divide(self, x1: Any, x2: Any, /) -> Any:
        self.shapes.append((x1.shape, x2.shape))
        return self.xp.divide(x1, x2)


@pytest.mark.parametrize("base", BASES, ids=label)
def test_many_values_are_never_divided_by_one(numpy_backend, base):
    """XLA turns that into a multiplication by the reciprocal, also in eager JAX (docs/numerics.md, F2)."""
    recorder = Recorder(numpy_backend.xp)
    for rule in RULES:
        for axes in ((0,), (), None):
            param = parameters()["w"]
            options = {"base": base, "rule": rule, "block_axes": axes, "xp": recorder}
            state = magma_core.init(param, **options)
            magma_core.update(param, param, state, name="w", step=1, lr=0.1, seed=3, **options)
    assert recorder.shapes
    assert all(np.broadcast_shapes(x1, x2) == x2 for x1, x2 in recorder.shapes)


# PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def through(result: Any, backend: Any) -> Any:
    return to_numpy(backend, list(result))


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("kind", ["transposed", "strided", "expanded", "offset"])
def test_torch_tensors_that_are_not_contiguous(backend, numpy_backend, torch, kind):
    base, rule = PAIRS[0]
    view = {
        "transposed": lambda x: x.T,
        "strided": lambda x: x[::2, ::3],
        "expanded": lambda x: x[:1].expand(6, 8),
        "offset": lambda x: x[1:, 2:],
    }[kind]
    options = {"base": base, "rule": rule, "block_axes": (0,)}
    arguments = {"name": "w", "step": 1, "lr": 0.1, "seed": 3}
    tensors = [view(torch.from_numpy(x)) for x in (parameters()["w"], gradients(1)["w"])]
    plain = [np.ascontiguousarray(x.numpy()) for x in tensors]
    expected = one_step(numpy_backend, *plain, (0,), base, rule)
    state = magma_core.init(tensors[0], **options, xp=backend.xp)
    if kind == "transposed":
        state = State(*(x.T.contiguous().T if x is not None and x.ndim == 2 else x for x in state))
    result = magma_core.update(*tensors, state, **arguments, **options, xp=backend.xp)
    assert_same(through(result, backend), expected)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_torch_parameters_that_require_gradients(backend, numpy_backend, torch):
    """A step is not differentiated, and what it returns carries no graph."""
    base, rule = PAIRS[0]
    param, grad = parameters()["w"], gradients(1)["w"]
    options = {"base": base, "rule": rule, "block_axes": (0,), "xp": backend.xp}
    leaf = torch.nn.Parameter(torch.from_numpy(param.copy()))
    state = magma_core.init(leaf, **options)
    result = magma_core.update(leaf, torch.from_numpy(grad), state, name="w", step=1, lr=0.1, seed=3, **options)
    assert not any(x.requires_grad for x in (result[0], *result[1], *result[2]) if x is not None)
    assert_same(through(result, backend), one_step(numpy_backend, param, grad, (0,), base, rule))


# Compiled programs. What is traced and what is a constant of the program decides what a compiler may fold, and with
# it which operations it may then contract or rewrite.

INPUTS = ("param", "grad", "state", "lr", "step", "seed")
CONSTANTS = [
    (),
    ("state", "step", "seed", "lr"),
    ("state", "param", "step", "seed", "lr"),
    ("param", "grad", "state", "step", "seed"),
]
COMPILED_PAIRS = [
    (AdamW(), magma()),
    (Adam(), skip()),
    (SGD(nesterov=True, weight_decay=0.1), magma(decay="dense", momentum="before")),
    (RMSProp(), score_survival(damped=True)),
    (LaProp(weight_decay=0.1), dense(decay="dense")),
]


class Program:
    """Two steps of one parameter large enough for a contracted operation to show, and what NumPy makes of them."""

    shape = (16, 64)
    axes = (0,)

    def __init__(self, numpy_backend: Any, base: Any, rule: Any) -> None:
        rng = np.random.default_rng(8)
        self.options = {"base": base, "rule": rule, "block_axes": self.axes}
        self.numpy = numpy_backend
        self.start = rng.normal(size=self.shape).astype(np.float32)
        self.grads = [rng.normal(size=self.shape).astype(np.float32) for _ in range(3)]
        self.states = [magma_core.init(self.start, **self.options, xp=numpy_backend.xp)]
        self.params, self.results = [self.start], []
        for step, grad in enumerate(self.grads, 1):
            result = self.update(numpy_backend.xp, self.params[-1], grad, self.states[-1], step=step)
            self.results.append(to_numpy(numpy_backend, list(result)))
            self.params.append(result[0])
            self.states.append(result[1])

    def update(self, xp: Any, param: Any, grad: Any, state: Any, *, step: Any, lr: Any = 0.05, seed: Any = 7) -> Any:
        return magma_core.update(param, grad, state, name="w", step=step, lr=lr, seed=seed, **self.options, xp=xp)

    def inputs(self, backend: Any, step: int) -> dict[str, Any]:
        """As arrays that can be traced."""
        arrays = [self.params[step - 1], self.grads[step - 1], self.states[step - 1]]
        values = dict(zip(INPUTS, [from_numpy(backend, x) for x in arrays], strict=False))
        return values | {
            "lr": backend.from_numpy(np.float32(0.05)),
            "step": backend.from_numpy(np.int32(step)),
            "seed": backend.from_numpy(np.int32(7)),
        }

    def check(self, backend: Any, compile: Any, constants: tuple[str, ...], step: int) -> None:
        """Compile a step with some inputs closed over, and compare with the reference."""
        values = self.inputs(backend, step)
        python = {"lr": 0.05, "step": step, "seed": 7}  # a constant is written as a Python number
        fixed = {name: python.get(name, values[name]) for name in constants}
        traced = {name: value for name, value in values.items() if name not in constants}

        def program(given: dict[str, Any]) -> Any:
            every = fixed | given
            arrays = [every.pop(name) for name in ("param", "grad", "state")]
            return list(self.update(backend.xp, *arrays, **every))

        assert_same(to_numpy(backend, compile(program)(traced)), self.results[step - 1])


@pytest.fixture(scope="module", params=COMPILED_PAIRS, ids=label)
def program(request, numpy_backend):
    return Program(numpy_backend, *request.param)


only_jax = pytest.mark.parametrize("backend", ["jax"], indirect=True)
only_tensorflow = pytest.mark.parametrize("backend", ["tensorflow"], indirect=True)


def plus(names: tuple[str, ...]) -> str:
    return "constant-" + "-".join(names) if names else "all-traced"


@only_jax
@pytest.mark.parametrize("constants", CONSTANTS, ids=plus)
def test_jit_is_eager(backend, program, constants):
    import jax

    program.check(backend, jax.jit, constants, step=1)


@only_jax
def test_jit_of_a_later_step_with_constant_state(backend, program):
    """A state that is not all zeros and ones; the second gradient is what is new."""
    import jax

    program.check(backend, jax.jit, ("state", "param", "step", "seed", "lr"), step=2)


@only_jax
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
@pytest.mark.parametrize("constants", CONSTANTS[:2], ids=plus)
def test_jit_with_x64_on(backend, program, constants):
    """What ``jax_enable_x64`` says outside changes no bit and no dtype."""
    import jax

    with jax.enable_x64(True):
        program.check(backend, jax.jit, constants, step=1)
        program.check(backend, lambda f: f, constants, step=1)


@only_jax
@pytest.mark.parametrize(("length", "wide"), [(1, False), (3, True)])
def test_scan_is_a_loop(backend, program, length, wide):
    """With a constant first carry: XLA unrolls a loop of one, and then sees zeros and ones in the state.

    In one of the cases ``jax_enable_x64`` is on outside, which must not matter.
    """
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(wide):
        first = program.inputs(backend, 1)

        @jax.jit
        def train(grads):
            def body(carry, given):
                step, grad = given
                param, state, report = program.update(backend.xp, carry[0], grad, carry[1], step=step)
                return (param, state), report

            return jax.lax.scan(body, (first["param"], first["state"]), (jnp.arange(1, length + 1), grads))

        (param, state), reports = train(jnp.stack([backend.from_numpy(g) for g in program.grads[:length]]))
    last = Report(*(x if x is None else x[-1] for x in reports))
    assert_same(to_numpy(backend, [param, state, last]), program.results[length - 1])


def from_the_start(program: Program, backend: Any) -> Any:
    """`init` and the first step in one program: the state is known to the compiler."""

    def start(param, grad):
        state = magma_core.init(param, **program.options, xp=backend.xp)
        return list(program.update(backend.xp, param, grad, state, step=1))

    return start


@only_jax
def test_jit_of_init_and_step(backend, program):
    import jax

    first = program.inputs(backend, 1)
    result = jax.jit(from_the_start(program, backend))(first["param"], first["grad"])
    assert_same(to_numpy(backend, result), program.results[0])


def unrolled(program: Program, backend: Any) -> Any:
    """Three steps in one program."""

    def train(param, state, grads):
        for step, grad in enumerate(grads, 1):
            param, state, report = program.update(backend.xp, param, grad, state, step=step)
        return [param, state, report]

    return train


@only_jax
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
def test_jit_of_three_steps(backend, program):
    import jax

    first = program.inputs(backend, 1)
    grads = [backend.from_numpy(g) for g in program.grads]
    result = jax.jit(unrolled(program, backend))(first["param"], first["state"], grads)
    assert_same(to_numpy(backend, result), program.results[2])


@only_jax
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
def test_vmap_over_seeds(backend, program):
    """One optimisation for each seed, all at once."""
    import jax

    values = program.inputs(backend, 1)
    seeds = [7, 8, 2**31 - 1]

    def step(seed):
        return program.update(backend.xp, values["param"], values["grad"], values["state"], step=1, seed=seed)

    batched = to_numpy(backend, list(jax.jit(jax.vmap(step))(backend.from_numpy(np.int32(seeds)))))
    for i, seed in enumerate(seeds):
        start = [program.params[0], program.grads[0], program.states[0]]
        expected = to_numpy(program.numpy, list(program.update(program.numpy.xp, *start, step=1, seed=seed)))
        one = [
            batched[0][i],
            *(type(nest)(*(x if x is None else x[i] for x in nest)) for nest in batched[1:]),
        ]
        assert_same(one, expected)


@only_jax
def test_jit_masked_blocks_keep_their_bits(backend, numpy_backend):
    """XLA on CPU flushes subnormals in arithmetic; a selection is none."""
    import jax

    param = any_bits("finite", (8, 16), np.dtype(np.float32))
    options = {"base": SGD(), "rule": magma(p=0), "block_axes": (0,), "xp": backend.xp}
    p = backend.from_numpy(param)
    state = magma_core.init(p, **options)
    step = jax.jit(lambda p, s: magma_core.update(p, p, s, name="w", step=1, lr=0.1, seed=3, **options)[0])
    assert_bits_equal(backend.to_numpy(step(p, state)), param)


def tf_function(compiled: bool) -> Any:
    import tensorflow as tf

    return lambda function: tf.function(function, autograph=False, jit_compile=compiled)


@only_tensorflow
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("constants", CONSTANTS[:2], ids=plus)
def test_tf_function_is_eager(backend, program, constants, compiled):
    program.check(backend, tf_function(compiled), constants, step=1)


@only_tensorflow
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_tf_function_of_init_and_step(backend, program, compiled):
    first = program.inputs(backend, 1)
    result = tf_function(compiled)(from_the_start(program, backend))(first["param"], first["grad"])
    assert_same(to_numpy(backend, result), program.results[0])


@only_tensorflow
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_tf_function_of_three_steps(backend, program, compiled):
    first = program.inputs(backend, 1)
    grads = [backend.from_numpy(g) for g in program.grads]
    result = tf_function(compiled)(unrolled(program, backend))(first["param"], first["state"], grads)
    assert_same(to_numpy(backend, result), program.results[2])


@only_tensorflow
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_tf_function_masked_blocks_keep_their_bits(backend, numpy_backend, compiled):
    param = any_bits("finite", (8, 16), np.dtype(np.float32))
    options = {"base": SGD(), "rule": magma(p=0), "block_axes": (0,), "xp": backend.xp}
    p = backend.from_numpy(param)
    state = magma_core.init(p, **options)
    step = tf_function(compiled)(
        lambda p, s: magma_core.update(p, p, s, name="w", step=1, lr=0.1, seed=3, **options)[0]
    )
    assert_bits_equal(backend.to_numpy(step(p, state)), param)
