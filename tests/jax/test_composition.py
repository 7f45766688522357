"""Our transformations inside optax: the bits of magma_core wherever they are guaranteed, and the known exceptions.

The reference is always `Core`: magma_core on NumPy, given the same gradients.
"""

import copy
import dataclasses
import doctest
import functools
import importlib
import inspect
import pkgutil
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import magma_jax
import ml_dtypes
import numpy as np
import optax
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_jax import (
    MagmaState,
    by_rule,
    magma,
    scale_by_magma,
    scale_by_skip_update,
    skip_update,
    wrap,
    wrap_magma,
    wrap_skip_update,
)
from magma_numpy import namespace as xp
from signatures import REQUIRED, check_defaults, check_documented, check_refused

import magma_core
from magma_core import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule, damping, score_survival
from magma_core.config import SEED

MODULES = [module.name for module in pkgutil.walk_packages(magma_jax.__path__, "magma_jax.")]
WRAPPERS = [wrap, wrap_magma, wrap_skip_update]
FUNCTIONS = [by_rule, magma, skip_update, scale_by_magma, scale_by_skip_update, *WRAPPERS]
POSITIONAL = {"learning_rate", "rule", "base", "inner"}

BASES = [SGD(nesterov=True, weight_decay=0.1), RMSProp(weight_decay=0.1), Adam(), AdamW(), LaProp(weight_decay=0.1)]
RULES = [magma_core.magma(), magma_core.skip_update(p=0.3), damping(momentum="before"), score_survival()]
MIXED = [(BASES[0], RULES[1]), (BASES[1], RULES[3]), (BASES[3], RULES[0]), (BASES[4], RULES[2])]

RATES = [0.05, 0.2, 2.0**-96]
"""Of three steps. The last moves parameters by so little that it can bring them within 2⁻¹⁰⁰ of 0, without being 0."""

SHAPES = {"w": (6, 4), "b": (3,), "plain": (5,)}
AXES: dict[str, Any] = {"w": (0,), "b": (), "plain": None}
"""Rows, one block, and a leaf whose update is that of the base alone."""

Arrays = dict[str, Any]


def axes_of(name: str, leaf: Any) -> Any:
    del leaf
    return AXES[name]


def parameters(dtype: Any = np.float32) -> Arrays:
    """With −0, values that flush to 0, infinities and NaN in every row of w."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    params["w"][:, 0] = -0.0
    params["w"][:, 1] = [np.nan, np.inf, -np.inf, np.nan, np.inf, -np.inf]
    params["w"][:, 2] = 2.0**-101
    return params


def gradients(step: int, dtype: Any = np.float32) -> Arrays:
    """Of many magnitudes, with zeros, and an infinity in the last row of w at the second step."""
    rng = np.random.default_rng(step)
    grads = {}
    for name, shape in SHAPES.items():
        grads[name] = np.ldexp(rng.normal(size=shape), rng.integers(-8, 2, shape)).astype(dtype)
        grads[name].flat[1:4] = [0.0, -0.0, 2.0**-101][: max(0, grads[name].size - 1)]
    if step == 2:
        grads["w"][5, 3] = np.inf
    return grads


class Core:
    """The same steps by magma_core on NumPy; arrays by the names of their leaves."""

    def __init__(self, params: Arrays, base: Base, rule: Rule, axes: Mapping[str, Any] | None = None, seed: int = SEED):
        self.params = {name: np.array(x) for name, x in params.items()}
        self.axes = {name: (axes or {}).get(name, ()) for name in params}
        self.count, self.seed = 0, seed
        self.options: Any = {"base": base, "rule": rule, "xp": xp}
        self.states = {
            name: magma_core.init(x, name=name, block_axes=self.axes[name], **self.options)
            for name, x in self.params.items()
        }
        self.reports: dict[str, Any] = {}

    def step(self, grads: Arrays, lr: float) -> "Core":
        self.count += 1
        names = list(self.params)
        each = ([arrays[name] for name in names] for arrays in (self.params, grads, self.states))
        done = magma_core.update_all(
            *each, names=names, step=self.count, lr=lr, seed=self.seed, block_axes=self.axes, **self.options
        )
        self.params, self.states, self.reports = (dict(zip(names, x, strict=True)) for x in done)
        return self

    def check(self, params: Any = None, state: Any = None, seen: Any = None) -> None:
        """The same bits; None is not looked at."""
        if params is not None:
            check_arrays(flat(params), self.params, "params")
        if state is not None:
            assert int(state.count) == self.count
            for field in ("mu", "nu", "score"):
                expected = {name: getattr(own, field) for name, own in self.states.items()}
                tree = getattr(state, field)
                check_arrays(dict.fromkeys(expected) if tree is None else flat(tree), expected, field)
            for own in self.states.values():
                check_arrays(
                    {field: getattr(state, field) for field in ("mu_power", "nu_power")},
                    {field: getattr(own, field) for field in ("mu_power", "nu_power")},
                    "powers",
                )
        if seen is not None:
            for name, alignment in seen.items():
                own = {**self.reports[name]._asdict(), "score": self.states[name].score}
                check_arrays(alignment._asdict(), own, name)
            assert set(seen) == {name for name, report in self.reports.items() if report.keep is not None}


def check_arrays(actual: Arrays, expected: Arrays, where: str) -> None:
    assert actual.keys() == expected.keys(), where
    for name, x in expected.items():
        if x is None:
            assert actual[name] is None, f"{where} {name}"
        else:
            assert_bits_equal(actual[name], x, f"{where} {name}")


def flat(tree: Any, prefix: str = "") -> Arrays:
    """Leaves of dictionaries and lists by their path, None among them."""
    if not isinstance(tree, dict | list | tuple):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        name: x for key, branch in items for name, x in flat(branch, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def jitted(optimizer: Any) -> Callable[..., tuple[Any, Any]]:
    """(grads, state, params) -> (new params, new state), as users write it."""

    @jax.jit
    def run(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return run


def name_of(value: Any) -> str:
    if isinstance(value, Rule):
        return f"{value.survival}.{value.weight}.{value.p}"
    return getattr(value, "__name__", None) or type(value).__name__


SKIP = functools.partial(skip_update, 0.1, "sgd", seed=3)
SKIP_CORE = functools.partial(Core, base=SGD(), rule=magma_core.skip_update(), seed=3)


# Bits


def check_three_steps(base: Base, rule: Rule, dtype: Any = np.float32, **options: Any) -> None:
    optimizer = by_rule(lambda count: jnp.asarray(RATES)[count], rule, base, block_axes=axes_of, seed=5, **options)
    run, core = jitted(optimizer), Core(parameters(dtype), base, rule, AXES, seed=5)
    params, state, kept = core.params, optimizer.init(core.params), []
    core.check(params, state)
    for step, rate in enumerate(RATES, 1):
        grads = gradients(step, dtype)
        if step == len(RATES):
            core.params = params = close_to_zero(core, grads, rate)
        params, state = run(grads, state, params)
        core.step(grads, rate).check(params, state)
        kept.append(core.reports["w"].keep)
    assert np.any(kept), "otherwise nothing has been moved"
    assert np.all(kept) == (rule == damping(momentum="before"))


def close_to_zero(core: Core, grads: Arrays, rate: float) -> Arrays:
    """Parameters that the next step brings to within 2⁻¹⁰⁰ of 0, and others that come out just beyond."""
    dry = copy.copy(core)
    dry.params = {name: np.zeros_like(x) for name, x in core.params.items()}
    dry.step(grads, rate)
    params, flushed = {}, 0
    for name, x in dry.params.items():
        change = np.where(np.isfinite(x), -x, 1).astype(np.float64)
        distance = np.arange(x.size).reshape(x.shape) % 17 - 8
        params[name] = (change + 2.0**-103 * distance).astype(x.dtype)
        left = abs(params[name] - change)
        flushed += np.sum((x != 0) & (left > 0) & (left < 2.0**-100))
    assert flushed or x.dtype == np.float16, "all of this is 0 in float16"
    return params


@pytest.mark.parametrize("rule", RULES, ids=name_of)
@pytest.mark.parametrize("base", BASES, ids=name_of)
def test_float32_updates_add_up_to_the_bits_of_the_contract(base: Base, rule: Rule) -> None:
    check_three_steps(base, rule)


@pytest.mark.parametrize(
    ("dtype", "base", "rule"),
    [
        (ml_dtypes.bfloat16, *MIXED[0]),
        (np.float16, *MIXED[1]),
        (np.float16, *MIXED[2]),
        (ml_dtypes.bfloat16, *MIXED[3]),
    ],
    ids=name_of,
)
def test_half_precision_with_float32_updates(dtype: Any, base: Base, rule: Rule) -> None:
    check_three_steps(base, rule, dtype, float32_updates=True)


@pytest.mark.parametrize(
    ("dtype", "base", "rule"),
    [
        (np.float32, SGD(weight_decay=0.1), magma_core.magma(decay="dense")),
        (ml_dtypes.bfloat16, AdamW(), score_survival(damped=True, decay="dense")),
        (np.float16, RMSProp(), magma_core.skip_update()),
    ],
    ids=name_of,
)
def test_step_and_alignment(dtype: Any, base: Base, rule: Rule) -> None:
    """Any format, any rule, any bits of a parameter that is not moved; and ``update`` sees what ``step`` sees."""
    optimizer = by_rule(0.1, rule, base, block_axes=axes_of)
    core = Core(parameters(dtype), base, rule, AXES)
    core.params["w"][:, 3] = np.array([1, 2, 3, 4, 5, 6], f"u{np.dtype(dtype).itemsize}").view(dtype)  # subnormal
    params, state = core.params, optimizer.init(core.params)

    @jax.jit
    def run(grads: Any, state: Any, params: Any) -> Any:
        _, after = optimizer.update(grads, state, params)
        return optimizer.step(params, grads, state), after, optimizer.alignment(grads, state, params)

    for step in (1, 2):
        grads = gradients(step, dtype)
        (params, state), after, seen = run(grads, state, params)
        core.step(grads, 0.1).check(params, state, seen)
        core.check(state=after)
    assert not np.all(core.reports["w"].keep)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32], ids=name_of)
def test_updates_have_the_dtype_of_parameters(dtype: Any) -> None:
    """They are those in float32, rounded."""
    params, grads = parameters(dtype), gradients(1, dtype)
    rounded, exact = (
        jax.jit(lambda g, p, o=o: o.update(g, o.init(p), p)[0])(grads, params)
        for o in (skip_update(0.1, "sgd", float32_updates=exactly) for exactly in (False, True))
    )
    for name in params:
        assert exact[name].dtype == np.float32
        assert_bits_equal(rounded[name], np.asarray(exact[name]).astype(dtype), name)


def test_subnormal_parameters_need_step() -> None:
    """What is documented at by_rule: where the platform flushes them, an addition loses those that are not moved."""
    optimizer = SKIP(block_axes=(0,))
    core = SKIP_CORE({"w": np.tile(np.float32([1e-40, -1e-45, 2.0**-126]), (16, 1))}, axes={"w": (0,)})
    params, grads, state = dict(core.params), {"w": np.ones((16, 3), np.float32)}, optimizer.init(core.params)
    # not in one program with the addition, in which XLA adds nothing where nothing is moved
    core.step(grads, 0.1).check(optimizer.step(params, grads, state)[0])
    updates, _ = jax.jit(optimizer.update)(grads, state, params)
    moved = np.asarray(jax.jit(optax.apply_updates)(params, updates)["w"])
    kept = core.reports["w"].keep
    flushed = np.asarray(jax.jit(jnp.add)(params["w"], np.full_like(params["w"], -0.0)))
    assert_bits_equal(moved[kept], core.params["w"][kept])
    assert_bits_equal(moved[~kept], flushed[~kept])
    assert kept.any()
    assert not kept.all()


def test_dense_decay_needs_step() -> None:
    """What is documented at by_rule: there are the bits only where old and new are within a factor of two."""
    rng = np.random.default_rng(0)
    base, rule = SGD(weight_decay=1.0), magma_core.skip_update(decay="dense")
    core = Core({"w": rng.normal(size=(8, 64)).astype(np.float32)}, base, rule, {"w": (0,)})
    grads = {"w": (rng.normal(size=(8, 64)) * (1 - np.arange(8)[:, None] % 2)).astype(np.float32)}
    optimizer = by_rule(0.7, rule, base, block_axes=(0,))
    params, state = dict(core.params), optimizer.init(core.params)
    moved, after = jitted(optimizer)(grads, state, params)
    stepped, _ = jax.jit(optimizer.step)(params, grads, state)
    core.step(grads, 0.7).check(stepped, after)
    old, new, found = params["w"], core.params["w"], np.asarray(moved["w"])
    close = (new / old >= 0.5) & (new / old <= 2)
    assert_bits_equal(found[close], new[close])
    assert close.any()
    assert np.any(found != new), "otherwise there would be no exception"
    assert np.all(abs(found - new) <= np.spacing(np.maximum(abs(new), abs(old))))


# Learning rates and hyper-parameters


@pytest.mark.parametrize("kind", ["number", "array", "schedule"])
def test_learning_rates_of_any_kind_are_the_same(kind: str) -> None:
    core = Core(parameters(), SGD(), magma_core.skip_update(p=1.0))
    state, params = skip_update(0.1, "sgd", p=1.0).init(core.params), core.params
    calls = []

    def schedule(count: Any) -> Any:
        calls.append(count)
        return jnp.float32([0.1, 0.3])[count]

    for step, rate in enumerate([0.1, 0.3], 1):
        given = {"number": rate, "array": jnp.float32(rate), "schedule": schedule}[kind]
        params, state = jitted(skip_update(given, "sgd", p=1.0))(gradients(step), state, params)
        core.step(gradients(step), rate).check(params, state)
    assert len(calls) == (2 if kind == "schedule" else 0)


def test_schedules_are_called_with_the_number_of_steps_done() -> None:
    seen = []
    optimizer = skip_update(lambda count: seen.append(int(count)) or 0.1, "sgd")
    params = {"w": jnp.ones(())}
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(params, state, params)
    optimizer.step(params, params, state)
    optimizer.alignment(params, state, params)
    assert seen == [0, 0, 1, 2, 2], "init looks at the first value"


INJECTED = [
    {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.3, "p": 0.7, "tau": 0.6, "ema": 0.55, "initial_score": 0.9},
    {"b1": 0.5, "b2": 0.999, "eps": 1e-4, "weight_decay": 0.0, "p": 0.3, "tau": 3.0, "ema": 0.1, "initial_score": 0.9},
]


def binary32(value: float) -> float:
    return float(np.float32(value))


def injected_core(params: Arrays, numbers: Mapping[str, float], **options: Any) -> Core:
    """With the numbers that the arrays are."""
    own = {name: binary32(value) for name, value in numbers.items()}
    base = AdamW(beta1=own["b1"], beta2=own["b2"], eps=own["eps"], weight_decay=own["weight_decay"])
    rule = magma_core.magma(**{name: own[name] for name in ("p", "tau", "ema", "initial_score")})
    return Core(params, base, rule, **options)


def test_injected_hyperparameters() -> None:
    """And others from one step to the next."""
    make = optax.inject_hyperparams(magma, static_args=("block_axes",))
    optimizer = make(0.1, seed=11, block_axes=axes_of, **INJECTED[0])
    finite = {name: np.nan_to_num(x, posinf=1, neginf=-1) for name, x in parameters().items()}
    core = injected_core(finite, INJECTED[0], axes=AXES, seed=11)
    state, params, run = optimizer.init(core.params), core.params, jitted(optimizer)
    assert set(state.hyperparams) == {"learning_rate", "lr_scale", "seed", *INJECTED[0]}
    for step, (rate, seed) in enumerate([(0.1, 11), (0.1, 11), (0.3, 2**31 - 1)], 1):
        if step == 3:
            other = injected_core(finite, INJECTED[1])
            core.options, core.seed = other.options, seed
            for name, value in {"learning_rate": rate, **INJECTED[1]}.items():
                state.hyperparams[name] = jnp.float32(value)
            state.hyperparams["seed"] = jnp.int32(seed)
        params, state = run(gradients(step), state, params)
        core.step(gradients(step), binary32(rate)).check(params, state.inner_state)


def test_injected_schedules() -> None:
    """Of any number, with the steps that inject_hyperparams has counted."""
    optimizer = optax.inject_hyperparams(skip_update)(
        optax.linear_schedule(0.5, 0.25, 2), "sgd", p=optax.constant_schedule(1.0)
    )
    core = Core(parameters(), SGD(), magma_core.skip_update(p=1.0))
    state, params, run = optimizer.init(core.params), core.params, jitted(optimizer)
    for step, rate in enumerate([0.5, 0.375, 0.25], 1):
        params, state = run(gradients(step), state, params)
        core.step(gradients(step), rate).check(params, state.inner_state)


EXTREMES: dict[str, list[float]] = {
    "p": [0.0, 1.0, 2.0**-26, 1 - 2.0**-24],
    "tau": [2.0**-100, 1e30],
    "ema": [0.0, 1 - 2.0**-24],
    "initial_score": [0.0, 1.0, 2.0**-101],
    "b1": [0.0, 1 - 2.0**-24],
    "b2": [0.0, 1 - 2.0**-24],
    "eps": [2.0**-100, 1e30],
    "weight_decay": [0.0, 2.0**-101, 1e30],
}


@pytest.fixture(scope="module", params=["masked", "dense"])
def given_arrays(request: Any) -> tuple[str, Callable[..., Any]]:
    """A function of hyper-parameters, which are arrays to the transformation: compiled once for all of them."""

    @jax.jit
    def run(numbers: Any, grads: Any, params: Any) -> Any:
        optimizer = magma(0.1, "adamw", decay=request.param, block_axes=axes_of, **numbers)
        state = optimizer.init(params)
        return state, *optimizer.step(params, grads, state)

    return request.param, run


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in EXTREMES.items() for value in values])
def test_an_array_is_the_number_that_it_is(given_arrays: Any, name: str, value: float) -> None:
    decay, run = given_arrays
    numbers = {**INJECTED[0], name: value}
    core = injected_core(parameters(), numbers, axes=AXES)
    core.options["rule"] = dataclasses.replace(core.options["rule"], decay=decay)
    start, params, state = run({key: jnp.float32(x) for key, x in numbers.items()}, gradients(1), core.params)
    core.check(state=start)
    core.step(gradients(1), 0.1).check(params, state)


# Transformations of optax around ours, and beside it


def nested() -> Any:
    rng = np.random.default_rng(1)
    w, b, head = (np.abs(rng.normal(size=shape)).astype(np.float32) for shape in ((4, 3), (3,), (5,)))
    return {"layers": [{"w": w, "b": b}], "head": head}


def nested_gradients(step: int) -> Any:
    """In 1/16, so that a mean of two is exact."""
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: (rng.integers(-16, 16, x.shape) / 16).astype(np.float32), nested())


def part(tree: Any, *names: str) -> Arrays:
    return {name: x for name, x in flat(tree).items() if name in names}


@pytest.mark.parametrize("kind", ["masked", "partition", "multi_transform"])
def test_leaves_by_label_keep_their_names_and_masks(kind: str) -> None:
    names = ("layers.0.b", "head")
    labels = {"layers": [{"w": "theirs", "b": "ours"}], "head": "ours"}
    if kind == "masked":
        optimizer = optax.masked(SKIP(), jax.tree.map(lambda label: label == "ours", labels))
    else:
        optimizer = getattr(optax, kind)({"ours": SKIP(), "theirs": optax.sgd(0.5)}, labels)
    params, run = nested(), jitted(optimizer)
    core, state, kept = SKIP_CORE(part(params, *names)), optimizer.init(params), []
    for step in range(1, 5):
        params, state = run(nested_gradients(step), state, params)
        core.step(part(nested_gradients(step), *names), 0.1).check(part(params, *names))
        kept += [bool(report.keep) for report in core.reports.values()]
    assert len(set(kept)) == 2
    assert optax.tree.get(state, "count") == 4


def test_multi_steps_is_one_step_with_the_mean() -> None:
    optimizer = optax.MultiSteps(magma(0.1, seed=3), every_k_schedule=2)
    params, run = nested(), jitted(optimizer)
    core, state = Core(flat(params), AdamW(), magma_core.magma(), seed=3), optimizer.init(params)
    for step in (1, 2):
        halves = [nested_gradients(2 * step), nested_gradients(2 * step + 1)]
        params, state = run(halves[0], state, params)
        core.check(params)
        params, state = run(halves[1], state, params)
        core.step(flat(jax.tree.map(lambda x, y: (x + y) / 2, *halves)), 0.1).check(params)
    assert optax.tree.get(state, "count") == 2


def test_apply_if_finite_leaves_no_trace_of_a_nan() -> None:
    optimizer = optax.apply_if_finite(SKIP(), max_consecutive_errors=3)
    params, run = nested(), jitted(optimizer)
    core, state = SKIP_CORE(flat(params)), optimizer.init(params)
    for step in (1, 2):
        broken = nested_gradients(step)
        broken["layers"][0]["w"][1, 1] = np.nan
        params, state = run(broken, state, params)
        core.check(params)
        params, state = run(nested_gradients(step), state, params)
        core.step(flat(nested_gradients(step)), 0.1).check(params)
    assert (state.total_notfinite, state.inner_state.count) == (2, 2)


def test_a_model_that_is_one_vector_warns() -> None:
    """All of it would be one block. What has a name, or other blocks, or no masks, is meant so."""
    with pytest.warns(UserWarning, match=r"params is one vector, .*Do not put optax.flatten around"):
        optax.flatten(magma(0.1)).init({"w": jnp.ones((2, 3)), "b": X})
    for tree, axes in ((X, (0,)), (X, None), ({"x": X}, ()), (X[0], ()), (np.ones((2, 2), np.float32), ())):
        magma(0.1, block_axes=axes).init(tree)


def test_chain() -> None:
    """The gradients have a norm of 4, so that clipping is exact."""
    optimizer = optax.chain(optax.clip_by_global_norm(2.0), SKIP())
    params, run = {"w": np.ones((2, 4), np.float32), "b": np.ones(8, np.float32)}, jitted(optimizer)
    core, state = SKIP_CORE(params), optimizer.init(params)
    for step in (1, 2, 3):
        signs = np.sign(np.random.default_rng(step).normal(size=16)).astype(np.float32)
        grads = {"w": signs[:8].reshape(2, 4), "b": signs[8:]}
        params, state = run(grads, state, params)
        core.step({name: x / 2 for name, x in grads.items()}, 0.1).check(params, state[1])


def test_scale_by_is_the_direction() -> None:
    """Where θ is 0 and lr is 1, the contract's step is the direction; a scale beside ours is its own rounding."""
    core = Core(jax.tree.map(np.zeros_like, flat(nested())), AdamW(weight_decay=0.0), magma_core.magma(), seed=3)
    alone = scale_by_magma(seed=3)
    chained = optax.chain(alone, optax.scale_by_learning_rate(0.3))
    state, states = alone.init(nested()), chained.init(nested())
    for step in (1, 2, 3):
        grads = nested_gradients(step)
        core.params = {name: np.zeros_like(x) for name, x in core.params.items()}
        core.step(flat(grads), 1.0)
        directions, state = jax.jit(alone.update)(grads, state)
        updates, states = jax.jit(chained.update)(grads, states)
        expected = {name: 0 - x for name, x in core.params.items()}
        check_arrays(flat(directions), expected, "directions")
        check_arrays(flat(updates), {name: np.float32(-0.3) * x for name, x in expected.items()}, "updates")
        core.check(state=state)
        core.check(state=states[0])


def test_step_without_a_learning_rate_takes_1() -> None:
    optimizer = scale_by_skip_update("sgd", seed=3)
    core = SKIP_CORE(flat(nested())).step(flat(nested_gradients(1)), 1.0)
    core.check(*jax.jit(optimizer.step)(nested(), nested_gradients(1), optimizer.init(nested())))


def test_map_params() -> None:
    """Moments and scores belong to parameters; the count and the running products do not."""
    optimizer = optax.chain(magma(0.1), optax.identity())
    state = optax.tree.map_params(optimizer, lambda x: 2 * x + 1, optimizer.init(nested()))[0]
    ones = jax.tree.map(np.ones_like, nested())
    expected = MagmaState(0, ones, ones, 1.0, 1.0, jax.tree.map(lambda x: np.float32(2), nested()))
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), state, expected))


@pytest.mark.parametrize("make", [magma, skip_update, scale_by_magma, scale_by_skip_update])
def test_extra_arguments_are_taken_and_not_needed(make: Any) -> None:
    rate = () if make in (scale_by_magma, scale_by_skip_update) else (0.1,)
    optimizer = make(*rate, "sgd")
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    assert optax.with_extra_args_support(optimizer) is optimizer
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    more = optax.chain(optimizer, optax.identity())
    plain, extra = (
        jax.eval_shape(lambda more=more: optimizer.update(params, state, params, **more))
        for more in ({}, {"value": 1.0})
    )
    assert plain == extra
    jax.eval_shape(lambda: more.update(params, more.init(params), params, value=1.0, unheard_of=None))


# Trees and leaves

Pair = namedtuple("Pair", ["first", "second"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any = None


X = np.ones(2, np.float32)
TREES: dict[str, tuple[Any, list[str]]] = {
    "dict": ({"params": {"dense_0": {"kernel": X}}}, ["params.dense_0.kernel"]),
    "list": ([X, [X]], ["0", "1.0"]),
    "tuple": ((X, {"a": (X,)}), ["0", "1.a.0"]),
    "namedtuple": (Pair(X, {"w": X}), ["first", "second.w"]),
    "dataclass": ({"layer": Layer(X, X)}, ["layer.kernel", "layer.bias"]),
    "integer keys": ({1: X, 10: X}, ["1", "10"]),
    "leaf": (X[0], [""]),
    "None": ({"a": None, "b": X}, ["b"]),
    "masked": ({"a": optax.MaskedNode(), "b": X}, ["b"]),
    "empty": ({}, []),
}


@pytest.mark.parametrize("kind", TREES)
def test_names_are_paths(kind: str) -> None:
    tree, names = TREES[kind]
    optimizer = magma(0.1)
    seen = jax.eval_shape(lambda: optimizer.alignment(tree, optimizer.init(tree), tree))
    assert sorted(seen) == sorted(names)


def test_names_key_the_masks() -> None:
    """As ``name`` makes them: two trees with other paths have the same masks if their names are the same."""
    params = {"params": {"layers": [{"kernel": np.ones((16, 2), np.float32)}]}}
    renamed = SKIP(name=lambda path: path.removeprefix("params.") + "!", block_axes=(0,))
    core = SKIP_CORE({"layers.0.kernel!": params["params"]["layers"][0]["kernel"]}, axes={"layers.0.kernel!": (0,)})
    core.step(core.params, 0.1)
    moved, _ = jitted(renamed)(params, renamed.init(params), params)
    assert_bits_equal(moved["params"]["layers"][0]["kernel"], core.params["layers.0.kernel!"])
    assert len(set(core.reports["layers.0.kernel!"].keep)) == 2


def test_keys_with_dots_are_told_apart_by_the_parts_of_a_path() -> None:
    params = {"a.b": {"c": X}, "a": {"b.c": 2 * X}}
    optimizer = magma(0.1, name=lambda path: "/".join(path.parts))
    seen = jax.eval_shape(lambda: optimizer.alignment(params, optimizer.init(params), params))
    assert sorted(seen) == ["a.b/c", "a/b.c"]


@pytest.mark.parametrize("tree", [{}, (), {"a": None}, [{}, optax.MaskedNode()]], ids=str)
def test_trees_without_leaves(tree: Any) -> None:
    optimizer = magma(0.1)
    state = optimizer.init(tree)
    updates, after = optimizer.update(tree, state, tree)
    assert updates == tree
    assert jax.tree.structure(state) == jax.tree.structure(after)
    params, after = optimizer.step(tree, tree, state)
    assert params == tree
    assert after.count == 1
    assert optimizer.alignment(tree, state, tree) == {}


OUTSIDE = {
    "None": (None, None),
    "MaskedNode": (optax.MaskedNode(), optax.MaskedNode()),
    "floats without a gradient": (X, None),
    "integers without a gradient": (np.int32([1, 2]), None),
    "integers": (np.int32([1, 2]), np.zeros(2, np.int32)),
    "integers, as jax.grad has it": (np.int32([1, 2]), np.zeros(2, jax.dtypes.float0)),
    "a function": (jnp.tanh, None),
    "a function, in the gradients too": (jnp.tanh, jnp.tanh),
    "custom_jvp": (jax.nn.relu, None),
    "a string": ("relu", "relu"),
    "an array of strings": (np.array(["relu", "tanh"]), None),
    "a type": (np.float32, np.float32),
    "a key": (jax.random.key(0), None),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_leaves_that_take_no_part(kind: str) -> None:
    """They stay as they are, and change nothing for the others."""
    param, grad = OUTSIDE[kind]
    params, grads = {"w": X, "x": param}, {"w": 0.5 * X, "x": grad}
    optimizer, core = SKIP(p=1.0), SKIP_CORE({"w": X}, rule=magma_core.skip_update(p=1.0)).step({"w": 0.5 * X}, 0.1)
    state = optimizer.init(params)
    stepped, after = optimizer.step(params, grads, state)
    updates, also = optimizer.update(grads, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(also) == jax.tree.structure(state)
    assert_bits_equal(stepped["w"], core.params["w"])
    assert stepped["x"] is param or jax.tree.all(jax.tree.map(np.array_equal, stepped["x"], param))
    assert_bits_equal(optax.apply_updates({"w": X}, {"w": updates["w"]})["w"], core.params["w"])
    if kind == "integers":  # optax itself adds neither None nor float0
        assert_bits_equal(optax.apply_updates(params, updates)["x"], param)


def test_a_leaf_without_a_gradient_for_a_step_keeps_its_state() -> None:
    optimizer = SKIP(p=1.0)
    params = {"a": X, "b": X}
    state = optimizer.init(params)
    _, state = optimizer.update({"a": X, "b": X}, state, params)
    updates, after = optimizer.update({"a": X, "b": None}, state, params)
    assert updates["b"] is None
    assert_bits_equal(after.mu["b"], state.mu["b"])
    assert_bits_equal(after.mu["a"], np.float32([1.9, 1.9]))


@pytest.mark.parametrize(
    "number", [1.0, np.float32(1), np.ones((), np.float32), jnp.ones(())], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("traced", [False, True])
def test_scalars_of_any_kind(number: Any, traced: bool) -> None:
    """As optax's own optimizers take them."""
    params = {"w": number}
    optimizer = SKIP(p=1.0)
    run = jitted(optimizer) if traced else jitted(optimizer).__wrapped__
    moved, state = run({"w": 0.5}, optimizer.init(params), params)
    core = SKIP_CORE({"w": np.ones((), np.float32)}, rule=magma_core.skip_update(p=1.0))
    core.step({"w": np.array(0.5, np.float32)}, 0.1).check(moved, state)
    stepped, _ = (jax.jit(optimizer.step) if traced else optimizer.step)(params, {"w": 0.5}, optimizer.init(params))
    core.check(stepped)


def test_float64_leaves_are_computed_in_float32() -> None:
    """θ keeps its digits; what is added to it has those of float32, and the state too."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {"w": 1 + rng.normal(size=(64,)) * 2.0**-30}
        rate = 2.0**-20
        optimizer = skip_update(rate, "sgd", p=1.0)
        state, velocity, exact = optimizer.init(params), np.zeros(64), params["w"]
        stepped, moved, other = params, params, state
        for _ in range(5):
            grads = {"w": rng.normal(size=(64,))}
            velocity = 0.9 * velocity + grads["w"]
            assert np.max(abs(velocity)) < 8
            exact = exact - rate * velocity
            stepped, state = jax.jit(optimizer.step)(stepped, grads, state)
            moved, other = jitted(optimizer)(grads, other, moved)
        for found in (stepped["w"], moved["w"]):
            assert found.dtype == np.float64
            # at each step roundings of the gradient, the velocity and the rest of it, each for up to five steps
            assert 0 < np.max(abs(found - exact)) < 5 * 5 * 3 * rate * 8 * 2.0**-24
        assert state.mu["w"].dtype == other.mu["w"].dtype == np.float32
        still, _ = jitted(skip_update(0.0, "sgd", p=1.0))(grads, other, params)
        assert_bits_equal(still["w"], params["w"])


# What the user sees


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_defaults_are_those_of_the_core(function: Any) -> None:
    """A default stands in magma_core.config and nowhere else."""
    own = {**dict.fromkeys(POSITIONAL - {"base"}, REQUIRED), "moment": None, "name": None, "specs": None}
    check_defaults(
        function,
        own | {"float32_updates": False, "kernels": None, "weight_decay_mask": None},
        base="adam" if "scale" in function.__name__ else "adamw",
    )
    for name, parameter in inspect.signature(function).parameters.items():
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (name not in POSITIONAL), name


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_misspelt_arguments_are_refused(function: Any) -> None:
    examples = {"learning_rate": 0.1, "rule": damping(), "inner": optax.sgd(0.1)}
    given = [examples[name] for name in inspect.signature(function).parameters if name in examples]
    check_refused(function, *given)


@pytest.mark.parametrize("function", WRAPPERS, ids=name_of)
def test_wrappers_refuse_numbers_of_a_base(function: Any) -> None:
    """They are the business of what is wrapped."""
    given = [damping()] if function is wrap else []
    with pytest.raises(TypeError, match="eps"):
        function(optax.sgd(0.1), *given, eps=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_arguments_are_documented_in_order(function: Any) -> None:
    check_documented(function)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module), verbose=False)
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples in {module} failed, see above"


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_public_functions_have_an_example(function: Any) -> None:
    """So that the test above tests something."""
    assert doctest.DocTestFinder().find(function, function.__name__)[0].examples
    assert function.__name__ in magma_jax.__all__
