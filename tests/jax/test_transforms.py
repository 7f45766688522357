"""Under JAX's transformations and settings: always the bits of `magma_core` on NumPy, and the same kinds of arrays."""

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import magma_jax
import numpy as np
import optax
import pytest
from jax import lax
from magma_conformance.bits import assert_bits_equal
from magma_conformance.cases import inputs
from magma_jax import MagmaState, by_rule
from magma_numpy import namespace as xp

import magma_core
from magma_core import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule, damping, score_survival
from magma_core.config import BASES, SMALLEST

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Parameters, what is done with them, and the gradients that they are given."""

    params: Arrays
    grads: list[Arrays]
    rates: list[float]
    axes: dict[str, Any]
    base: Base
    rule: Rule
    seed: int = 3

    def reference(self) -> list[tuple[Arrays, dict[str, magma_core.State]]]:
        """On NumPy: parameters and states, before the first step and after each."""
        common: dict[str, Any] = {"base": self.base, "rule": self.rule, "xp": xp}
        names, params = list(self.params), self.params
        states = {name: magma_core.init(params[name], block_axes=self.axes[name], **common) for name in names}
        every = [(params, states)]
        for step, (grads, rate) in enumerate(zip(self.grads, self.rates, strict=True), 1):
            new, moved, _ = magma_core.update_all(
                *([tree[name] for name in names] for tree in (params, grads, states)),
                names=names,
                step=step,
                lr=rate,
                seed=self.seed,
                block_axes=self.axes,
                **common,
            )
            params, states = (dict(zip(names, each, strict=True)) for each in (new, moved))
            every.append((params, states))
        return every

    def optimizer(self, learning_rate: Any = None, **changed: Any) -> magma_jax.MagmaTransformation:
        options: dict[str, Any] = {"seed": self.seed, "block_axes": lambda name, leaf: self.axes[name], **changed}
        return by_rule(self.schedule if learning_rate is None else learning_rate, self.rule, self.base, **options)

    @property
    def schedule(self) -> Callable[[Any], Any]:
        rates = np.array(self.rates, np.float32)
        return lambda count: jnp.asarray(rates)[count]

    @property
    def stacked(self) -> Arrays:
        """The gradients of all steps, to be traced."""
        return {name: jnp.stack([grads[name] for grads in self.grads]) for name in self.params}


def assert_run(run: Run, params: Arrays, state: MagmaState, steps: int | None = None) -> None:
    """Everything after so many steps, or after all, is what NumPy has; dtypes are compared too."""
    steps = len(run.grads) if steps is None else steps
    expected_params, expected_states = expectation(run)[steps]
    assert_bits_equal(state.count, np.int32(steps), "count")
    for name, expected in expected_params.items():
        assert_bits_equal(params[name], expected, f"step {steps}, {name}")
        for field, value in expected_states[name]._asdict().items():
            actual = getattr(state, field)
            if isinstance(actual, dict):
                actual = actual[name]
            if value is not None:
                assert_bits_equal(actual, value, f"step {steps}, {field} of {name}")
            else:  # running products are there for all leaves or for none
                assert actual is None


_expectations: dict[int, tuple[Run, Any]] = {}


def expectation(run: Run) -> Any:
    """`Run.reference`, computed once."""
    if id(run) not in _expectations:
        _expectations[id(run)] = run, run.reference()
    return _expectations[id(run)][1]


def assert_trees(actual: Any, expected: Any) -> None:
    for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert_bits_equal(x, y)


# Every base and rule, hard values


LEAVES: dict[str, tuple[str, tuple[int, ...], Any]] = {
    "rows": ("float32", (4, 6), (0,)),
    "stack": ("bfloat16", (2, 3, 2), (2, 0)),
    "tensor": ("float16", (7,), ()),
    "plain": ("float32", (3,), None),
}
MASKED = [name for name, (_, _, axes) in LEAVES.items() if axes is not None]
RULES: dict[str, Callable[..., Rule]] = {
    "magma": magma_core.magma,
    "skip_update": magma_core.skip_update,
    "damping": damping,
    "survival": score_survival,
    "survival_damped": functools.partial(score_survival, damped=True),
}


def hard_run(base: str, rule: str, decay: Any) -> Run:
    """Each kind of gradient once; those that leave infinities and NaNs behind come last, but for an ordinary one.

    One masked leaf is enough to compile; which one goes round, so that every base and every rule meets them all.
    Beside it under one rule, which matters little there, is a leaf that is not masked.
    """
    turn = list(BASES).index(base) + list(RULES).index(rule) + (decay == "dense")
    leaves = {name: LEAVES[name] for name in (MASKED[turn % len(MASKED)], *["plain"][: rule == "magma"])}
    rng = np.random.default_rng(zlib.crc32(f"{base}/{rule}/{decay}".encode()))
    kinds = [*rng.permutation([kind for kind in inputs.KINDS if kind not in inputs.POISON]), *inputs.POISON, "normal"]
    config: Any = BASES[base]()
    return Run(
        params={name: inputs.make_mixture(shape, fmt, rng) for name, (fmt, shape, _) in leaves.items()},
        grads=[{name: inputs.make(kind, leaves[name][1], leaves[name][0], rng) for name in leaves} for kind in kinds],
        rates=[float(np.float32(10 ** rng.uniform(-4, 0))) for _ in kinds],
        axes={name: axes for name, (_, _, axes) in leaves.items()},
        base=config if base == "adam" else replace(config, weight_decay=0.05),
        rule=RULES[rule](decay=decay),
        seed=int(rng.integers(2**63)),
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("base", BASES)
def test_jit_update(base: str, rule: str) -> None:
    run = hard_run(base, rule, "masked")
    # XLA flushes subnormal operands of an addition, so `update` promises nothing for them; `step` does
    params = {name: np.where(abs(x) < 2.0**-126, x.dtype.type(0), x) for name, x in run.params.items()}
    run = replace(run, params=params)
    maker = getattr(magma_jax, rule, None)
    optimizer = run.optimizer(float32_updates=True)
    if maker:  # those that have a name of their own
        axes = lambda name, leaf: run.axes[name]  # noqa: E731
        optimizer = maker(run.schedule, run.base, seed=run.seed, block_axes=axes, float32_updates=True)

    @jax.jit
    def step(params: Arrays, grads: Arrays, state: MagmaState) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, run.params)
    state = optimizer.init(params)
    assert_run(run, params, state, 0)
    for count, grads in enumerate(run.grads, 1):
        params, state = step(params, grads, state)
        assert_run(run, params, state, count)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("base", BASES)
def test_scan_step(base: str, rule: str) -> None:
    run = hard_run(base, rule, "dense")
    every = scanned(run.optimizer(), run.params, run.stacked)
    for count in range(1, len(run.grads) + 1):
        assert_run(run, *jax.tree.map(lambda x, i=count - 1: x[i], every), count)


@functools.partial(jax.jit, static_argnums=0)
def scanned(optimizer: Any, params: Arrays, stacked: Arrays) -> Any:
    """Parameters and states after each step."""

    def body(carry: Any, grads: Arrays) -> Any:
        carry = optimizer.step(carry[0], grads, carry[1])
        return carry, carry

    return lax.scan(body, (params, optimizer.init(params)), stacked)[1]


# Ordinary training, for all that follows


RATE = 0.05


def small_run(variant: int = 0, leaves: Sequence[str] = ("rows", "tensor"), **changed: Any) -> Run:
    """Five steps with finite gradients of many magnitudes."""
    rng = np.random.default_rng(variant)
    shapes = {name: LEAVES[name][1] for name in leaves}
    kinds = ["normal", "wide", "outlier", "zeros", "powers"]
    run = Run(
        params={name: inputs.make("normal", shape, "float32", rng) for name, shape in shapes.items()},
        grads=[{name: inputs.make(kind, shape, "float32", rng) for name, shape in shapes.items()} for kind in kinds],
        rates=[RATE] * len(kinds),
        axes={name: LEAVES[name][2] for name in leaves},
        base=AdamW(weight_decay=0.1),
        rule=magma_core.magma(),
    )
    return replace(run, **changed)


SMALL = small_run()
ROWS = small_run(leaves=["rows"])


def eager(function: Any) -> Any:
    return function


COMPILERS: dict[str, Any] = {"eager": eager, "jit": jax.jit}


def test_fori_loop() -> None:
    optimizer, stacked = SMALL.optimizer(RATE), SMALL.stacked

    def body(i: Any, carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(lambda x: x[i], stacked), state, params)
        return optax.apply_updates(params, updates), state

    start = jax.tree.map(jnp.asarray, SMALL.params)
    assert_run(SMALL, *lax.fori_loop(0, len(SMALL.grads), body, (start, optimizer.init(start))))


# vmap


SEEDS = {
    "magma": np.array([1, 2**31, 2**32 - 1], np.uint32),
    "skip_update": np.array([0, 5, 2**31 - 1], np.int32),
    "survival_damped": np.array([6, 2**40 + 6, 2**63 - 1], np.int64),
}


@pytest.mark.parametrize("rule", SEEDS)
def test_vmap_over_seeds_and_rates(rule: str) -> None:
    """The traced seed and rate of each lane have the bits of the Python numbers."""
    run = replace(ROWS, rule=RULES[rule]())
    seeds, rates = SEEDS[rule], np.array([1e-4, 0.05, 0.3], np.float32)

    @jax.jit
    @jax.vmap
    def lanes(seed: Any, rate: Any) -> Any:
        return scanned(run.optimizer(rate, seed=seed), run.params, run.stacked)

    with jax.enable_x64(True) if seeds.dtype == np.int64 else nullcontext():
        params, state = lanes(jnp.asarray(seeds), jnp.asarray(rates))
    for i, (seed, rate) in enumerate(zip(seeds, rates, strict=True)):
        single = replace(run, seed=int(seed), rates=[float(rate)] * len(run.grads))
        for count in range(1, len(run.grads) + 1):
            assert_run(single, *jax.tree.map(lambda x, place=(i, count - 1): x[place], (params, state)), count)


@pytest.mark.parametrize("rule", ["magma", "survival"])
def test_vmap_over_an_ensemble(rule: str) -> None:
    members = [small_run(variant, ["rows"], rule=RULES[rule]()) for variant in range(3)]
    optimizer = members[0].optimizer(RATE)
    step = jax.jit(jax.vmap(optimizer.step))

    def stack(trees: list[Arrays]) -> Arrays:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    params = stack([member.params for member in members])
    state = jax.vmap(optimizer.init)(params)
    for count in range(len(SMALL.grads)):
        params, state = step(params, stack([member.grads[count] for member in members]), state)
        for i, member in enumerate(members):
            assert_run(member, *jax.tree.map(lambda x, i=i: x[i], (params, state)), count + 1)


# Donation, compilation


@pytest.mark.parametrize("compile_init", COMPILERS)
def test_donation(compile_init: str) -> None:
    """Every leaf has a buffer of its own, from the initial state on, so that parameters and state can be given away."""
    optimizer = SMALL.optimizer(RATE)
    init, step = COMPILERS[compile_init](optimizer.init), jax.jit(optimizer.step, donate_argnums=(0, 2))
    kept = jax.tree.map(jnp.array, SMALL.params)
    spare = init(kept)
    for _ in range(2):
        params = jax.tree.map(jnp.array, SMALL.params)
        state = init(params)
        for grads in SMALL.grads:
            given = jax.tree.leaves((params, state))
            params, state = step(params, grads, state)
            assert all(x.is_deleted() for x in given)
        assert_run(SMALL, params, state)
    assert_run(SMALL, kept, spare, 0)


@pytest.mark.parametrize("compile_init", COMPILERS)
@pytest.mark.parametrize("scheduled", [False, True])
def test_compiles_once(compile_init: str, scheduled: bool) -> None:
    optimizer = SMALL.optimizer(None if scheduled else RATE)
    step = jax.jit(optimizer.step)
    params = jax.tree.map(jnp.asarray, SMALL.params)
    state = COMPILERS[compile_init](optimizer.init)(params)
    for grads in SMALL.grads:
        params, state = step(params, grads, state)
    assert step._cache_size() == 1
    assert_run(SMALL, params, state)


@contextmanager
def compilations() -> Iterator[list[str]]:
    seen: list[str] = []

    def listen(event: str, seconds: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(str(details))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_eager_steps_compile_nothing_new() -> None:
    """After the first step, and for a second optimizer from the first."""
    shape = (3, 13)  # that no other test has compiled for

    def train(steps: int) -> None:
        optimizer = SMALL.optimizer(RATE, block_axes=(0,))
        params = {"w": jnp.ones(shape)}
        state = optimizer.init(params)
        for _ in range(steps):
            params, state = optimizer.step(params, params, state)

    with compilations() as seen:
        train(1)
    assert seen
    with compilations() as seen:
        train(3)
    assert seen == []


# Settings


@contextmanager
def x64_config() -> Iterator[None]:
    """As programs set it, for all threads."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@contextmanager
def strict_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@contextmanager
def debug() -> Iterator[None]:
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


SETTINGS: dict[str, Callable[[], Any]] = {
    "defaults": nullcontext,
    "x64": lambda: jax.enable_x64(True),
    "x64-config": x64_config,
    "strict-promotion": strict_promotion,
    "debug-nans": debug,
    "checking-leaks": jax.checking_leaks,
    "disable-jit": jax.disable_jit,
}
PLACES = {"init": (True, False), "update": (False, True), "both": (True, True)}
SKIPPED = {
    ("checking-leaks", "eager"): "takes a minute, and there are no tracers to leak",
    ("disable-jit", "eager"): "is what jit does there",
}
TRIED = [(setting, compiler, "both") for setting in SETTINGS for compiler in COMPILERS]
TRIED = [row for row in TRIED if row[:2] not in SKIPPED]
TRIED += [("x64", compiler, place) for compiler in COMPILERS for place in ("init", "update")]


def assert_kinds(tree: Any) -> None:
    """Strong types of the contract: the count is int32, all else float32."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        assert x.dtype == (jnp.int32 if "count" in jax.tree_util.keystr(path) else jnp.float32), path
        assert not jax.typeof(x).weak_type, path


@pytest.mark.parametrize(("setting", "compiler", "place"), TRIED)
def test_settings(setting: str, compiler: str, place: str) -> None:
    """Whatever is set around init, update or both, results and kinds are the same."""
    around_init, around_update = (SETTINGS[setting] if here else nullcontext for here in PLACES[place])
    compiled = compiler == "jit" and setting != "disable-jit"
    run = SMALL if compiled and place == "both" else ROWS  # each operation on each shape is compiled otherwise
    optimizer = run.optimizer(RATE)
    update = COMPILERS[compiler](optimizer.update)
    params, grads = jax.tree.map(jnp.asarray, (run.params, run.grads))
    with around_init():
        state = COMPILERS[compiler](optimizer.init)(params)
    assert_kinds(state)
    with around_update():
        for count, grad in enumerate(grads, 1):
            updates, state = update(grad, state, params)
            params = optax.apply_updates(params, updates)
            assert_kinds((updates, state))
            assert_run(run, params, state, count)


def test_weak_types_do_not_creep_in() -> None:
    """Not even from parameters and gradients of weak types."""
    params = {"w": jnp.asarray(1.5)}
    assert jax.typeof(params["w"]).weak_type
    optimizer = SMALL.optimizer(RATE, block_axes=())
    state = optimizer.init(params)
    updates, new = optimizer.update(params, state, params)
    assert_kinds((state, updates, new))
    assert_kinds(optimizer.step(params, params, state))


@pytest.mark.parametrize("kind", ["none", "float0", "int32"])
def test_leaves_that_are_not_floats(kind: str) -> None:
    """They stay, whatever stands in for their gradients; float0 is what `jax.grad` says with ``allow_int``."""
    params = {"w": jnp.array([1.0, 2.0]), "index": jnp.arange(3)}
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    assert grads["index"].dtype == jax.dtypes.float0
    grads |= {"none": {"index": None}, "float0": {}, "int32": {"index": jnp.zeros(3, jnp.int32)}}[kind]
    optimizer = by_rule(RATE, damping(), "sgd")
    state = optimizer.init(params)
    new, state = jax.jit(lambda p, s: optimizer.step(p, grads, s))(params, state)
    assert_bits_equal(new["index"], params["index"])
    assert state.mu["index"] is None
    assert np.all(new["w"] < params["w"])
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    if kind == "none":  # optax's addition cannot do with it
        assert updates["index"] is None
    else:
        assert_trees(optax.apply_updates(params, updates), new)


# Shapes and programs before values


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, jax.typeof(x).weak_type), tree)


def test_eval_shape() -> None:
    optimizer = ROWS.optimizer(RATE)
    params, grads = jax.tree.map(jnp.asarray, (ROWS.params, ROWS.grads[0]))
    state = optimizer.init(params)
    abstract = jax.eval_shape(optimizer.init, params)
    assert shapes(abstract) == shapes(state)
    for function, arguments in {
        optimizer.update: (grads, state, params),
        optimizer.step: (params, grads, state),
    }.items():
        assert shapes(jax.eval_shape(function, *arguments)) == shapes(function(*arguments))


def test_compiled_ahead_of_time() -> None:
    optimizer = ROWS.optimizer(RATE)
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, ROWS.params))
    state = jax.eval_shape(optimizer.init, abstract)
    step = jax.jit(optimizer.step).lower(abstract, abstract, state).compile()
    params = jax.tree.map(jnp.asarray, ROWS.params)
    state = optimizer.init(params)
    for grads in ROWS.grads:
        params, state = step(params, grads, state)
    assert_run(ROWS, params, state)


# Hyper-parameters that are arrays


OF_RULE = {"p": 0.3, "tau": 0.7, "ema": 0.6, "initial_score": 0.2}
OF_BASE = {"b1": 0.8, "b2": 0.95, "eps": 1e-4, "weight_decay": 0.1}
EDGES = {"ema": 0.0, "initial_score": 0.0, "b1": 0.0, "b2": 0.0, "weight_decay": 0.0, "eps": SMALLEST}
COMBINATIONS = {
    "magma-adamw": ("magma", "adamw", [*OF_RULE], [*OF_BASE]),
    "magma-laprop": ("magma", "laprop", [*OF_RULE], [*OF_BASE]),
    "skip_update-rmsprop": ("skip_update", "rmsprop", ["p"], ["b2", "eps", "weight_decay"]),
    "skip_update-sgd": ("skip_update", "sgd", ["p"], ["weight_decay"]),
}


def numbers_run(combination: str, values: dict[str, float], decay: Any, run: Run) -> tuple[Run, Arrays]:
    """A run under these numbers, and those of them that belong to its rule and base."""
    rule, base, of_rule, of_base = COMBINATIONS[combination]
    given = {name: float(np.float32(values[name])) for name in (*of_rule, *of_base)}
    config = {{"b1": "beta1", "b2": "beta2"}.get(name, name): given[name] for name in of_base}
    of_rule_values = {name: given[name] for name in of_rule}
    return replace(run, rule=RULES[rule](decay=decay, **of_rule_values), base=BASES[base](**config)), given


def with_numbers(combination: str, run: Run, rate: Any, given: Arrays) -> magma_jax.MagmaTransformation:
    rule, base, _, _ = COMBINATIONS[combination]
    axes = lambda name, leaf: run.axes[name]  # noqa: E731
    maker = getattr(magma_jax, rule)
    return maker(rate, base, decay=run.rule.decay, seed=run.seed, block_axes=axes, **given)


GIVEN: dict[str, Callable[[Any], Any]] = {
    "jax arrays": lambda x: jnp.asarray(x, jnp.float32),
    "NumPy arrays": lambda x: np.array(x, np.float32),
    "NumPy float64 arrays": np.array,
}
OTHERS = ["NumPy arrays", "NumPy float64 arrays"]


@pytest.mark.parametrize(
    ("combination", "given"),
    [*((combination, "jax arrays") for combination in COMBINATIONS), *(("magma-adamw", other) for other in OTHERS)],
)
def test_numbers_in_a_closure(combination: str, given: str) -> None:
    run, numbers = numbers_run(combination, OF_RULE | OF_BASE, "masked", ROWS)
    rate = GIVEN[given](float(np.float32(RATE)))
    optimizer = with_numbers(combination, run, rate, {name: GIVEN[given](x) for name, x in numbers.items()})
    params, state = jax.tree.map(lambda x: x[-1], scanned(optimizer, run.params, run.stacked))
    assert_run(run, params, state)


@pytest.mark.parametrize(
    ("combination", "values", "decay"),
    [
        *((combination, values, "masked") for combination in COMBINATIONS for values in ("ordinary", "edges")),
        ("magma-laprop", "ordinary", "dense"),
        ("magma-adamw", "edges", "dense"),
        ("skip_update-sgd", "edges", "dense"),
    ],
)
def test_numbers_as_arguments(combination: str, values: str, decay: str) -> None:
    """Also at the ends of their ranges, where Python numbers leave parts of the formulas out."""
    edges = EDGES | {"p": 1.0 if decay == "masked" else 0.0}
    chosen = OF_RULE | OF_BASE | (edges if values == "edges" else {})
    hard = hard_run("adamw", "survival", "masked")
    hard.params["rows"][:, 0] = [-0.0, 2.0**-110, np.inf, 1.0]  # which a decay of 0 must not touch
    run, numbers = numbers_run(combination, chosen, decay, hard)

    @jax.jit
    def step(params: Arrays, grads: Arrays, state: MagmaState, rate: Any, numbers: Arrays) -> Any:
        return with_numbers(combination, run, rate, numbers).step(params, grads, state)

    params = jax.tree.map(jnp.asarray, run.params)
    state = with_numbers(combination, run, RATE, numbers).init(params)
    for count, (grads, rate) in enumerate(zip(run.grads, run.rates, strict=True), 1):
        params, state = step(params, grads, state, rate, numbers)
        assert_run(run, params, state, count)
    assert step._cache_size() == 1


# Gradients through steps


def loss(x: Any) -> Any:
    return jnp.sum(jnp.sin(x) * (1 + 0.1 * x))


def moments(base: Any, g: Any, mu: Any, nu: Any, t: int) -> tuple[Any, Any, Any]:
    """Direction, μ and ν in plain formulas."""
    if isinstance(base, SGD):
        mu = base.momentum * mu + g
        return mu, mu, nu
    nu = base.beta2 * nu + (1 - base.beta2) * g**2
    if isinstance(base, RMSProp):
        return g / (jnp.sqrt(nu) + base.eps), mu, nu
    root = jnp.sqrt(nu / (1 - base.beta2**t)) + base.eps
    mu = base.beta1 * mu + (1 - base.beta1) * (g / root if isinstance(base, LaProp) else g)
    direction = mu / (1 - base.beta1**t)
    return direction if isinstance(base, LaProp) else direction / root, mu, nu


def closed_form(rate: Any, x: Any, base: Any, factors: list[Any]) -> Any:
    """The loss after steps in which the products of masks and weights are constants that are given."""
    mu = nu = 0.0
    for t, factor in enumerate(factors, 1):
        direction, mu, nu = moments(base, jax.grad(loss)(x), mu, nu, t)
        x = x - rate * factor * (direction + base.weight_decay * x)
    return loss(x)


EPS = 0.1  # large, or derivatives of g / (√ν + ε) are small differences of large numbers
GRADIENTS = [
    ("update", SGD(weight_decay=0.1), magma_core.skip_update()),
    ("step", RMSProp(eps=EPS), magma_core.magma()),
    ("step", Adam(eps=EPS), magma_core.skip_update()),
    ("update", AdamW(eps=EPS, weight_decay=0.1), magma_core.magma()),
    ("update", LaProp(eps=EPS), score_survival(damped=True)),
]


@pytest.mark.parametrize(("method", "base", "rule"), GRADIENTS, ids=[type(base).__name__ for _, base, _ in GRADIENTS])
def test_gradient_through_steps(method: str, base: Base, rule: Rule) -> None:
    """By the learning rate and by the initial parameters; masks and scores count as constants."""
    run = replace(ROWS, base=base, rule=rule)

    def after_two(rate: Any, x: Any) -> Any:
        optimizer, seen = run.optimizer(rate), []
        params = {"rows": x}
        state = optimizer.init(params)
        for _ in range(2):
            grads = jax.grad(lambda p: loss(p["rows"]))(params)
            seen.append(optimizer.alignment(grads, state, params)["rows"])
            if method == "step":
                params, state = optimizer.step(params, grads, state)
            else:
                updates, state = optimizer.update(grads, state, params)
                params = optax.apply_updates(params, updates)
        return loss(params["rows"]), seen

    start = np.float32(0.3), run.params["rows"]
    (value, seen), slopes = jax.jit(jax.value_and_grad(after_two, (0, 1), has_aux=True))(*start)
    weights = [1 / rule.p if rule.weight == "inverse_p" else np.float64(one.score) for one in seen]
    factors = [np.where(one.keep, weight, 0.0)[:, None] for one, weight in zip(seen, weights, strict=True)]
    assert len({np.count_nonzero(x) for x in factors} - {0, 4}), "a step in which some are kept, and some not"
    with jax.enable_x64(True):
        exact = jax.jit(jax.value_and_grad(lambda rate, x: closed_form(rate, x, base, factors), (0, 1)))
        expected_value, expected = exact(*map(np.float64, start))
    # float32 against float64, over two steps: derivatives are JAX's own, and no bits are promised of them
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for actual, other in zip(slopes, expected, strict=True):
        assert np.max(np.abs(other)) > 0.01
        np.testing.assert_allclose(actual, other, rtol=0, atol=1e-4 * np.max(np.abs(other)))
