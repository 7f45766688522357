"""A separate learning rate for masked variables: eager and compiled, with a schedule, wrapped and saved."""

from typing import Any

import keras
import numpy as np
import pytest
from keras_reference import host
from lr_scale import AXES, LR_SCALE, RATES, every_bad_one, every_case, expected, start
from magma_conformance.bits import assert_bits_equal
from magma_keras import Magma, MaskedOptimizer, Wrapped

from magma_core import damping, score_survival

BLOCK_AXES: Any = {f"^{name}$": axes for name, axes in AXES.items()}


def variables() -> dict[str, Any]:
    return {name: keras.Variable(x, dtype="float32", name=name) for name, x in start().items()}


@keras.saving.register_keras_serializable(package="tests")
class Rates(keras.optimizers.schedules.LearningRateSchedule):
    """The rates of the steps."""

    def __call__(self, step: Any) -> Any:
        return keras.ops.take(keras.ops.convert_to_tensor(np.asarray(RATES, np.float32)), keras.ops.cast(step, "int32"))

    def get_config(self) -> dict[str, Any]:
        return {}


def stepping(optimizer: Any, own: dict[str, Any], way: str) -> Any:
    """``apply``, compiled by XLA where that is asked for."""
    if way == "eager":
        return lambda grads: optimizer.apply(grads, list(own.values()))
    tf = pytest.importorskip("tensorflow")
    optimizer.build(list(own.values()))
    return tf.function(lambda grads: optimizer.apply(grads, list(own.values())), jit_compile=way == "xla")


WAYS = ["eager"] + ["graph", "xla"] * (keras.backend.backend() == "tensorflow")


@pytest.mark.parametrize("way", WAYS)
@every_case
def test_masked_variables_have_the_rate_of_the_specification(base, rule, way):
    own = variables()
    optimizer = MaskedOptimizer(Rates(), rule, base, lr_scale=LR_SCALE, block_axes=BLOCK_AXES)
    apply = stepping(optimizer, own, way)
    for step, _, grads, after in expected(base, rule):
        apply([keras.ops.convert_to_tensor(grads[name]) for name in own])
        for name, variable in own.items():
            assert_bits_equal(host(variable), after[name], f"{name} at step {step}")


@pytest.mark.parametrize("rule", [damping(), score_survival()], ids=["damping", "score survival"])
def test_wrapped_optimizers_move_masked_variables_so_many_times_as_far(rule):
    """The weight of a kept block is lr_scale ⊗ w; the others keep their bits."""
    own, before = variables(), start()
    optimizer = Wrapped(keras.optimizers.SGD(0.5), rule, lr_scale=LR_SCALE, block_axes=BLOCK_AXES)
    optimizer.apply([keras.ops.full(x.shape, 0.5) for x in before.values()], list(own.values()))
    for name, old in before.items():
        base = old - np.float32(0.25)
        if AXES[name] is not None:
            score = host(optimizer.scores[name]).reshape(-1, *[1] * (old.ndim - 1))
            factor = np.float32(LR_SCALE) * (score if rule.weight == "score" else np.float32(1))
            kept = host(own[name]) != old
            assert kept.any() or rule.survival == "score"
            base = np.where(kept, old + factor * (base - old), old)
        assert_bits_equal(host(own[name]), base, name)


def test_the_factor_is_saved_with_the_optimizer():
    for optimizer in (Magma(0.1, lr_scale=LR_SCALE), Wrapped(keras.optimizers.SGD(), damping(), lr_scale=LR_SCALE)):
        config = optimizer.get_config()
        assert config["lr_scale"] == LR_SCALE
        assert type(optimizer).from_config(config).get_config() == config


@pytest.mark.parametrize("make", [Magma, lambda **given: Wrapped(keras.optimizers.SGD(), damping(), **given)])
@every_bad_one
def test_a_bad_factor_is_refused(make, bad):
    with pytest.raises((ValueError, TypeError), match="lr_scale must be"):
        make(lr_scale=bad)
