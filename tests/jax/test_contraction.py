"""If 1 − β₂ is 1 in binary32, only fences stand between g² and the sum with β₂ν, and they must not cancel."""

from dataclasses import replace
from typing import Any

import jax
import magma_jax
import numpy as np
import pytest
from fence_tasks import task
from magma_conformance.bits import assert_bits_equal
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.runner.result import compare
from magma_numpy import namespace as xp
from stacked_fences import xor_fence

from magma_core import AdamW, init, magma, numerics, update
from magma_core.state_file.config import base_to_plain

BASE = AdamW(beta2=1e-8)
SHAPE = (64, 64)
START, *GRADS = (np.random.default_rng(i).standard_normal(SHAPE, dtype=np.float32) for i in range(5))


@pytest.mark.parametrize("mode", ["jit", "apply", "scan", "sharded"])
def test_steps_are_those_of_numpy(mode: str) -> None:
    what = replace(task(), base=base_to_plain(BASE))
    expected = open_implementation("numpy", "eager", "cpu").run(what)
    assert compare(open_implementation("magma_jax", mode, "cpu").run(what), expected) is None


def on_numpy() -> list[dict[str, np.ndarray]]:
    options: dict[str, Any] = {"base": BASE, "rule": magma(), "block_axes": (0,), "xp": xp}
    param, state, every = START, init(START, **options), []
    for step, grad in enumerate(GRADS, 1):
        param, state, _ = update(param, grad, state, name="w", step=step, lr=1e-2, seed=0, **options)
        every.append({"param": param, "mu": state.mu, "nu": state.nu, "score": state.score})
    return every


def jitted(b2: Any) -> list[dict[str, np.ndarray]]:
    optimizer = magma_jax.magma(1e-2, b2=b2, weight_decay=BASE.weight_decay, block_axes=(0,), kernels=False)
    step = jax.jit(optimizer.step)
    params = {"w": jax.numpy.asarray(START)}
    state, every = optimizer.init(params), []
    for grad in GRADS:
        params, state = step(params, {"w": grad}, state)
        fields = {name: getattr(state, name)["w"] for name in ("mu", "nu", "score")}
        every.append({name: np.asarray(x) for name, x in {"param": params["w"], **fields}.items()})
    return every


@pytest.mark.parametrize("b2", [1e-8, jax.numpy.float32(1e-8)], ids=["a number", "an array that is known"])
def test_without_a_harness(b2: Any) -> None:
    for step, (actual, expected) in enumerate(zip(jitted(b2), on_numpy(), strict=True), 1):
        for name, x in expected.items():
            assert_bits_equal(actual[name], x, f"{name} after step {step}")


def test_the_xor_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "fence", xor_fence)
    jax.clear_caches()
    actual, expected = jitted(1e-8)[1], on_numpy()[1]
    jax.clear_caches()
    different = {name: int((actual[name].view(np.int32) != x.view(np.int32)).sum()) for name, x in expected.items()}
    assert different["nu"] > SHAPE[0] * SHAPE[1] // 10
    assert different["param"]
