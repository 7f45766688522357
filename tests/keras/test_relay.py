"""The relay's Keras model equals the conformance run's."""

import keras
import numpy as np
import pytest

pytest.importorskip("torch", reason="the language model is written in torch")

import relay_models
from magma_conformance.relay.legs.torch_leg import language_model as torch_model
from magma_conformance.relay.models.keras_model import file_name, language_model
from magma_conformance.relay.models.layout import turned
from relay_models import PLAN, assert_agree


def test_model():
    params, tokens = relay_models.weights(PLAN), torch_model(PLAN).tokens(1)[:, :-1]
    model = language_model(PLAN)
    variables = {file_name(variable.path): variable for variable in model.trainable_variables}
    assert variables.keys() == params.keys()
    for name, variable in variables.items():
        variable.assign(turned(name, params[name]))
    found = keras.ops.convert_to_numpy(model(tokens.astype(np.int32)))
    assert_agree(found, relay_models.logits(PLAN, params, tokens), "logits")


@pytest.mark.backends("tensorflow")
def test_gradients():
    from magma_conformance.relay.legs.keras_leg import Runner

    params, model = relay_models.weights(PLAN), torch_model(PLAN)
    leg = Runner(PLAN, {1: model.tokens(1)})
    for name, variable in leg._variables.items():
        variable.assign(turned(name, params[name]))
    loss, gradients = leg.loss_and_gradients(1)
    expected_loss, expected = model.loss_and_gradients(params, 1)
    assert loss == pytest.approx(expected_loss, rel=relay_models.TOLERANCE)
    for name, gradient in zip(leg._variables, gradients, strict=True):
        assert_agree(turned(name, keras.ops.convert_to_numpy(gradient)), expected[name], name)


def test_names():
    assert file_name("layers-0-attention/wq/kernel") == "layers.0.attention.wq"
    assert file_name("norm/scale") == "norm"
