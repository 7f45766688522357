"""A separate learning rate for masked parameters, on every namespace of the core."""

from typing import Any

import numpy as np
import pytest
from lr_scale import AXES, LR_SCALE, every_bad_one, every_case, expected, start
from magma_conformance.bits import assert_bits_equal
from magma_numpy import namespace as xp

import magma_core
from backends import BACKENDS, load_backend
from magma_core import SGD, AdamW, dense

NAMES = tuple(AXES)


@pytest.mark.parametrize("as_array", [False, True], ids=["number", "array"])
@pytest.mark.parametrize("name", BACKENDS)
@every_case
def test_masked_parameters_have_the_rate_of_the_specification(name, base, rule, as_array):
    backend = load_backend(name)
    options: dict[str, Any] = {"base": base, "rule": rule, "xp": backend.xp}
    params = {name: backend.from_numpy(x) for name, x in start().items()}
    states = {name: magma_core.init(x, block_axes=AXES[name], **options) for name, x in params.items()}
    factor: Any = backend.from_numpy(np.asarray(LR_SCALE, np.float32)) if as_array else LR_SCALE
    for step, lr, grads, after in expected(base, rule):
        done = magma_core.update_all(
            list(params.values()),
            [backend.from_numpy(grads[name]) for name in NAMES],
            list(states.values()),
            names=NAMES,
            step=step,
            lr=lr,
            lr_scale=factor,
            seed=0,
            block_axes=AXES,
            **options,
        )
        params, states, _ = (dict(zip(NAMES, x, strict=True)) for x in done)
        for name in NAMES:
            assert_bits_equal(backend.to_numpy(params[name]), after[name], f"{name} at step {step}")


def step_of_one(lr: float, lr_scale: Any, **options: Any) -> np.ndarray:
    """A parameter of ones after a step with gradient 1; whether it is masked is an option."""
    options = {"base": SGD(), "rule": dense(), "block_axes": (), "name": "w", **options}
    kept = {key: options[key] for key in ("base", "rule", "block_axes")}
    param = np.full(1, 2.0**-90, np.float32)
    state = magma_core.init(param, **kept, xp=xp)
    return magma_core.update(param, param, state, step=1, seed=0, lr=lr, lr_scale=lr_scale, **options, xp=xp)[0]


def test_a_product_below_the_smallest_is_zero():
    decay = {"base": AdamW(weight_decay=2.0**120), "rule": dense(decay="dense")}
    assert step_of_one(2.0**-99, 0.25, **decay) == 2.0**-90
    assert step_of_one(2.0**-99, 0.5, **decay) != 2.0**-90


def test_a_product_that_overflows_is_infinite():
    assert np.isneginf(step_of_one(3e38, 2.0))


@every_bad_one
def test_a_bad_factor_is_refused(bad):
    with pytest.raises((ValueError, TypeError), match="lr_scale must be"):
        step_of_one(0.1, bad)


def test_an_array_that_is_no_factor_is_refused():
    with pytest.raises(ValueError, match=r"lr_scale must be a single number .* shape \(2,\)"):
        step_of_one(0.1, np.ones(2, np.float32))
    with pytest.raises(TypeError, match="lr_scale must be an array of floats"):
        step_of_one(0.1, np.asarray(2))
