"""An optimizer in `fit`, and its observable values."""

import keras
import numpy as np
import pytest
from magma_keras import Magma, SkipUpdate


def model(optimizer, **options):
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(8, activation="relu", name="hidden"),
        keras.layers.Dense(1, name="out"),
    ]
    made = keras.Sequential(layers, name="model")
    made.compile(optimizer=optimizer, loss="mse", **options)
    return made


OPTIONS = [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}]
PAIRS = [(Magma, options) for options in OPTIONS] + [(SkipUpdate, options) for options in OPTIONS[:2]]


@pytest.mark.parametrize(("make", "options"), PAIRS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_training_lowers_the_loss(make, options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 4)).astype("float32")
    y = x @ np.array([[1.0], [-2.0], [0.5], [3.0]], "float32")
    losses = model(make(3e-2), **options).fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
