"""The callback writes the scores."""

import csv

import keras
import numpy as np
import pytest
from magma_keras import Magma, ScoreLogger, SkipUpdate, Wrapped
from magma_keras.backend import to_numpy

from magma_core import magma

EAGER = keras.backend.backend() != "jax"
"""Nothing here is worth compiling, but on JAX, which compiles each operation that it meets."""

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X.sum(1, keepdims=True)


def model(optimizer):
    layers = [keras.Input((3,)), keras.layers.Dense(2, name="hidden"), keras.layers.Dense(1, name="out")]
    made = keras.Sequential(layers, name="model")
    made.compile(optimizer=optimizer, loss="mse", run_eagerly=EAGER)
    return made


def table(file):
    with open(file, newline="") as lines:
        return [{**row, "step": int(row["step"]), "block": int(row["block"])} for row in csv.DictReader(lines)]


def final(optimizer):
    """The scores as the table has them."""
    scores = {name: np.ravel(to_numpy(x)) for name, x in optimizer.scores.items()}
    return {(name, i): str(score) for name, own in scores.items() for i, score in enumerate(own)}


OPTIMIZERS = {
    "magma": lambda: Magma(block_axes=(0,)),
    "wrapped": lambda: Wrapped(keras.optimizers.Lion(1e-3), magma(), block_axes=(0,)),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(Magma(block_axes=(0,))),
    "unmasked": lambda: Magma(block_axes={"bias": None, "kernel": (1,)}),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_the_table_has_every_score_of_every_epoch(tmp_path, make):
    made, file = model(make()), tmp_path / "deep" / "scores.csv"
    made.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[ScoreLogger(file)])
    rows = table(file)
    own = made.optimizer if hasattr(made.optimizer, "scores") else made.optimizer.inner_optimizer
    expected = final(own)
    assert [row["step"] for row in rows] == [3] * len(expected) + [6] * len(expected)
    last = {(row["name"], row["block"]): row["score"] for row in rows if row["step"] == 6}
    assert last == expected
    assert any(row["score"] != last[row["name"], row["block"]] for row in rows)


@pytest.mark.parametrize("per_execution", [1, pytest.param(2, marks=pytest.mark.backends("tensorflow", "jax"))])
def test_entries_every_so_many_steps(tmp_path, per_execution):
    made, file = model(Magma()), tmp_path / "scores.csv"
    made.compile(
        optimizer=made.optimizer,
        loss="mse",
        run_eagerly=EAGER and per_execution == 1,
        steps_per_execution=per_execution,
    )
    made.fit(X, Y, batch_size=4, epochs=2, verbose=0, shuffle=False, callbacks=[ScoreLogger(file, every=4)])
    assert sorted({row["step"] for row in table(file)}) == [4, 8, 12]
    assert {(row["name"], row["block"]): row["score"] for row in table(file) if row["step"] == 12} == final(
        made.optimizer
    )


def test_a_table_is_continued_or_written_anew(tmp_path):
    made, file = model(Magma()), tmp_path / "scores.csv"
    for append, steps in ((False, [3]), (True, [3, 6]), (False, [9])):
        made.fit(X, Y, batch_size=8, verbose=0, callbacks=[ScoreLogger(file, append=append)])
        assert sorted({row["step"] for row in table(file)}) == steps


def test_events_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = model(Magma(block_axes={"hidden/kernel": (0,)}))
    made.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[ScoreLogger(log_dir=tmp_path)])
    events = EventAccumulator(str(tmp_path)).Reload()
    seen = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
    kernel = "scores/model/hidden/kernel"
    others = {f"scores/model/{name}" for name in ("hidden/bias", "out/kernel", "out/bias")}
    assert seen.keys() == {f"{kernel}/{part}" for part in ("mean", "least", "largest")} | others
    assert [event.step for event in seen[f"{kernel}/mean"]] == [3, 6]
    scores = to_numpy(made.optimizer.scores["model/hidden/kernel"])
    assert seen[f"{kernel}/largest"][-1].tensor_proto.float_val[0] == scores.max()


def test_what_cannot_be_logged_is_refused(tmp_path):
    with pytest.raises(ValueError, match="filename or log_dir"):
        ScoreLogger()
    with pytest.raises(TypeError, match="every must be an integer"):
        ScoreLogger(tmp_path / "x", every=1.5)
    made = model("sgd")
    with pytest.raises(ValueError, match="needs an optimizer of magma_keras"):
        made.fit(X, Y, verbose=0, callbacks=[ScoreLogger(tmp_path / "x")])


def test_two_optimizers_with_one_name(tmp_path):
    """Unnamed layers that are alone in their optimizers."""
    layers = [keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)]
    made = keras.Sequential(layers)
    optimizers = keras.optimizers.OptimizerMap(Magma(), {f"{layers[1].name}/.*|.*/{layers[1].name}/.*": Magma()})
    made.compile(optimizer=keras.optimizers.MultiOptimizer(optimizers), loss="mse", run_eagerly=EAGER)
    with pytest.raises(ValueError, match="two optimizers have scores of 'dense/bias': name the layers"):
        made.fit(X, Y, verbose=0, callbacks=[ScoreLogger(tmp_path / "x")])


def test_skip_update_has_no_scores_to_log(tmp_path):
    with pytest.raises(ValueError, match="with scores"):
        model(SkipUpdate()).fit(X, Y, verbose=0, callbacks=[ScoreLogger(tmp_path / "scores.csv")])
