"""A separate learning rate for masked leaves: with a schedule, eager, compiled, and by kernels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from lr_scale import AXES, LR_SCALE, RATES, every_bad_one, every_case, expected, start
from magma_conformance.bits import assert_bits_equal
from magma_jax import by_rule, magma, scale_by_magma, wrap
from magma_jax.gpu import tiles
from magma_jax.native import primitive

import magma_core
from magma_core import damping, score_survival


def schedule(count: Any) -> Any:
    return jnp.asarray(RATES, jnp.float32)[count]


def axes_of(name: str, leaf: Any) -> Any:
    del leaf
    return AXES[name]


def check(params: Any, after: Any, step: int) -> None:
    for name, x in after.items():
        assert_bits_equal(np.asarray(params[name]), x, f"{name} at step {step}")


WAYS = {"eager": lambda f: f, "jit": jax.jit}


@pytest.mark.parametrize("way", WAYS)
@every_case
def test_masked_leaves_have_the_rate_of_the_specification(base, rule, way):
    optimizer = by_rule(schedule, rule, base, lr_scale=LR_SCALE, block_axes=axes_of)
    params = jax.tree.map(jnp.asarray, start())
    state = optimizer.init(params)
    update, step_ = WAYS[way](optimizer.update), WAYS[way](optimizer.step)
    for step, _, grads, after in expected(base, rule):
        if rule.decay == "masked":  # else addition does not promise bits
            updates, _ = update(grads, state, params)
            check(optax.apply_updates(params, updates), after, step)
        params, state = step_(params, grads, state)
        check(params, after, step)


@every_case
def test_rate_and_factor_may_be_arrays(base, rule):
    @jax.jit
    def step_(params: Any, grads: Any, state: Any, rate: Any, factor: Any) -> Any:
        # products that XLA would merge with those of the step, if it saw them
        optimizer = by_rule(rate * 2.0, rule, base, lr_scale=factor * 1.25, block_axes=axes_of)
        return optimizer.step(params, grads, state)

    params = jax.tree.map(jnp.asarray, start())
    state = by_rule(0.1, rule, base, block_axes=axes_of).init(params)
    for step, lr, grads, after in expected(base, rule):
        params, state = step_(params, grads, state, np.float32(lr) / 2, np.float32(LR_SCALE / 1.25))
        check(params, after, step)


def test_injected_hyperparameters_have_a_factor():
    base, rule = magma_core.AdamW(weight_decay=0.1), magma_core.magma(ema=0.875)
    make = optax.inject_hyperparams(magma, static_args=("base", "block_axes"))
    optimizer = make(schedule, base, ema=0.875, lr_scale=LR_SCALE, block_axes=axes_of)
    params = jax.tree.map(jnp.asarray, start())
    state = optimizer.init(params)
    for step, _, grads, after in expected(base, rule):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        check(params, after, step)


def test_kernels_have_the_rate_of_the_specification(monkeypatch):
    """Under dense decay, whose kernel has the rate as an argument."""
    monkeypatch.setattr(tiles, "LEAST", 1)
    monkeypatch.setattr(tiles, "INTERPRET", True)
    monkeypatch.setattr(primitive.Step, "can_call", lambda *_: False)
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    base, rule = magma_core.AdamW(weight_decay=0.1), magma_core.magma(decay="dense")
    optimizer = by_rule(schedule, rule, base, lr_scale=LR_SCALE, block_axes=axes_of, kernels=True)
    params = jax.tree.map(jnp.asarray, start())
    jax.clear_caches()
    with jax.enable_x64(True):
        state = optimizer.init(params)
        for step, _, grads, after in expected(base, rule):
            params, state = jax.jit(optimizer.step)(params, grads, state)
            check(params, after, step)
    jax.clear_caches()


def test_directions_are_scaled():
    """Without a learning rate the factor is that of the update."""
    grads = {name: jnp.full(x.shape, 0.5) for name, x in start().items()}
    plain, scaled = (scale_by_magma("sgd", lr_scale=factor, block_axes=axes_of) for factor in (1.0, 2.0))
    ((one, _), (other, _)) = (x.update(grads, x.init(grads)) for x in (plain, scaled))
    for name, axes in AXES.items():
        assert_bits_equal(np.asarray(other[name]), np.asarray(one[name]) * np.float32(1.0 if axes is None else 2.0))
    assert any(np.any(one[name] != 0) for name, axes in AXES.items() if axes is not None)


@pytest.mark.parametrize("as_array", [False, True], ids=["number", "array"])
@pytest.mark.parametrize("rule", [damping(), score_survival()], ids=["damping", "score survival"])
def test_wrapped_transformations_move_masked_leaves_so_many_times_as_far(rule, as_array):
    grads = {name: jnp.full(x.shape, 0.5) for name, x in start().items()}
    factor: Any = np.float32(LR_SCALE)
    optimizer = wrap(optax.sgd(0.1), rule, lr_scale=jnp.asarray(factor) if as_array else LR_SCALE, block_axes=axes_of)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    for name, axes in AXES.items():
        base = np.full(grads[name].shape, np.float32(-0.1) * np.float32(0.5))
        if axes is not None:
            score = np.asarray(state.score[name]).reshape(-1, *[1] * (base.ndim - 1))
            base = base * (factor * score if rule.weight == "score" else factor)
        kept = np.asarray(updates[name]) != 0
        assert kept.any() or rule.survival == "score"
        assert_bits_equal(np.asarray(updates[name]), np.where(kept, base, np.float32(-0.0)).astype(np.float32), name)


@pytest.mark.parametrize("make", [magma, lambda **given: wrap(optax.sgd(0.1), damping(), **given)])
@every_bad_one
def test_a_bad_factor_is_refused(make, bad):
    given = {"lr_scale": bad} if make is not magma else {"learning_rate": 0.1, "lr_scale": bad}
    with pytest.raises((ValueError, TypeError), match="lr_scale must be"):
        make(**given)
