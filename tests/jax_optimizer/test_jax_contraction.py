"""A number that is exactly 1 in binary32 leaves nothing to multiply by, and what it stood between is not contracted."""

from typing import Any

import jax
import magma_jax
import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_numpy import namespace as xp
from test_stacked_fences import xor_fence

from magma_core import AdamW, init, magma, numerics, update

SHAPE = (64, 64)
START, *GRADS = (np.random.default_rng(i).standard_normal(SHAPE, dtype=np.float32) for i in range(5))


def on_numpy() -> list[dict[str, np.ndarray]]:
    options: dict[str, Any] = {"base": AdamW(beta2=1e-8), "rule": magma(), "block_axes": (0,), "xp": xp}
    param, state, every = START, init(START, **options), []
    for step, grad in enumerate(GRADS, 1):
        param, state, _ = update(param, grad, state, name="w", step=step, lr=1e-2, seed=0, **options)
        every.append({"param": param, "mu": state.mu, "nu": state.nu, "score": state.score})
    return every


def jitted() -> list[dict[str, np.ndarray]]:
    optimizer = magma_jax.magma(1e-2, b2=1e-8, weight_decay=AdamW().weight_decay, block_axes=(0,))
    step = jax.jit(optimizer.step)
    params = {"w": jax.numpy.asarray(START)}
    state, every = optimizer.init(params), []
    for grad in GRADS:
        params, state = step(params, {"w": grad}, state)
        fields = {name: getattr(state, name)["w"] for name in ("mu", "nu", "score")}
        every.append({name: np.asarray(x) for name, x in {"param": params["w"], **fields}.items()})
    return every


def test_beta2_below_half_a_unit_of_1() -> None:
    """1 − β₂ is 1: ν ← β₂ν + 1·g²."""
    for step, (actual, expected) in enumerate(zip(jitted(), on_numpy(), strict=True), 1):
        for name, x in expected.items():
            assert_bits_equal(actual[name], x, f"{name} after step {step}")


def test_the_fence_that_was_an_xor_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "fence", xor_fence)
    jax.clear_caches()
    actual, expected = jitted()[1], on_numpy()[1]
    jax.clear_caches()
    assert (actual["nu"].view(np.int32) != expected["nu"].view(np.int32)).sum() > 100
