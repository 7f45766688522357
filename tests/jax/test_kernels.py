"""The CUDA kernels in Pallas' interpreter on the CPU, in tiles of a few elements: NumPy's bits.

test_ptx.py reads their PTX. No kernel has run on a device.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from magma_conformance.bits import assert_bits_equal
from magma_conformance.cases.pairwise import Case
from magma_conformance.implementations import jax_adapter
from magma_conformance.runner.jobs import open_implementation, run_case
from magma_jax import MagmaState, by_rule, magma
from magma_jax.gpu import kernels, tiles
from magma_jax.native import primitive

from magma_core.blocks import Blocks

TILE = 16


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kernels where there is no CUDA; the names of those that were traced."""
    traced: list[str] = []
    run = tiles.Tiles.run

    def watched(self: tiles.Tiles, body: Callable[..., None], *arguments: Any) -> Any:
        traced.append(body.__name__)
        return run(self, body, *arguments)

    monkeypatch.setattr(tiles.Tiles, "run", watched)
    monkeypatch.setattr(tiles, "TILE", TILE)
    monkeypatch.setattr(tiles, "LEAST", 1)
    monkeypatch.setattr(tiles, "INTERPRET", True)
    monkeypatch.setattr(primitive.Step, "can_call", lambda *_: False)
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    jax.clear_caches()
    with jax.enable_x64(True):  # the interpreter lowers outside of the scope in which the kernel was traced
        yield traced
    jax.clear_caches()


CASES = [
    Case(base, rule, shape, blocks, fmt, "s0=0.5", "after", decay, options)
    for base, rule, shape, blocks, fmt, decay, options in [
        ("adamw", "magma", "matrix", "tensor", "float32", "masked", "default"),
        ("adamw", "magma", "stack", "rows", "bfloat16", "masked", "other"),
        ("adam", "survival", "matrix", "rows", "float32", "none", "default"),
        ("adamw", "survival-damped", "vector", "tensor", "float16", "dense", "default"),
        ("laprop", "magma", "matrix", "tensor", "float32", "dense", "other"),
        ("rmsprop", "magma", "stack", "tensor", "float32", "masked", "default"),
        ("sgd", "magma", "matrix", "rows", "float32", "masked", "other"),
        ("rmsprop", "damping", "matrix", "rows", "bfloat16", "dense", "other"),
    ]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_cases(interpreted: list[str], case: Case) -> None:
    """Twelve hard steps each, with blocks of several tiles, the last of them short: as the suite asks a device."""
    result = run_case(jax_adapter.Kernels("magma_jax kernels", jax_adapter._mode("cpu")), case)
    assert (result.status, result.steps) == ("equal", 12), result.reason
    assert set(interpreted) == {"moments", "recount", "move"}


@pytest.mark.parametrize("mode", ["scan", "apply"])
def test_modes(interpreted: list[str], monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(jax_adapter, "by_rule", lambda *given, **named: by_rule(*given, **{**named, "kernels": True}))
    case = Case("adamw", "magma", "stack", "rows", "float16", "s0=0.5", "after", "masked", "default")
    result = run_case(open_implementation("magma_jax", mode, "cpu"), case)
    assert (result.status, result.steps) == ("equal", 12), result.reason
    assert ("move" in interpreted) == (mode == "scan")  # updates to add are written by XLA


def steps(optimizer: Any, grads: list[Any], **jit: Any) -> tuple[Any, MagmaState]:
    params = jax.tree.map(lambda x: jnp.asarray(X[: x.shape[0]]), grads[0])
    state = optimizer.init(params)
    for grad in grads:
        params, state = jax.jit(optimizer.step, **jit)(params, grad, state)
    return params, state


X, Y = (np.random.default_rng(i).standard_normal((6, 40), dtype=np.float32) for i in range(2))


def same(one: Any, other: Any) -> None:
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert_bits_equal(np.asarray(mine), np.asarray(theirs))


GROWING = Y * np.exp2(np.linspace(-40, 40, Y.size, dtype=np.float32)).reshape(Y.shape)


@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
@pytest.mark.parametrize("block_axes", [(), (0,)])
def test_tiles_are_counted_again(interpreted: list[str], block_axes: tuple[int, ...], order: int) -> None:
    """Where tiles grow, every one but the last takes a grid that is not the block's."""
    grads = [{"w": jnp.asarray(GROWING[::order, ::order])}] * 2
    found = steps(magma(0.1, block_axes=block_axes, kernels=True), grads)
    same(found, steps(magma(0.1, block_axes=block_axes), grads))


@pytest.mark.parametrize("of_grad", [0, 1, 2])
@pytest.mark.parametrize("of_mu", [0, 1, 2])
def test_each_of_the_grids(interpreted: list[str], of_mu: int, of_grad: int) -> None:
    """The second half of momentum and gradient is by so many powers of two larger than the first."""
    rng = np.random.default_rng(0)
    mu, grad = (
        (rng.uniform(0.6, 0.74, Y.shape) * rng.choice([-1, 1], Y.shape) * 2.0 ** (n * (np.arange(6) > 2))[:, None])
        for n in (of_mu, of_grad)
    )
    params, grads = {"w": jnp.asarray(X)}, {"w": jnp.asarray(np.float32(grad / 1024))}
    state = magma(0.1).init(params)._replace(mu={"w": jnp.asarray(np.float32(mu))})
    same(*(jax.jit(magma(0.1, kernels=kernels).step)(params, grads, state) for kernels in (True, False)))


def test_a_tile_that_is_not_counted_again_shows(interpreted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_exponent", lambda peak: jnp.zeros((), jnp.int64))
    grads = [{"w": jnp.asarray(GROWING)}]
    found, right = (steps(magma(0.1, kernels=k), grads)[1].score["w"] for k in (True, False))
    assert found != right


def test_infinities_in_one_tile_are_those_of_the_block(interpreted: list[str]) -> None:
    for place in [0, -1]:
        grad = Y.copy()
        grad[:, place] = np.inf
        grads = [{"w": jnp.asarray(grad)}]
        for axes in [(), (0,)]:
            same(*(steps(magma(0.1, block_axes=axes, kernels=k), grads) for k in (True, False)))


def test_blocks_that_are_dropped_keep_their_bits(interpreted: list[str]) -> None:
    optimizer = magma(0.1, p=0.0, kernels=True)
    params = {"w": jnp.asarray(np.float32([np.nan, -0.0, 1e-40, 1, np.inf] * 8))}
    state = optimizer.init(params)
    new, _ = jax.jit(optimizer.step)(params, jax.tree.map(jnp.ones_like, params), state)
    assert_bits_equal(np.asarray(new["w"]).view(np.int32), np.asarray(params["w"]).view(np.int32))


def test_hyper_parameters_that_are_arrays(interpreted: list[str]) -> None:
    def step(kernels: bool, b1: Any, decay: Any, *arguments: Any) -> Any:
        return magma(0.1, b1=b1, weight_decay=decay, kernels=kernels).step(*arguments)

    params = {"w": jnp.asarray(X)}
    arguments = [jnp.float32(0.8), jnp.float32(0.2), params, {"w": jnp.asarray(Y)}, magma(0.1).init(params)]
    same(*(jax.jit(partial(step, k))(*arguments) for k in (True, False)))


def test_parts_of_a_sharded_array(interpreted: list[str]) -> None:
    """On one device; the checking of types has to be off, for kernels have none."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    optimizer = magma(0.1, kernels=True, specs=lambda name, leaf: P("x"))
    mapped = jax.shard_map(optimizer.step, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    params, grads = {"w": jnp.asarray(X)}, {"w": jnp.asarray(Y)}
    same(jax.jit(mapped)(params, grads, magma(0.1).init(params)), steps(magma(0.1), [grads]))


def test_parts_of_one_array_that_vmap_goes_over(interpreted: list[str]) -> None:
    """They exchange what parts on several devices do; what is largest lies in the last."""
    optimizer = magma(0.1, kernels=True, specs=lambda name, leaf: P("x"))
    params, grads = {"w": jnp.asarray(X)}, {"w": jnp.asarray(GROWING)}
    state = magma(0.1).init(params)
    axes = MagmaState(None, 0, 0, None, None, None)
    mapped = jax.vmap(optimizer.step, (0, 0, axes), (0, axes), axis_name="x")
    cut, whole = (partial(jax.tree.map, lambda x, s=shape: x.reshape(s)) for shape in ((3, 2, 40), (6, 40)))
    new, after = jax.jit(mapped)(cut(params), cut(grads), state._replace(mu=cut(state.mu), nu=cut(state.nu)))
    same((whole(new), after._replace(mu=whole(after.mu), nu=whole(after.nu))), steps(magma(0.1), [grads]))


def test_vmap_over_seeds(interpreted: list[str]) -> None:
    def step(seed: jax.Array, kernels: bool) -> Any:
        params = {"w": jnp.asarray(X)}
        optimizer = magma(0.1, seed=seed, block_axes=(0,), kernels=kernels)
        return optimizer.step(params, {"w": jnp.asarray(Y)}, optimizer.init(params))

    found, right = (jax.vmap(partial(step, kernels=kernels))(jnp.arange(5)) for kernels in (True, False))
    same(found, right)


# Lowered for CUDA, which needs neither a device nor its plugin


def lowered(optimizer: Any, platform: str, grads: Any) -> str:
    arguments = (grads, grads, jax.eval_shape(optimizer.init, grads))
    with jax.checking_leaks():
        return jax.jit(optimizer.step).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_leaves_that_are_alike_are_lowered_once() -> None:
    grads = {name: jax.ShapeDtypeStruct((64, 128), jnp.float32) for name in "abc"}
    text = lowered(magma(0.1, kernels=True), "cuda", grads)
    assert text.count("__gpu$xla.gpu.triton") == 3


@pytest.mark.parametrize("base", ["adamw", "laprop"])
def test_nothing_but_arguments_enters_the_program(base: str) -> None:
    """A fence that one branch had made for another would be an argument that nobody passes."""
    grads = {name: jax.ShapeDtypeStruct((64, 128), jnp.float32) for name in "abc"}
    optimizer = magma(0.1, base, kernels=True)
    arguments = (jnp.float32(0.9), grads, grads, jax.eval_shape(optimizer.init, grads))

    def step(b1: Any, *arguments: Any) -> Any:
        return magma(0.1, base, b1=b1, kernels=True).step(*arguments)

    text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    head = text[text.index("@main(") : text.index("->", text.index("@main("))]
    assert head.count("%arg") == len(jax.tree.leaves(arguments))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "rocm"])
def test_elsewhere_there_are_none(platform: str) -> None:
    grads = {"w": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
    assert "triton" not in lowered(magma(0.1, kernels=True), platform, grads)


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((512, 1024), (), (1, 2**19, 4096)),
        ((8, 3000), (0,), (8, 3000, 4096)),
        ((1025,), (), (1, 1025, 2048)),
        ((2, 3, 2000), (0, 1), (6, 2000, 2048)),
        ((2, 3, 2000), (1, 0), None),  # blocks in another order than their memory
        ((3000, 8), (1,), None),  # scattered
        ((1000,), (), None),  # small
        ((2**16, 2**15), (), None),  # places beyond int32
    ],
)
def test_how_parameters_are_cut(shape: tuple[int, ...], axes: tuple[int, ...], expected: object) -> None:
    assert tiles.Tiles.of(Blocks(shape, axes)) == expected


def test_rules_that_gain_nothing_have_none() -> None:
    grads = {"w": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
    for optimizer in (magma(0.1, cosine_momentum="before", kernels=True), magma(0.1, block_axes=lambda *_: None)):
        assert "triton" not in lowered(optimizer, "cuda", grads)
