"""Wrapped transformations keep their own rule; masks and scores are the core's."""

from typing import Any

import jax
import jax.numpy as jnp
import magma_jax
import numpy as np
import optax
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_jax import wrap, wrap_magma
from magma_numpy import namespace as xp

import magma_core
from magma_core import RMSProp, Rule, State, cut, damping, magma, score_survival, skip_update
from magma_core.alignment import alignment_sums
from magma_core.bases import advance_moments
from magma_core.hyperparameters import base_numbers, rule_numbers
from magma_core.keep import BlockWords, block_index, key_vectors, mask_key
from magma_core.numerics import real
from magma_core.rule import decide

SEED, STEPS, RATE = 5, 5, 0.1
SHAPES = {"rows": (6, 4), "whole": (3, 5), "plain": (4,)}
AXES = {"rows": (0,), "whole": (), "plain": None}
INNER = {
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "adam": optax.adam(RATE),
    "adamw": optax.adamw(RATE, weight_decay=0.1),
    "nadam": optax.nadam(RATE),
    "lion": optax.lion(RATE),
    "rmsprop": optax.rmsprop(RATE),
    "adagrad": optax.adagrad(RATE),
    "lamb": optax.lamb(RATE),
    "muon": optax.contrib.muon(RATE),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)),
    "bfloat16 moment": optax.adam(RATE, mu_dtype=jnp.bfloat16),
}
OWN_AVERAGE = {"sgd", "rmsprop", "adagrad", "muon"}
"""Those in whose state there is no tree of first moments like the parameters'; muon has two that are parts."""
RULES: dict[str, Rule] = {
    "magma": magma(),
    "before": magma(momentum="before", tau=0.5),
    "skip update": skip_update(p=0.3),
    "damping": damping(),
    "survival": score_survival(),
}


def axes(name: str, leaf: Any) -> Any:
    return AXES[name]


def draw(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}


def moments(name: str, inner_state: Any) -> dict[str, np.ndarray] | None:
    """What the wrapped optimizer keeps itself, found by hand."""
    if name in OWN_AVERAGE:
        return None
    found = [tree for key in ("mu", "trace") for _, tree in optax.tree.get_all_with_path(inner_state, key)]
    (tree,) = (tree for tree in found if isinstance(tree, dict) and tree.keys() == SHAPES.keys())
    return {key: np.asarray(x.astype(jnp.float32)) for key, x in tree.items()}


def decided(rule: Rule, name: str, step: int, mu: np.ndarray, grad: np.ndarray, score: Any) -> Any:
    """Keep, scale and score of one leaf by the functions of the core on NumPy."""
    blocks = cut(SHAPES[name], AXES[name], name=name)
    key = key_vectors([mask_key(name, SEED, xp=xp)], xp=xp, device=None)
    words = BlockWords(*key, block_index(blocks, xp=xp, device=None).reshape(-1))
    with xp.scope():
        sums = alignment_sums(real(mu, xp=xp).flush(), real(grad, xp=xp), blocks).reshape(3, -1)
        score = None if score is None else score.reshape(-1)
        decision = decide(rule, rule_numbers(rule), words, sums, score, step=step, rate=real(1.0, xp=xp))
    keep, scale = decision.keep.reshape(blocks.block_shape), decision.scale.array
    scale = np.broadcast_to(scale.reshape(-1), decision.keep.shape).reshape(blocks.block_shape)
    new = None if decision.score is None else decision.score.reshape(blocks.block_shape)
    return blocks.spread(keep, xp=xp), blocks.spread(scale, xp=xp), new


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", INNER)
def test_kept_updates_are_weighted_and_others_are_minus_zero(name: str, rule: str) -> None:
    inner, chosen = INNER[name], RULES[rule]
    wrapped = wrap(inner, chosen, seed=SEED, block_axes=axes)
    params = jax.tree.map(jnp.asarray, draw(99))
    state, alone = wrapped.init(params), inner.init(params)
    update, plain = jax.jit(wrapped.update), jax.jit(inner.update)
    scores = {key: None if x is None else np.asarray(x) for key, x in (state.score or dict.fromkeys(SHAPES)).items()}
    average = {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
    for step in range(1, STEPS + 1):
        grads = draw(step)
        before = moments(name, alone) or dict(average)
        updates, state = update(jax.tree.map(jnp.asarray, grads), state, params)
        own, alone = plain(jax.tree.map(jnp.asarray, grads), alone, params)
        with xp.scope():
            for key, grad in grads.items():
                g = real(grad, xp=xp).flush()
                average[key] = advance_moments(g, State(mu=average[key]), base_numbers(RMSProp()), base=RMSProp()).mu
        mu = before if chosen.momentum == "before" else moments(name, alone) or average
        assert_bits_equal(np.asarray(updates["plain"]), np.asarray(own["plain"]))
        for key in ("rows", "whole"):
            keep, scale, scores[key] = decided(chosen, key, step, mu[key], grads[key], scores[key])
            weighted = np.asarray(own[key])
            if chosen.weight != "one":
                weighted = scale * weighted
            assert_bits_equal(np.asarray(updates[key]), np.where(keep, weighted, np.float32(-0.0)))
            if chosen.uses_score:
                assert_bits_equal(np.asarray(state.score[key]), scores[key])
        params = optax.apply_updates(params, updates)
    assert int(state.count) == STEPS
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(alone)
    assert (state.mu is None) == (name not in OWN_AVERAGE or not chosen.uses_score)


def test_moment_can_be_named() -> None:
    """Where the state has several trees that could be it, none is taken, unless the caller says which."""
    inner = optax.chain(optax.trace(0.9), optax.scale_by_adam(), optax.scale(-RATE))
    params = jax.tree.map(jnp.asarray, draw(0))
    assert wrap_magma(inner).init(params).mu is not None
    assert wrap_magma(inner, moment=lambda state: state[1].mu).init(params).mu is None
    with pytest.raises(ValueError, match="moment must find a tree like the parameters'"):
        wrap_magma(inner, moment=lambda state: state[1].count).init(params)


def test_updates_keep_their_dtype_and_extra_arguments_pass() -> None:
    seen = {}

    def update(grads: Any, state: Any, params: Any = None, *, value: Any = None) -> Any:
        seen["value"] = value
        return grads, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    wrapped = wrap_magma(inner, p=1.0)
    updates, _ = wrapped.update(params, wrapped.init(params), value=7)
    assert updates["w"].dtype == jnp.bfloat16
    assert seen == {"value": 7}


def test_hyperparameters_may_be_injected() -> None:
    params = jax.tree.map(jnp.asarray, draw(0))
    plain = wrap_magma(optax.adam(RATE), tau=0.5, p=0.75, ema=float(np.float32(0.9)), seed=SEED)
    injected = optax.inject_hyperparams(wrap_magma)(optax.adam(RATE), tau=0.5, p=0.75, seed=SEED)
    one, other = plain.init(params), injected.init(params)
    for step in range(1, 4):
        grads = jax.tree.map(jnp.asarray, draw(step))
        mine, one = jax.jit(plain.update)(grads, one, params)
        theirs, other = jax.jit(injected.update)(grads, other, params)
        for key in SHAPES:
            assert_bits_equal(np.asarray(theirs[key]), np.asarray(mine[key]))


def test_a_wrapped_base_is_near_the_rule_over_it() -> None:
    """The two differ in roundings only: of the inner optimizer, and of lr·(w·Δ) for (lr·w)·Δ. No bits are promised."""
    params = jax.tree.map(jnp.asarray, draw(0))
    ours = magma_jax.magma(RATE, magma_core.Adam(), seed=SEED, block_axes=axes)
    wrapped = wrap_magma(optax.adam(RATE), seed=SEED, block_axes=axes)
    one, other = ours.init(params), wrapped.init(params)
    for step in range(1, 6):
        grads = jax.tree.map(jnp.asarray, draw(step))
        mine, one = jax.jit(ours.update)(grads, one, params)
        theirs, other = jax.jit(wrapped.update)(grads, other, params)
        for key in SHAPES:
            # the roundings of five steps, where the bits are those of two different orders of operations
            np.testing.assert_allclose(np.asarray(theirs[key]), np.asarray(mine[key]), rtol=2e-5, atol=1e-9)
