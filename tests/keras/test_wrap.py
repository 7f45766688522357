"""`Wrapped`: masks and scores are the contract's, the step is the wrapped optimizer's."""

import keras
import numpy as np
import pytest
from magma_conformance.bits import first_difference
from magma_keras import Wrapped
from magma_keras.backend import to_numpy
from magma_numpy import namespace as xp

from magma_core import RMSProp, State, damping, dense, magma, skip_update
from magma_core.alignment import alignment_sums
from magma_core.numerics import real
from magma_core.plan import plan_all
from magma_core.rule import Advanced
from magma_core.step import decide_all

SHAPES = {"w": (6, 5), "v": (4,), "s": ()}
STEPS = 4

INNER = {
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "nadam": lambda: keras.optimizers.Nadam(1e-2),
    "lamb": lambda: keras.optimizers.Lamb(1e-2),
    "lion": lambda: keras.optimizers.Lion(1e-2, weight_decay=0.1),
    "adamax": lambda: keras.optimizers.Adamax(1e-2),
    "sgd": lambda: keras.optimizers.SGD(1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-2, momentum=0.5),
    "adafactor": lambda: keras.optimizers.Adafactor(1e-2),
    "adagrad": lambda: keras.optimizers.Adagrad(1e-2),
    "ftrl": lambda: keras.optimizers.Ftrl(1e-2),
}
MOMENTS = {"adamw": "_momentums", "nadam": "_momentums", "lamb": "_momentums", "lion": "_momentums", "adamax": "_m"}
RULES = {"magma": magma(), "skip": skip_update(p=0.4), "damping": damping(), "before": magma(momentum="before")}


def variables():
    rng = np.random.default_rng(1)
    return [keras.Variable(rng.normal(size=shape).astype("float32"), name=name) for name, shape in SHAPES.items()]


def gradients():
    rng = np.random.default_rng(2)
    return [[rng.normal(size=shape).astype("float32") for shape in SHAPES.values()] for _ in range(STEPS)]


def apply(optimizer, grads, own):
    optimizer.apply([keras.ops.convert_to_tensor(grad) for grad in grads], own)


def assert_bits(actual, expected):
    assert (difference := first_difference(np.asarray(actual), np.asarray(expected))) is None, difference


@pytest.mark.parametrize(
    ("inner", "rule"),
    [(inner, "magma") for inner in INNER] + [(i, r) for i in ("adamw", "sgd") for r in RULES if r != "magma"],
)
def test_against_the_inner_optimizer_and_the_core_on_numpy(inner, rule):
    """The same optimizer is stepped beside it from the same values; masks, scores and mixing are computed by NumPy."""
    rule_of = RULES[rule]
    optimizer, own = Wrapped(INNER[inner](), rule_of, seed=5, block_axes={"w": (0,), "v": None}), variables()
    beside, theirs = INNER[inner](), variables()
    beside.build(theirs)
    axes = {"w": (0,), "v": None, "s": ()}
    plans = plan_all(
        [np.zeros(shape, np.float32) for shape in SHAPES.values()],
        names=list(SHAPES), base=RMSProp(), rule=rule_of, seed=5, block_axes=axes, xp=xp,
    )  # fmt: skip
    scores = {"w": np.full(6, 0.5, np.float32), "v": None, "s": np.float32(0.5)}
    averages = [np.zeros(shape, np.float32) for shape in SHAPES.values()]
    for step, grads in enumerate(gradients(), 1):
        before = [to_numpy(x) for x in own]
        for mine, other in zip(own, theirs, strict=True):
            other.assign(mine)
        kept = getattr(beside, MOMENTS[inner]) if inner in MOMENTS else None
        earlier = averages if kept is None else [to_numpy(x) for x in kept]
        apply(beside, grads, theirs)
        apply(optimizer, grads, own)
        averages = [np.float32(0.9) * mu + np.float32(1 - 0.9) * g for mu, g in zip(averages, grads, strict=True)]
        later = averages if kept is None else [to_numpy(x) for x in kept]
        momenta = earlier if rule_of.momentum == "before" else later
        advanced = [
            Advanced(
                State(),
                plan.numbers,
                alignment_sums(real(mu, xp=xp).flush(), real(g, xp=xp), plan.blocks) if plan.rule.uses_score else None,
            )
            for plan, mu, g in zip(plans, momenta, grads, strict=True)
        ]
        states = [State(score=scores[name]) for name in SHAPES]
        decisions = decide_all(plans, advanced, states, step=step, rate=real(1.0, xp=xp), device=None)
        for name, plan, decision, old, mine, other in zip(SHAPES, plans, decisions, before, own, theirs, strict=True):
            expected = to_numpy(other)
            if decision is not None:
                w = np.asarray(decision.scale.array)
                if rule_of.weight == "score":
                    w, scores[name] = plan.blocks.spread(w, xp=xp), decision.score
                    assert_bits(to_numpy(optimizer.scores[name]), decision.score)
                moved = np.where(w == 1, expected, (expected - old) * w + old)
                expected = np.where(plan.blocks.spread(decision.keep, xp=xp), moved, old)
            assert_bits(to_numpy(mine), expected)


@pytest.mark.parametrize("inner", ["adamw", "sgd"])
def test_the_dense_rule_is_the_inner_optimizer(inner):
    optimizer, own, beside, theirs = Wrapped(INNER[inner](), dense()), variables(), INNER[inner](), variables()
    for grads in gradients():
        apply(optimizer, grads, own)
        apply(beside, grads, theirs)
    for mine, other in zip(own, theirs, strict=True):
        assert_bits(to_numpy(mine), to_numpy(other))


def model(optimizer, **options):
    layers = [keras.Input((3,)), keras.layers.Dense(4, name="hidden"), keras.layers.Dense(1, name="out")]
    made = keras.Sequential(layers, name="model")
    made.compile(optimizer=optimizer, loss="mse", **options)
    return made


EAGER = keras.backend.backend() != "jax"
"""Compiling takes longer than the steps, but on JAX, which compiles each operation that it meets."""

X = np.random.default_rng(3).normal(size=(32, 3)).astype("float32")
Y = X.sum(1, keepdims=True)


def test_saved_and_resumed_in_the_middle(tmp_path):
    made = model(Wrapped(keras.optimizers.Lion(1e-2), magma(), block_axes={"kernel": (1,), "bias": None}))
    made.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    made.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (made, loaded):
        each.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    held, restored = ([*each.weights, *each.optimizer.variables] for each in (made, loaded))
    for mine, other in zip(held, restored, strict=True):
        assert_bits(to_numpy(mine), to_numpy(other))
    assert loaded.optimizer.scores.keys() == {"model/hidden/kernel", "model/out/kernel"}


def test_averages_are_swapped_for_an_evaluation():
    """`keras.callbacks.SwapEMAWeights` would take the wrapped optimizer's for those of a ``LossScaleOptimizer``."""
    made = model(Wrapped(keras.optimizers.SGD(0.1), magma(), use_ema=True), run_eagerly=EAGER)
    made.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    values = [to_numpy(x) for x in made.trainable_variables]
    swapped = made.evaluate(X, Y, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()])
    for variable, before in zip(made.trainable_variables, values, strict=True):
        np.testing.assert_allclose(to_numpy(variable), before, 1e-5)  # TensorFlow swaps by adding
    made.optimizer.finalize_variable_values(made.trainable_variables)
    assert made.evaluate(X, Y, verbose=0) == pytest.approx(swapped, rel=1e-5)


def test_accumulation_counts_real_steps():
    """Half the gradients twice over are the gradients: with two micro-steps the same bits, masks and scores."""
    optimizer = Wrapped(keras.optimizers.Lion(1e-2), magma(), gradient_accumulation_steps=2)
    beside, own, theirs = Wrapped(keras.optimizers.Lion(1e-2), magma()), variables(), variables()
    for grads in gradients():
        apply(optimizer, grads, own)
        apply(optimizer, grads, own)
        apply(beside, grads, theirs)
        for mine, other in zip(own, theirs, strict=True):
            assert_bits(to_numpy(mine), to_numpy(other))
    assert int(to_numpy(optimizer.iterations)) == int(to_numpy(optimizer.optimizer.iterations)) == STEPS


def test_the_learning_rate_is_the_inner_optimizers():
    optimizer = Wrapped(keras.optimizers.SGD(0.5), skip_update())
    optimizer.learning_rate = 0.25
    assert float(to_numpy(optimizer.optimizer.learning_rate)) == float(to_numpy(optimizer.learning_rate)) == 0.25


@pytest.mark.backends("tensorflow", "torch")  # on JAX, Keras scales losses in ``stateless_apply`` alone, see below
def test_what_a_step_without_finite_gradients_leaves():
    """LossScaleOptimizer around the wrapper skips the step: nothing of it is to be seen."""
    wrapped, own = Wrapped(keras.optimizers.Adam(1e-2), magma()), variables()
    optimizer = keras.optimizers.LossScaleOptimizer(wrapped, initial_scale=4.0)
    for grads in gradients()[:2]:
        apply(optimizer, [4 * grad for grad in grads], own)
    before = [to_numpy(x) for x in [*own, *wrapped.variables]]
    apply(optimizer, [grad * np.float32("inf") for grad in gradients()[2]], own)
    for old, new in zip(before, [*own, *wrapped.variables], strict=True):
        assert_bits(to_numpy(new), old)


@pytest.mark.backends("jax")
def test_what_a_step_without_finite_gradients_leaves_on_jax():
    wrapped, own = Wrapped(keras.optimizers.Adam(1e-2), magma()), variables()
    optimizer = keras.optimizers.LossScaleOptimizer(wrapped, initial_scale=4.0)
    optimizer.build(own)
    params, state = [x.value for x in own], [x.value for x in optimizer.variables]
    count = len(optimizer._variables)  # of the scale, which does change
    for grads in gradients()[:2]:
        params, state = optimizer.stateless_apply(state, [4 * grad for grad in grads], params)
    after = optimizer.stateless_apply(state, [grad * np.float32("inf") for grad in gradients()[2]], params)
    assert int(state[count]) == 2
    for old, new in zip([*params, *state[count:]], [*after[0], *after[1][count:]], strict=True):
        assert_bits(new, old)


def test_exclusions_from_decay_reach_the_inner_optimizer():
    optimizer, own = Wrapped(keras.optimizers.SGD(0.5, weight_decay=0.25), dense()), variables()
    optimizer.exclude_from_weight_decay(var_names=["v"])
    before = [to_numpy(x) for x in own]
    apply(optimizer, [np.zeros(shape, np.float32) for shape in SHAPES.values()], own)
    assert [bool(np.any(to_numpy(x) != old)) for x, old in zip(own, before, strict=True)] == [True, False, True]


def test_set_weights_reaches_both():
    optimizer, own, other = Wrapped(keras.optimizers.Adam(0.1), magma()), variables(), variables()
    apply(optimizer, gradients()[0], own)
    again = Wrapped(keras.optimizers.Adam(0.1), magma())
    again.build(other)
    again.set_weights([to_numpy(x) for x in optimizer.variables])
    for mine, theirs in zip(again.variables, optimizer.variables, strict=True):
        assert_bits(to_numpy(mine), to_numpy(theirs))
    with pytest.raises(ValueError, match="weights must have one entry"):
        again.set_weights([])


def test_a_name_that_is_there_twice_builds_neither():
    inner = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="two variables are called 'w'"):
        Wrapped(inner, magma()).build([*variables(), *variables()])
    assert not inner.built
