"""Steps in C on a CPU, as one custom call: NumPy's bits, and XLA's own operations where there can be no call."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import magma_native
import native_meshes
import numpy as np
import pytest
from jax.sharding import AxisType
from magma_conformance.bits import assert_bits_equal
from magma_conformance.processes.worker import Worker
from magma_jax import magma, namespace, planned, scale_by_magma, skip_update
from magma_jax.native import call, primitive
from native_steps import LAYOUTS, UNMASKED

from magma_core import AdamW, damping, init, plan_all
from magma_core import magma as core_magma

AXES = {name: LAYOUTS[name] for name in ("columns", "out of order", "scalar", "no columns")} | UNMASKED
"""Those that need a transposition, and others that are special; XLA compiles each for a second."""

GENERATOR = np.random.default_rng(0)


def tree(factor: float, dtype: Any = jnp.float32) -> dict[str, Any]:
    return {name: jnp.asarray(factor * GENERATOR.standard_normal(shape), dtype) for name, (shape, _) in AXES.items()}


PARAMS, GRADS = tree(1.0), [tree(0.1) for _ in range(3)]


def block_axes(name: str, leaf: Any) -> Any:
    return AXES[name][1]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which way steps went, in their order: by calls or by XLA."""
    taken: list[str] = []

    def watch(name: str, original: Any) -> None:
        def watched(self: Any, *arrays: Any) -> Any:
            taken.append(name)
            return original(self, *arrays)

        monkeypatch.setattr(primitive.Step, name, watched)

    watch("by_calls", primitive.Step.by_calls)
    watch("by_xla", primitive.Step.by_xla)
    jax.clear_caches()
    primitive._compiled.cache_clear()
    yield taken
    jax.clear_caches()
    primitive._compiled.cache_clear()


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_bits_equal(np.asarray(mine), np.asarray(theirs))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=["float32", "bfloat16", "float16"])
def test_every_function(ways: list[str], dtype: Any) -> None:
    """Steps, updates and alignments of all layouts at once, eager and jitted."""

    def results(jit: Any, kernels: bool | None) -> Any:
        optimizer = magma(0.01, block_axes=block_axes, lr_scale=0.75, kernels=kernels)
        step, update, alignment = map(jit, (optimizer.step, optimizer.update, optimizer.alignment))
        params, *every = (jax.tree.map(lambda x: x.astype(dtype), x) for x in (PARAMS, *GRADS))
        state, found = optimizer.init(params), []
        for grads in every:
            found += [alignment(grads, state, params), update(grads, state, params)]
            params, state = step(params, grads, state)
            found.append((params, state))
        return found

    jitted, eager = results(jax.jit, None), results(lambda function: function, None)
    assert set(ways) == {"by_calls"}
    expected = results(jax.jit, False)
    assert_same(jitted, expected)
    assert_same(eager, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda kernels: skip_update(0.1, block_axes=block_axes, kernels=kernels),
        lambda kernels: scale_by_magma("laprop", block_axes=block_axes, kernels=kernels),
        lambda kernels: magma(0.1, "sgd", block_axes=block_axes, float32_updates=True, kernels=kernels),
        lambda kernels: magma(0.1, decay="dense", block_axes=block_axes, cosine_momentum="before", kernels=kernels),
    ],
    ids=["without scores", "directions", "float32 updates", "dense decay"],
)
def test_updates(ways: list[str], make: Any) -> None:
    params, grads = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), x) for x in (PARAMS, GRADS[0]))
    (one, other) = (jax.jit(o.update)(grads, o.init(params), params) for o in (make(None), make(False)))
    assert_same(one, other)
    assert ways == ["by_calls", "by_xla"]


def test_directions_without_parameters(ways: list[str]) -> None:
    one, other = (scale_by_magma("adam", kernels=kernels) for kernels in (None, False))
    assert_same(*(jax.jit(o.update)(GRADS[0], o.init(GRADS[0])) for o in (one, other)))
    assert ways == ["by_calls", "by_xla"]


def test_numbers_that_are_arrays(ways: list[str]) -> None:
    """Also the seed, from which the keys are computed."""

    def stepped(kernels: bool | None) -> Any:
        def step(seed: Any, *numbers: Any) -> Any:
            names = ("learning_rate", "b1", "eps", "weight_decay", "p", "tau", "ema", "lr_scale")
            given = dict(zip(names, numbers, strict=True))
            optimizer = magma(**given, seed=seed, block_axes=block_axes, kernels=kernels)
            return optimizer.step(PARAMS, GRADS[0], optimizer.init(PARAMS))

        return jax.jit(step)(jnp.uint32(7), *map(jnp.float32, (0.1, 0.8, 1e-6, 0.1, 0.3, 1.5, 0.8, 2.1)))

    assert_same(stepped(None), stepped(False))
    assert ways == ["by_calls", "by_xla"]


def test_numbers_that_differ_by_leaf(ways: list[str]) -> None:
    """Of one formula, as a caller of `planned` may have them."""
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    grads = [x / 2 for x in params.values()]
    plans, states = [], []
    for name, decay in (("a", 0.1), ("b", 0.3)):
        options: dict[str, Any] = {"base": AdamW(weight_decay=decay), "rule": damping(), "xp": namespace}
        plans += plan_all([params[name]], names=[name], seed=1, block_axes={name: ()}, **options)
        states.append(init(params[name], block_axes=(), **options))
    states[1] = states[1]._replace(mu_power=states[0].mu_power, nu_power=states[0].nu_power)
    arguments = plans, list(params.values()), grads, states
    found = planned.update_planned(*arguments, step=1, lr=0.1, xp=namespace)
    with jax.disable_jit():
        assert_same(found, planned.update_planned(*arguments, step=1, lr=0.1, xp=namespace))
    assert ways == ["by_calls", "by_xla"]


def test_leaves_share_powers_and_rule() -> None:
    """They are advanced once: leaves that need others would get wrong bias corrections."""
    options: dict[str, Any] = {"base": AdamW(), "rule": damping(), "xp": namespace}
    x = jnp.ones(3)
    plans = plan_all([x, x], names=["a", "b"], seed=1, block_axes={"a": (), "b": ()}, **options)
    states = [init(x, block_axes=(), **options) for _ in plans]
    with pytest.raises(ValueError, match="share one rule and one base, and states their powers"):
        planned.update_planned(plans, [x, x], [x, x], states, step=1, lr=0.1, xp=namespace)
    plans[1] = plans[1]._replace(rule=core_magma(tau=3.0))
    with pytest.raises(ValueError, match="share one rule"):
        planned.update_planned(plans, [x, x], [x, x], states[:1] * 2, step=1, lr=0.1, xp=namespace)


def test_rates_are_inputs() -> None:
    """Eager steps of a schedule that gives numbers are one program."""
    optimizer = magma(lambda count: 0.1 / (1 + float(count)))
    params, state = P, optimizer.init(P)
    before = primitive._compiled.cache_info().misses
    for _ in range(3):
        params, state = optimizer.step(params, G, state)
    assert primitive._compiled.cache_info().misses == before + 1


def test_a_mesh_of_one_device(ways: list[str]) -> None:
    expected = jax.jit(small(False).step)(P, G, small(False).init(P))
    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(kind,))):
            assert_same(jax.jit(small(None).step)(P, G, small(None).init(P)), expected)
    assert ways == ["by_xla", "by_calls", "by_calls"]


def test_more_leaves_than_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "LEAVES", 3)
    one, other = (magma(0.1, block_axes=block_axes, kernels=kernels) for kernels in (None, False))
    state = one.init(PARAMS)
    program = jax.jit(one.step).lower(PARAMS, GRADS[0], state)
    assert program.as_text().count("@magma_") == 2 + 1  # four masked leaves, and one that is not
    assert_same(program.compile()(PARAMS, GRADS[0], state), jax.jit(other.step)(PARAMS, GRADS[0], state))


def test_threads_share_blocks_and_leaves(ways: list[str]) -> None:
    """Those of XLA: over chunks of a block of more than 2²⁰ elements, and over runs of smaller blocks."""
    shapes = {"large": (1100, 1000), "rows": (300, 700), **{f"small {i}": (64, 64) for i in range(20)}}
    params = {name: jnp.asarray(GENERATOR.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    grads = jax.tree.map(lambda x: x * jnp.exp2(jnp.linspace(-9.0, 9.0, x.size)).reshape(x.shape), params)
    one, other = (
        magma(0.1, block_axes=lambda name, leaf: (0,) if name == "rows" else (), kernels=kernels)
        for kernels in (None, False)
    )
    assert_same(*(jax.jit(o.step)(params, grads, o.init(params)) for o in (one, other)))
    assert ways == ["by_calls", "by_xla"]


def test_donated_arrays_are_written_in_place() -> None:
    optimizer = magma(0.1, block_axes=(0,))
    params = {"w": jnp.ones((1000, 100))}
    state = optimizer.init(params)
    program = jax.jit(optimizer.step, donate_argnums=(0, 2)).lower(params, params, state).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 5000 < 3 * 400_000 <= memory.alias_size_in_bytes


def test_what_is_not_donated_stays() -> None:
    optimizer = magma(0.1)
    state = optimizer.init(PARAMS)
    before = jax.tree.map(np.array, (PARAMS, GRADS[0], state))
    jax.block_until_ready((optimizer.step(PARAMS, GRADS[0], state), optimizer.update(GRADS[0], state, PARAMS)))
    assert_same((PARAMS, GRADS[0], state), before)


def small(kernels: bool | None, learning_rate: Any = 0.1) -> Any:
    return magma(learning_rate, kernels=kernels)


P = {"a": jnp.asarray(GENERATOR.standard_normal((8, 16)), jnp.float32), "b": jnp.ones(4)}
G = jax.tree.map(lambda x: x / 8, P)


def twice(x: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), x)


def vmapped(kernels: bool | None) -> Any:
    optimizer = small(kernels)
    return jax.jit(jax.vmap(optimizer.step))(twice(P), twice(G), twice(optimizer.init(P)))


def derivative(kernels: bool | None) -> Any:
    def loss(learning_rate: Any) -> Any:
        optimizer = small(kernels, learning_rate)
        params, _ = optimizer.step(P, G, optimizer.init(P))
        return sum(jnp.sum(x**2) for x in params.values())

    return jax.jit(jax.grad(loss))(jnp.float32(0.1))


def exported(kernels: bool | None) -> Any:
    arguments = P, G, small(kernels).init(P)
    return jax.export.export(jax.jit(small(kernels).step))(*arguments).call(*arguments)


@pytest.mark.parametrize("through", [vmapped, derivative, exported])
def test_xla_takes_over(ways: list[str], through: Callable[[bool | None], Any]) -> None:
    """Where there cannot be a call: in derivatives, under ``vmap``, and in programs for other machines."""
    assert_same(through(None), through(False))
    assert set(ways) == {"by_xla"}


@pytest.fixture(scope="module")
def two_devices() -> Iterator[Worker]:
    worker = Worker(native_meshes.ENVIRONMENT)
    yield worker
    worker.end()


@pytest.mark.parametrize("name", ["sharded", "explicit"])
def test_xla_splits(two_devices: Worker, name: str) -> None:
    """XLA would bring a call's arrays together on every device."""
    found, ways = two_devices.call(native_meshes.run, name, None)
    assert_same(found, two_devices.call(native_meshes.run, name, False)[0])
    assert ways == {"by_xla"}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", ["alike", "apart"])
def test_shard_map(two_devices: Worker, name: str, check_vma: bool) -> None:
    """Each device calls for itself."""
    found, ways = two_devices.call(native_meshes.run, name, None, check_vma)
    assert_same(found, two_devices.call(native_meshes.run, name, False, check_vma)[0])
    assert ways == {"by_calls"}


def test_control_flow(ways: list[str]) -> None:
    optimizer = small(None)

    def turn(carry: Any, grads: Any) -> Any:
        return jax.checkpoint(optimizer.step)(carry[0], grads, carry[1]), None

    def scanned(params: Any) -> Any:
        return jax.lax.scan(turn, (params, optimizer.init(params)), twice(G))[0]

    found = jax.jit(lambda params: jax.lax.cond(params["b"][0] > 0, scanned, scanned, params))(P)
    params, state = P, optimizer.init(P)
    for _ in range(2):
        params, state = small(False).step(params, G, state)
    assert_same(found, (params, state))
    assert "by_calls" in ways


def test_float64_is_left_to_xla(ways: list[str]) -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.ones(3, jnp.float64)}
        jax.jit(small(None).step)(params, params, small(None).init(params))
        jax.jit(scale_by_magma().update)(params, scale_by_magma().init(params))
    assert ways == ["by_xla", "by_xla"]


@pytest.mark.parametrize("kernels", [None, True])
def test_without_a_compiler(
    ways: list[str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, kernels: bool | None
) -> None:
    """Who asked for it hears of it."""

    def missing(*_: Any) -> Any:
        raise magma_native.CompilerMissing("there is no C compiler")

    monkeypatch.setattr(primitive, "find_compiler", missing)
    monkeypatch.setattr(primitive, "target", missing)
    found = jax.jit(small(kernels).step)(P, G, small(None).init(P))
    messages = [str(warning.message) for warning in recwarn]
    assert messages == ["the step is left to XLA, with the same results: there is no C compiler"] * bool(kernels)
    assert ways == ["by_xla"]
    monkeypatch.undo()
    assert_same(found, jax.jit(small(None).step)(P, G, small(None).init(P)))


def test_a_compiler_that_fails_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise magma_native.CompilerMissing("cc cannot compile a step")

    monkeypatch.setattr(primitive, "target", fails)
    jax.clear_caches()
    with pytest.warns(UserWarning, match="cc cannot compile a step"):
        jax.jit(small(None).step)(P, G, small(None).init(P))
