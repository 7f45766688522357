"""Keras around a step: the gradients before it are Keras's, the bits from it on are magma_core's.

The tests record the gradients that reach the step and give them to the reference.
"""

from typing import Any

import keras
import numpy as np
import pytest
from keras_reference import (
    AXES,
    Recorder,
    Reference,
    Run,
    any_differ,
    check_same,
    gradients,
    host,
    variables,
    weights,
)
from magma_conformance.bits import assert_bits_equal, first_difference
from magma_keras import Magma, MaskedOptimizer, SkipUpdate

from magma_core import damping, score_survival

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, of its own variables under NumPy 2

BACKEND = keras.backend.backend()
RATE = np.float32(0.1)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def by_path(grads: Any, of: Any) -> dict[str, np.ndarray]:
    return {x.path: host(grad) for grad, x in zip(grads, of, strict=True) if grad is not None}


def state_of(run: Run) -> list[np.ndarray]:
    return [host(x) for x in run.variables] + weights(run.optimizer)


# Weight decay


@pytest.mark.parametrize("decay", ["masked", "dense"])
@pytest.mark.parametrize("make", [Magma, SkipUpdate])
def test_decay_is_part_of_the_step_and_not_applied_twice(make: Any, decay: str, recorder: Recorder) -> None:
    run = Run(make(0.1, weight_decay=0.5, decay=decay, block_axes=AXES))
    for _ in range(3):
        run.step(recorder)


@pytest.mark.parametrize("decay", ["masked", "dense"])
@pytest.mark.parametrize("how", ["var_list", "var_names"])
def test_some_variables_do_not_decay(how: str, decay: str, recorder: Recorder) -> None:
    of = variables()
    optimizer = Magma(0.1, weight_decay=0.5, decay=decay, block_axes=AXES)
    if how == "var_list":
        optimizer.exclude_from_weight_decay(var_list=of[1:])
    else:
        optimizer.exclude_from_weight_decay(var_names=["^b$", "plain"])
    run = Run(optimizer, of, no_decay=("b", "plain"))
    for _ in range(3):
        run.step(recorder)


def test_variables_that_were_said_not_to_decay_and_do_are_seen(recorder: Recorder) -> None:
    """That the reference of the test above is another one without the exclusions."""
    run = Run(Magma(0.1, weight_decay=0.5, decay="dense", block_axes=AXES), no_decay=("b",))
    with pytest.raises(AssertionError):
        run.step(recorder)


# Clipping and averages


@pytest.mark.parametrize("clip", [{"clipnorm": 0.5}, {"clipvalue": 0.125}, {"global_clipnorm": 0.5}], ids=str)
def test_clipping(clip: Any, recorder: Recorder) -> None:
    """Masks, scores and moments see the gradient that was clipped."""
    run = Run(Magma(0.1, block_axes=AXES, **clip))
    for step in range(1, 4):
        run.step(recorder)
        assert any_differ(recorder.steps[-1][0].values(), gradients(step, run.variables)), (
            "otherwise nothing is clipped"
        )


def test_moving_averages_do_not_touch_the_step(recorder: Recorder) -> None:
    """They begin with the variables after the first step, and replace them in the end."""
    run = Run(Magma(0.1, block_axes=AXES, use_ema=True, ema_momentum=0.5))
    own = {x.name: x for x in run.optimizer.variables}
    assert not any("average" in name for name in own)
    expected = None
    for _ in range(3):
        run.step(recorder)
        new = [run.reference.params[x.path] for x in run.variables]
        expected = (
            new if expected is None else [a * 0.5 + x * np.float32(0.5) for a, x in zip(expected, new, strict=True)]
        )
    own = {x.name: x for x in run.optimizer.variables}
    for x, average in zip(run.variables, expected, strict=True):
        # the average is Keras's own arithmetic, which each backend contracts as it likes; ours is compared above
        np.testing.assert_allclose(host(own[f"{x.path}_average"]), average, 1e-6)
    averages = [host(own[f"{x.path}_average"]) for x in run.variables]
    state = weights(run.optimizer)
    run.optimizer.finalize_variable_values(run.variables)
    check_same(run.variables, averages)
    check_same(weights(run.optimizer), state)


def test_averages_that_overwrite_variables(recorder: Recorder) -> None:
    """Every second step starts from the average; moments, scores and masks go on."""
    run = Run(Magma(0.1, block_axes=AXES, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2))
    for step in range(1, 6):
        run.apply()
        run.reference.step(*recorder.steps[-1])
        if step % 2 == 0:
            own = {x.name: host(x) for x in run.optimizer.variables}
            averages = {x.path: own[f"{x.path}_average"] for x in run.variables}
            assert any_differ(averages.values(), run.reference.params.values())
            run.reference.params = averages
        run.check()


# Scales


def test_loss_scale_factor(recorder: Recorder) -> None:
    """Gradients come scaled, and are divided; a power of two changes no bit."""
    run = Run(Magma(0.1, block_axes=AXES, loss_scale_factor=4.0))
    for step in range(1, 4):
        grads = gradients(step, run.variables)
        run.apply([grad * 4.0 for grad in grads])
        run.reference.step(by_path(grads, run.variables), RATE)
        run.check()
    assert float(run.optimizer.scale_loss(2.0)) == 8.0


class Scaled:
    """`keras.optimizers.LossScaleOptimizer` as training steps call it: on JAX through ``stateless_apply``."""

    def __init__(self, inner: Any) -> None:
        self.optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=3)
        self.run = Run(self.optimizer)
        self.optimizer.build(self.run.variables)

    def apply(self, grads: Any) -> None:
        if BACKEND != "jax":
            self.run.apply(grads)
            return
        values = [[x.value for x in group] for group in (self.optimizer.variables, self.run.variables)]
        params, state = self.optimizer.stateless_apply(values[0], grads, values[1])
        for x, value in zip(self.run.variables + self.optimizer.variables, list(params) + list(state), strict=True):
            x.assign(value)


def test_steps_that_a_loss_scale_discards_leave_no_trace() -> None:
    """Neither masks nor steps nor powers move; the next finite step is what it would have been."""
    scaled = Scaled(Magma(0.1, block_axes=AXES))
    run = scaled.run
    for step, bad in enumerate([False, True, False, True, False, False, False, False], 1):
        scale = host(scaled.optimizer.dynamic_scale)
        grads = gradients(step, run.variables)
        given = [grad * keras.ops.convert_to_tensor(scale) for grad in grads]
        if bad:
            given[1] = given[1] * np.float32("inf" if step == 2 else "nan")
            before = [host(x) for x in run.variables] + weights(scaled.optimizer.inner_optimizer)
        scaled.apply(given)
        if bad:
            check_same([host(x) for x in run.variables] + weights(scaled.optimizer.inner_optimizer), before)
            assert host(scaled.optimizer.dynamic_scale) == scale / 2
        else:
            run.reference.step(by_path(grads, run.variables), RATE)
        run.check()
    assert run.reference.count == 6


# Precisions


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", [Magma, lambda *a, **k: SkipUpdate(*a, base="sgd", **k)], ids=["magma", "sgd"])
def test_variables_of_half_precision(make: Any, dtype: str, recorder: Recorder) -> None:
    """State and learning rate stay float32."""
    run = Run(make(0.1, block_axes=AXES), variables(dtype))
    for _ in range(3):
        run.step(recorder)
    assert {keras.backend.standardize_dtype(x.dtype) for x in run.optimizer.variables[1:]} == {"float32"}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 4)).astype("float32"), rng.normal(size=(16, 1)).astype("float32")


def make_model(optimizer: Any, dtype: Any = None, compile: Any = None, **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    entry = keras.Input((4,))
    hidden = keras.layers.Dense(3, activation="relu", name="hidden", dtype=dtype, **options)
    out = keras.layers.Dense(1, name="out", dtype=dtype)
    model = keras.Model(entry, out(hidden(entry)), name="model")
    model.compile(optimizer=optimizer, loss="mse", **(compile or {}))
    return model


def fit(model: Any, **options: Any) -> Any:
    return model.fit(*data(), **{"batch_size": 4, "shuffle": False, "verbose": 0, "epochs": 1} | options)


def follow(model: Any, recorder: Recorder, **options: Any) -> Reference:
    """A fit, eagerly, and the same steps by the reference."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    of = model.trainable_variables
    reference = Reference(of, optimizer.base, optimizer.rule, {})
    fit(model, **options)
    assert recorder.steps
    for grads, rate in recorder.steps:
        reference.step(grads, rate)
    reference.check(of, optimizer)
    return reference


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_bfloat16", "mixed_float16", "float16"])
def test_fit_with_a_dtype_policy(policy: str, request: pytest.FixtureRequest) -> None:
    """Layers by policy. (JAX: a loss scale compiles the step in any case, so that nothing is to be recorded.)"""
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model(Magma(0.1), compile={"run_eagerly": True})
    finally:
        keras.config.set_dtype_policy("float32")
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    expected = "float32" if policy.startswith("mixed") else policy
    assert {keras.backend.standardize_dtype(x.dtype) for x in model.trainable_variables} == {expected}
    if scaled and BACKEND == "jax":
        before = [host(x) for x in model.trainable_variables]
        fit(model)
        assert any_differ(model.trainable_variables, before)
    else:
        follow(model, request.getfixturevalue("recorder"))


def test_a_floatx_of_half_precision(recorder: Recorder) -> None:
    """The learning rate is a variable of that format, and is taken as what it is there."""
    keras.config.set_floatx("bfloat16")
    try:
        run = Run(Magma(0.1, block_axes=AXES), variables("bfloat16"))
        for _ in range(2):
            run.step(recorder)
    finally:
        keras.config.set_floatx("float32")
    assert recorder.steps[0][1] == np.float32(0.10009765625)


# Accumulation


@pytest.mark.parametrize("steps", [2, 3])
def test_a_step_is_what_gradients_are_accumulated_for(steps: int, recorder: Recorder) -> None:
    """Masks, scores, moments and powers move once for all of them; a part that is left over moves nothing."""
    run = Run(Magma(0.1, block_axes=AXES, gradient_accumulation_steps=steps))
    for call in range(1, 3 * steps):
        run.apply()
        if call % steps == 0:
            run.reference.step(*recorder.steps[-1])
        if call >= steps:
            run.check()
    assert run.reference.count == 2


def test_accumulated_gradients_are_means() -> None:
    """Of two: exact, where they are of one magnitude."""
    run = Run(SkipUpdate(0.1, "sgd", block_axes=AXES, gradient_accumulation_steps=2))
    for step in range(1, 3):
        grads = gradients(step, run.variables)
        run.apply(grads).apply(grads)
        run.reference.step(by_path(grads, run.variables), RATE)
        run.check()


def test_accumulation_with_clipping_and_averages(recorder: Recorder) -> None:
    options = {"clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.5, "loss_scale_factor": 2.0}
    run = Run(Magma(0.1, block_axes=AXES, gradient_accumulation_steps=2, **options))
    for call in range(1, 5):
        run.apply()
        if call % 2 == 0:
            run.reference.step(*recorder.steps[-1])
            run.check()


def test_accumulation_in_fit() -> None:
    """Compiled: five batches are two steps of two, and one that waits."""
    model = make_model(Magma(0.1, gradient_accumulation_steps=2))
    fit(model, batch_size=4, epochs=1, steps_per_epoch=3)
    assert int(model.optimizer.iterations) == 1
    own = {x.name: host(x) for x in model.optimizer.variables}
    assert own["beta_1_power"] == np.float32(0.9)
    assert own["iteration"] == 3


# Learning rates


def test_a_schedule(recorder: Recorder) -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.5, 0.25, 0.125])
    run = Run(Magma(schedule, block_axes=AXES))
    for _ in range(4):
        run.step(recorder)
    assert [float(rate) for _, rate in recorder.steps] == [0.5, 0.5, 0.25, 0.125]


def test_a_callable(recorder: Recorder) -> None:
    rates = iter([0.5, 0.25])
    run = Run(Magma(lambda: next(rates), block_axes=AXES))
    run.step(recorder).step(recorder)
    assert [float(rate) for _, rate in recorder.steps] == [0.5, 0.25]


def test_a_rate_that_is_set(recorder: Recorder) -> None:
    """As callbacks do; 0 moves no parameter, but scores and moments."""
    run = Run(Magma(0.1, block_axes=AXES)).step(recorder)
    before = [host(x) for x in run.variables]
    run.optimizer.learning_rate = 0.0
    run.step(recorder)
    check_same(run.variables, before)
    run.optimizer.learning_rate = 0.5
    run.step(recorder)
    assert any_differ(run.variables, before)


@pytest.mark.parametrize("callback", ["LearningRateScheduler", "ReduceLROnPlateau"])
def test_callbacks_that_set_the_rate(callback: str, recorder: Recorder) -> None:
    made = {
        "LearningRateScheduler": lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5**epoch),
        "ReduceLROnPlateau": lambda: keras.callbacks.ReduceLROnPlateau(
            "loss", 0.5, patience=0, min_delta=1e9, cooldown=0
        ),
    }[callback]()
    follow(make_model(Magma(1.0), compile={"run_eagerly": True}), recorder, epochs=3, batch_size=8, callbacks=[made])
    rates = [float(rate) for _, rate in recorder.steps[::2]]
    assert rates == ([1.0, 0.5, 0.25] if callback == "LearningRateScheduler" else [1.0, 1.0, 0.5])


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("per_execution", [2, 3])
def test_several_steps_in_one_execution(per_execution: int) -> None:
    """Against one; the last execution of an epoch has fewer."""
    one, many = (make_model(Magma(0.1), compile={"steps_per_execution": n}) for n in (1, per_execution))
    fit(one)
    fit(many)
    assert int(many.optimizer.iterations) == 4
    check_same(many.trainable_variables, one.trainable_variables)
    check_same(weights(many.optimizer), weights(one.optimizer))


def test_train_on_batch_is_fit() -> None:
    x, y = data()
    one, other = make_model(Magma(0.1)), make_model(Magma(0.1))
    fit(one)
    for i in range(0, 16, 4):
        other.train_on_batch(x[i : i + 4], y[i : i + 4])
    check_same(other.trainable_variables, one.trainable_variables)
    check_same(weights(other.optimizer), weights(one.optimizer))


# Variables


def test_variables_that_are_overwritten_by_their_gradients(recorder: Recorder) -> None:
    """As float8 layers have them: no state, no mask, no learning rate."""
    of = variables()
    of[1].overwrite_with_gradient = True
    run = Run(Magma(0.1, block_axes=AXES), of)
    rest = [of[0], of[2]]
    run.reference = Reference(rest, run.optimizer.base, run.optimizer.rule)
    for _ in range(3):
        run.apply()
        run.reference.step(*recorder.steps[-1])
        run.reference.check(rest, run.optimizer)
        check_same([of[1]], [gradients(run.calls, of)[1]])
    assert set(run.optimizer.scores) == {"w"}
    assert not [x.name for x in run.optimizer.variables if x.name.startswith("b_")]


def test_constraints(recorder: Recorder) -> None:
    """They come after the step, and the next one starts from what they leave."""
    of = variables()
    of[0].constraint = keras.constraints.NonNeg()
    run = Run(Magma(0.1, block_axes=AXES), of)
    for _ in range(3):
        run.apply()
        run.reference.step(*recorder.steps[-1])
        constrained = run.reference.params["w"]
        run.reference.params["w"] = host(of[0])
        assert (host(of[0]) >= 0).all()
        np.testing.assert_array_equal(host(of[0]), np.maximum(constrained, 0))
        run.check()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_gradients_that_are_missing(recorder: Recorder) -> None:
    """Nothing of such a variable moves; the step counts for it all the same."""
    run = Run(Magma(0.1, block_axes=AXES))
    for step, missing in enumerate([[1], [0], [], [1, 2]], 1):
        grads = gradients(step, run.variables)
        before = [host(run.variables[i]) for i in missing]
        run.apply([None if i in missing else grad for i, grad in enumerate(grads)])
        run.reference.step(*recorder.steps[-1])
        assert len(recorder.steps[-1][0]) == 3 - len(missing)
        run.check()
        check_same([run.variables[i] for i in missing], before)


def test_some_of_the_variables(recorder: Recorder) -> None:
    """``apply`` may be called for a part of those that the optimizer was built with."""
    run = Run(Magma(0.1, block_axes=AXES))
    run.optimizer.build(run.variables)
    for part in ([0], [2, 1], [0, 1, 2]):
        of = [run.variables[i] for i in part]
        run.optimizer.apply(gradients(len(part), of), of)
        run.reference.step(*recorder.steps[-1])
        run.check()


def test_every_shape(recorder: Recorder) -> None:
    """Scalars, empty tensors, kernels of convolutions, and axes out of order."""
    shapes = {"scalar": (), "empty": (0, 3), "kernel": (2, 2, 3, 2), "other": (2, 3, 2), "rows": (0, 2)}
    axes = {"kernel": (3,), "other": (2, 0), "rows": (1,)}
    run = Run(Magma(0.1, "laprop", block_axes=axes), variables(shapes=shapes), axes)
    for _ in range(2):
        run.step(recorder)
    assert {name: tuple(x.shape) for name, x in run.optimizer.scores.items()} == {
        "scalar": (),
        "empty": (),
        "kernel": (2,),
        "other": (2, 2),
        "rows": (2,),
    }


@pytest.mark.backends("tensorflow")
def test_slices_of_embeddings_are_the_dense_gradient(recorder: Recorder) -> None:
    """Repeated rows are added; clipping sees the slices, the step the whole."""
    import tensorflow as tf

    of = [keras.Variable(np.ones((5, 2), "float32"), name="w"), *variables()[1:]]
    run, dense = Run(Magma(0.1, block_axes=AXES), of), Run(Magma(0.1, block_axes=AXES), [*map(twin, of)])
    for step in range(1, 4):
        rest = gradients(step, of[1:])
        slices = tf.IndexedSlices(tf.constant([[1.0, 2.0], [4.0, -1.0], [0.5, 3.0]]), tf.constant([3, 1, 3]), (5, 2))
        run.apply([slices, *rest])
        dense.apply([tf.constant([[0, 0], [4, -1], [0, 0], [1.5, 5], [0, 0]], tf.float32), *rest])
        check_same(state_of(run), state_of(dense))
        run.reference.step(*recorder.steps[-1])
        run.check()


@pytest.mark.backends("jax")
def test_sparse_gradients_are_the_dense_gradient() -> None:
    from jax.experimental import sparse

    run, dense = (Run(Magma(0.1, block_axes=AXES)) for _ in range(2))
    for step in range(1, 3):
        grads = gradients(step, run.variables)
        dense.apply(grads)
        run.apply([sparse.BCOO.fromdense(grads[0]), *grads[1:]])
        check_same(state_of(run), state_of(dense))


def twin(x: Any) -> Any:
    return keras.Variable(host(x), name=x.name)


@pytest.mark.parametrize(
    "options", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"gradient_accumulation_steps": 2}]
)
def test_embedding_layers(options: Any, recorder: Recorder) -> None:
    """Duplicate indices, in a fit: the gradient is the backend's, slices on TensorFlow."""
    entry = keras.Input((3,), dtype="int32")
    rows = keras.layers.Embedding(6, 2, name="embedding")(entry)
    model = keras.Model(entry, keras.layers.Dense(1, name="out")(keras.layers.Flatten()(rows)))
    axes = {"embedding/embeddings": (0,)}
    model.compile(optimizer=Magma(0.1, block_axes=axes, **options), loss="mse", run_eagerly=True)
    of = model.trainable_variables
    reference = Reference(of, model.optimizer.base, model.optimizer.rule, axes)
    x = np.int32([[1, 1, 2], [2, 1, 5], [0, 0, 0], [4, 2, 1]])
    model.fit(x, np.ones((4, 1), "float32"), batch_size=2, epochs=2, shuffle=False, verbose=0)
    every = options.get("gradient_accumulation_steps", 1)
    for grads, rate in recorder.steps[-1::-every][::-1] if BACKEND == "jax" else recorder.steps:
        reference.step(grads, rate)
    reference.check(of, model.optimizer)


def test_frozen_layers(recorder: Recorder) -> None:
    """They are no variables of the optimizer; after compiling again there is a new state, of the rest."""
    model = make_model(Magma(0.1), compile={"run_eagerly": True})
    model.get_layer("hidden").trainable = False
    model.compile(optimizer=Magma(0.1), loss="mse", run_eagerly=True)
    before = [host(x) for x in model.get_layer("hidden").variables]
    follow(model, recorder)
    check_same(model.get_layer("hidden").variables, before)
    assert set(model.optimizer.scores) == {"out/kernel", "out/bias"}
    recorder.steps.clear()
    model.get_layer("hidden").trainable = True
    model.compile(optimizer=Magma(0.1), loss="mse", run_eagerly=True)
    follow(model, recorder)
    assert any_differ(model.get_layer("hidden").variables, before)


def test_other_variables_than_built_with() -> None:
    run = Run(Magma(0.1)).apply()
    before = state_of(run)
    with pytest.raises(ValueError, match="Unknown variable"):
        run.optimizer.apply(gradients(1, run.variables[:1]), [twin(run.variables[0])])
    check_same(state_of(run), before)


# Without state, and with others


@pytest.mark.backends("jax", "torch")
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"use_ema": True}], ids=str)
def test_stateless_apply_is_apply_and_changes_nothing(options: Any) -> None:
    run, other = (Run(Magma(0.1, block_axes=AXES, **options)) for _ in range(2))
    other.optimizer.build(other.variables)
    before = state_of(other)
    params, state = (
        [keras.ops.convert_to_tensor(host(x)) for x in g] for g in (other.variables, other.optimizer.variables)
    )
    for step in range(1, 4):
        run.apply()
        params, state = other.optimizer.stateless_apply(state, gradients(step, other.variables), params)
        check_same([*params, *state], state_of(run))
        check_same(state_of(other), before)


def test_two_optimizers_for_one_model(recorder: Recorder) -> None:
    """Each has its own variables, and counts its own steps."""
    of = variables()
    ours, theirs = Magma(0.1, block_axes=AXES), keras.optimizers.SGD(0.5)
    chosen = keras.optimizers.OptimizerMap(theirs, {"w": ours, "plain": ours})
    both = keras.optimizers.MultiOptimizer(chosen)
    mine = [of[0], of[2]]
    reference = Reference(mine, ours.base, ours.rule)
    alone = [twin(of[1])]
    sgd = keras.optimizers.SGD(0.5)
    for step in range(1, 4):
        grads = gradients(step, of)
        both.apply(grads, of)
        sgd.apply(grads[1:2], alone)
        reference.step(*recorder.steps[-1])
        reference.check(mine, ours)
        check_same(of[1:2], alone)


# What can be asked


@pytest.mark.parametrize(
    "make",
    [
        lambda: Magma(0.1, block_axes=AXES),
        lambda: SkipUpdate(0.1, block_axes=AXES),
        lambda: MaskedOptimizer(0.1, score_survival(), "sgd", block_axes=AXES, gradient_accumulation_steps=2),
        lambda: MaskedOptimizer(0.1, damping(momentum="before"), "rmsprop", block_axes=AXES),
    ],
    ids=["magma", "skip_update", "survival", "damping"],
)
def test_alignment_is_what_the_step_then_does(make: Any) -> None:
    """And asking changes nothing."""
    run = Run(make())
    run.optimizer.build(run.variables)
    every = run.optimizer.gradient_accumulation_steps or 1
    kept = []
    for step in range(1, 6):
        grads = gradients(step, run.variables)
        before = state_of(run)
        seen = run.optimizer.alignment(grads)
        check_same(state_of(run), before)
        params = {x.path: host(x) for x in run.variables}
        for _ in range(every):
            run.apply(grads)
        run.reference.step(by_path(grads, run.variables), RATE)
        run.check()
        assert set(seen) == {"w", "b"}
        for name, alignment in seen.items():
            report = run.reference.reports[name] | {"score": run.reference.states[name]["score"]}
            for field in ("cosine", "score", "keep", "sums"):
                value, expected = getattr(alignment, field), report.get(field)
                assert (value is None) == (expected is None), field
                if expected is not None:
                    assert_bits_equal(host(value), expected, f"{field} of {name}")
            moved = host(next(x for x in run.variables if x.path == name)) != params[name]
            moved = moved.any(axis=1) if name == "w" else moved.any()
            np.testing.assert_array_equal(moved, host(alignment.keep))
            if run.optimizer.rule.uses_score:
                assert first_difference(host(run.optimizer.scores[name]), host(alignment.score)) is None
            kept.append(host(alignment.keep).reshape(-1))
    assert np.concatenate(kept).any()
    assert run.optimizer.rule.p == 1.0 or not np.concatenate(kept).all()


def test_alignment_builds_and_leaves_out_what_has_no_gradient() -> None:
    of = variables()
    optimizer = Magma(0.1, block_axes=AXES)
    assert optimizer.scores == {}
    grads = gradients(1, of)
    assert set(optimizer.alignment([grads[0], None, grads[2]], of)) == {"w"}
    assert set(optimizer.scores) == {"w", "b"}


# Errors


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({"mask_names": lambda path: "same"}, "float32"), ({"block_axes": (2,)}, "float32"), ({}, "int32")],
)
def test_what_cannot_be_built_is_as_before(options: Any, dtype: str) -> None:
    optimizer, of = Magma(0.1, **options), variables(dtype, trainable=False)
    before = [host(x) for x in of]
    for build in (lambda: optimizer.build(of), lambda: optimizer.apply([x.value for x in of], of)):
        with pytest.raises((TypeError, ValueError)):
            build()
        assert not optimizer.built
        assert len(optimizer.variables) == 2
        check_same(of, before)


def test_what_comes_too_late() -> None:
    run = Run(Magma(0.1)).apply()
    config = run.optimizer.get_config()
    for call in (run.optimizer.exclude_from_masking, run.optimizer.exclude_from_weight_decay):
        with pytest.raises(ValueError, match="before the optimizer is built"):
            call(var_names=["b"])
    assert run.optimizer.get_config() == config


@pytest.mark.parametrize("shape", [(3, 4), (4,), (4, 1)])
def test_gradients_of_another_shape(shape: tuple[int, ...]) -> None:
    """Also one that could be broadcast; nothing has moved then."""
    run = Run(Magma(0.1, block_axes=AXES)).apply()
    before = state_of(run)
    grads = gradients(2, run.variables)
    with pytest.raises(ValueError, match="shape"):
        run.apply([keras.ops.ones(shape), *grads[1:]])
    check_same(state_of(run), before)


def test_setting_weight_decay_afterwards_is_not_ignored(recorder: Recorder) -> None:
    """Keras's optimizers take what ``weight_decay`` is at each step; ours must take it or refuse it."""
    run = Run(Magma(0.1, weight_decay=0.5, block_axes=AXES)).step(recorder)
    assert run.optimizer.weight_decay == 0.5
    with pytest.raises((AttributeError, ValueError), match="weight_decay"):
        run.optimizer.weight_decay = 0.25
