"""CUDA's division and square root, run on the CPU under jit, where XLA contracts: NumPy's bits.

The starts are perturbed on purpose, since CUDA's are approximations. The tests take seconds. With a number of minutes,
this file is a program that draws new operands for that long:

    PYTHONPATH=tests/helpers python tests/jax/test_rounding.py 10
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fence_tasks import mismatch, mode, task
from jax import lax
from magma_conformance.bits import assert_bits_equal
from magma_conformance.device import operands
from magma_conformance.device.operands import right_quotients, right_roots
from magma_jax import namespace
from magma_jax.gpu import rounding

COUNT = 2**19
STARTS = [-3, -2, -1, 0, 1, 2, 3]
SPECIAL = np.float32([0, 1, 1 + 2**-23, 2 - 2**-23, 3, 2.0**-126, 2.0**-100, 2.0**127, 3.4028235e38, np.inf, np.nan])
SPECIAL = np.concatenate([SPECIAL, -SPECIAL])


def off_by(units: int, start: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A start that is wrong in its last place."""

    def perturbed(*operands: jax.Array) -> jax.Array:
        bits = lax.bitcast_convert_type(start(*operands), jnp.int32)
        return lax.bitcast_convert_type(bits + units, jnp.float32)

    return perturbed


def quotients(units: int) -> Callable[..., jax.Array]:
    return jax.jit(partial(rounding.quotient, start=off_by(units, lax.div)))


def roots(units: int) -> Callable[..., jax.Array]:
    return jax.jit(partial(rounding.root, start=off_by(units, lax.sqrt)))


def draw(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fewer operands than a device is asked for."""
    a, b = operands.PAIRS[kind](rng)
    return a[:COUNT], b[:COUNT]


@cache
def binades() -> tuple[np.ndarray, np.ndarray]:
    """All numbers in [1, 4), and their roots; those of all others are these, with another exponent."""
    x = operands.binades()
    return x, right_roots(x)


def exponents() -> np.ndarray:
    """Every exponent, 256 significands each, and the first and last numbers of each."""
    low = np.unique(np.r_[0:4, 2**23 - 4 : 2**23, np.random.default_rng(0).integers(2**23, size=256)])
    return (np.arange(256)[:, None] * 2**23 + low).astype(np.int32).view(np.float32).ravel()


@pytest.mark.parametrize("kind", operands.PAIRS)
@pytest.mark.parametrize("units", STARTS)
def test_quotients(kind: str, units: int) -> None:
    a, b = draw(kind, np.random.default_rng(units + 3))
    assert_bits_equal(np.asarray(quotients(units)(a, b)), right_quotients(a, b))


@pytest.mark.parametrize("units", STARTS)
def test_quotients_of_every_pair_of_exponents(units: int) -> None:
    a, b = np.broadcast_arrays(*np.meshgrid(exponents()[::53], exponents()[::59]))
    assert_bits_equal(np.asarray(quotients(units)(a, b)), right_quotients(a, b))


@pytest.mark.parametrize("units", [-3, 0, 3])
def test_roots_of_two_binades(units: int) -> None:
    x, expected = binades()
    assert_bits_equal(np.asarray(roots(units)(x)), expected)


@pytest.mark.parametrize("units", STARTS)
def test_roots_of_every_exponent(units: int) -> None:
    x = np.concatenate([exponents(), -exponents()])
    assert_bits_equal(np.asarray(roots(units)(x)), right_roots(x))


@pytest.mark.parametrize("away", [-3 * 2**-23, 3 * 2**-23])
def test_starts_on_the_other_side_of_a_power_of_two(away: float) -> None:
    """Three units below 1 are six of the places there."""
    x = np.float32([1, 1 + 2**-23, 1 + 2**-22, 2 - 2**-23, 4 - 2**-22])
    ratio = jax.jit(partial(rounding.quotient, start=lambda a, b: lax.div(a, b) + np.float32(away)))
    square_root = jax.jit(partial(rounding.root, start=lambda a: lax.sqrt(a) + np.float32(away)))
    assert_bits_equal(np.asarray(ratio(x[:, None], x)), x[:, None] / x)
    assert_bits_equal(np.asarray(square_root(x)), np.sqrt(x))


def test_special_values() -> None:
    a, b = np.meshgrid(SPECIAL, SPECIAL)
    assert_bits_equal(np.asarray(quotients(0)(a, b)), right_quotients(a, b))
    assert_bits_equal(np.asarray(roots(0)(SPECIAL)), right_roots(SPECIAL))


@pytest.mark.parametrize("start", [0.0, -1.0, np.inf, np.nan])
def test_special_values_do_not_depend_on_the_start(start: float) -> None:
    a, b = np.meshgrid(SPECIAL, SPECIAL)
    nowhere = lambda x, *rest: jnp.full_like(x, start)  # noqa: E731
    for actual, expected in (
        (jax.jit(partial(rounding.quotient, start=nowhere))(a, b), right_quotients(a, b)),
        (jax.jit(partial(rounding.root, start=nowhere))(SPECIAL), right_roots(SPECIAL)),
    ):
        special = ~np.isfinite(expected) | (expected == 0)
        assert_bits_equal(np.asarray(actual)[special], expected[special])


def test_more_than_three_units_are_too_many() -> None:
    """The check of these checks: a start that is too far off shows in all of them, and so does none of the steps."""
    a, b = draw("nearly halfway", np.random.default_rng(0))
    assert (np.asarray(quotients(4)(a, b)) != right_quotients(a, b)).any()
    x, expected = binades()
    assert (np.asarray(roots(4)(x)) != expected).any()


# How the namespace takes them


def lowered(platform: str) -> str:
    def both(x: Any, y: Any) -> Any:
        return namespace.divide(x, y), namespace.sqrt(x)

    x = jax.ShapeDtypeStruct((8,), jnp.float32)
    return jax.export.export(jax.jit(both), platforms=[platform])(x, x).mlir_module()


def test_only_cuda_computes_in_integers() -> None:
    for platform in ("cuda", "cpu", "tpu", "rocm"):
        text = lowered(platform)
        assert ("stablehlo.shift_left" in text) == (platform == "cuda")
        assert "stablehlo.divide" in text
        assert "stablehlo.sqrt" in text


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program for CUDA, on the CPU."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", ["jit", "scan"])
def test_steps_have_numpys_bits(as_on_cuda: None, name: str) -> None:
    assert mismatch(mode("jax", name), task()) is None


def test_steps_see_a_start_that_is_not_corrected(as_on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "quotient", off_by(1, lax.div))
    assert mismatch(mode("jax", "jit"), task()) is not None


X, Y = (np.random.default_rng(i).uniform(0.5, 9, (6, 4)).astype(np.float32) for i in range(2))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap, lambda f: jax.vmap(f, 1, 1)])
def test_transformations(as_on_cuda: None, transform: Callable[..., Any]) -> None:
    assert_bits_equal(np.asarray(transform(namespace.divide)(X, Y)), X / Y)
    assert_bits_equal(np.asarray(transform(namespace.sqrt)(X)), np.sqrt(X))


def test_vmap_of_one_operand(as_on_cuda: None) -> None:
    assert_bits_equal(np.asarray(jax.vmap(namespace.divide, (0, None))(X, Y)), X[:, None] / Y)


def test_a_scalar_numerator(as_on_cuda: None) -> None:
    assert_bits_equal(np.asarray(jax.jit(namespace.divide)(1.0, X)), 1 / X)
    assert_bits_equal(np.asarray(jax.jit(namespace.divide)(X[0, 0], X)), X[0, 0] / X)


def test_other_dtypes_are_jaxs_own(as_on_cuda: None) -> None:
    with jax.enable_x64(True):
        x = X.astype(np.float64)
        assert_bits_equal(np.asarray(namespace.divide(x, Y)), x / Y)
        assert_bits_equal(np.asarray(namespace.sqrt(x)), np.sqrt(x))


def test_derivatives_are_those_of_jax(as_on_cuda: None) -> None:
    for mine, theirs, values in (
        (namespace.divide, jnp.divide, (X, Y)),
        (namespace.sqrt, jnp.sqrt, (X,)),
    ):
        for order in (jax.jacfwd, jax.jacrev, lambda f, argnums: jax.jacfwd(jax.jacrev(f, argnums), argnums)):
            places = tuple(range(len(values)))
            found, expected = (jax.jit(order(f, places))(*values) for f in (mine, theirs))
            # derivatives are outside the contract: two programs, whose products XLA may contract in different places
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_explicit_sharding_and_shard_map(as_on_cuda: None) -> None:
    """On one device, but the types know no numbers of devices."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    spec = jax.sharding.PartitionSpec("x")
    with jax.set_mesh(mesh):
        x, y = (jax.device_put(v, jax.NamedSharding(mesh, spec)) for v in (X, Y))
        for numerator, expected in ((x, X / Y), (1.0, 1 / Y)):
            result = jax.jit(namespace.divide)(numerator, y)
            assert jax.typeof(result).sharding.spec[0] == "x"
            assert_bits_equal(np.asarray(result), expected)
        assert_bits_equal(np.asarray(jax.jit(namespace.sqrt)(x)), np.sqrt(X))
        mapped = jax.shard_map(lambda x, y: namespace.divide(namespace.sqrt(x), y), in_specs=spec, out_specs=spec)
        assert_bits_equal(np.asarray(jax.jit(mapped)(x, y)), np.sqrt(X) / Y)


def long_run(minutes: float) -> None:
    """New operands until the time is over; the first wrong result ends it."""
    for units in STARTS:
        test_roots_of_two_binades(units)
    print(f"roots of two binades from {len(STARTS)} starts: 0 wrong")
    end, seed, total = time.monotonic() + 60 * minutes, 1000, 0
    functions = {units: quotients(units) for units in STARTS}
    while time.monotonic() < end:
        for kind in operands.PAIRS:
            a, b = draw(kind, np.random.default_rng(seed))
            expected = right_quotients(a, b)
            for units in STARTS:
                assert_bits_equal(np.asarray(functions[units](a, b)), expected, f"seed {seed}, start off by {units}")
            seed, total = seed + 1, total + len(a)
    print(f"{total / 1e6:.1f} M quotients from {len(STARTS)} starts each: 0 wrong")


if __name__ == "__main__":
    long_run(float(sys.argv[1]))
