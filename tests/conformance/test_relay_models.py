"""The relay's JAX model equals the conformance run's. tests/keras/test_relay.py has the Keras model."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the language model is written in torch")

import relay_models
from magma_conformance.cases import language_model as torch_model
from magma_conformance.relay.legs.torch_leg import language_model
from magma_conformance.relay.models import rotary
from magma_conformance.relay.models.layout import axes, own_block_axes, turned
from magma_conformance.relay.plan import RelayPlan
from relay_models import PLAN, assert_agree

MODEL = language_model(PLAN)


def test_constants():
    assert rotary.RMS_EPS == torch_model._RMS_EPS
    for own, theirs in zip(rotary.rotation(24, 8), torch_model._rotation(24, 8), strict=True):
        np.testing.assert_array_equal(own, theirs.astype(np.float32), strict=True)


def test_layout():
    """The files have (out, in); of the matrices only the embedding is stored so elsewhere."""
    assert axes("layers.0.mlp.gate", (96, 32)) == axes("head", (256, 32)) == (1, 0)
    assert axes("embedding", (256, 32)) is None
    assert axes("norm", (32,)) is None
    assert own_block_axes("layers.0.attention.wq", (32, 32)) == (1,)  # a row of (out, in)
    assert own_block_axes("layers.0.attention.wk", (32, 32)) == ()
    assert own_block_axes("layers.0.attention_norm", (32,)) is None
    assert own_block_axes("head", (32, 256)) is None
    array = np.arange(6.0).reshape(2, 3)
    assert turned("head", array).shape == (3, 2)
    assert turned("head", array).flags.c_contiguous
    np.testing.assert_array_equal(turned("head", turned("head", array)), array)
    np.testing.assert_array_equal(turned("embedding", array), array)


def test_jax_model():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    jax_model = pytest.importorskip("magma_conformance.relay.models.jax_model")
    params, tokens = relay_models.weights(PLAN), MODEL.tokens(1)[:, :-1]
    given = jax_model.tree(params)
    for name, array in jax_model.flat(given).items():
        np.testing.assert_array_equal(array, params[name], strict=True)
    with jax.default_matmul_precision("highest"):
        found = jax_model.logits(given, tokens.astype(np.int32), PLAN)
    assert_agree(np.asarray(found), relay_models.logits(PLAN, params, tokens), "logits")


def test_jax_gradients():
    pytest.importorskip("optax", reason="jax or optax is not installed")
    from magma_conformance.relay.legs import jax_leg
    from magma_conformance.relay.models import jax_model

    params = relay_models.weights(PLAN)
    leg = jax_leg.Runner(PLAN, {1: MODEL.tokens(1)})
    leg._params = jax_model.tree(params)
    loss, gradients = leg.loss_and_gradients(1)
    expected_loss, expected = MODEL.loss_and_gradients(params, 1)
    assert loss == pytest.approx(expected_loss, rel=relay_models.TOLERANCE)
    found = jax_model.flat(gradients)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_agree(found[name], gradient, name)


@pytest.mark.parametrize("field", ["steps", "width", "layers", "batch"])
def test_plan_refuses_what_cannot_be(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        RelayPlan(**{field: 0})


def test_plan_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="width must be a multiple of 8, twice the heads, got 12"):
        RelayPlan(width=12)


def test_plan_divides_the_steps():
    plan = RelayPlan(steps=3)
    assert plan.total == 12
    assert [step for leg in range(4) for step in plan.leg_steps(leg)] == list(range(1, 13))
