"""Saved, pickled and copied optimizers continue bit for bit.

The tests give gradients, unless the model is the point, because a model's results depend on the backend.
"""

import copy
import json
import pickle
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras_reference import AXES, Reference, Run, any_differ, check_same, gradients, host, variables, weights
from magma_keras import Magma, MaskedOptimizer, SkipUpdate

import magma_core
from magma_core import SGD, damping, dense, score_survival

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, of its own variables under NumPy 2

FILE = "model.keras"
BACKEND = keras.backend.backend()


@keras.saving.register_keras_serializable(package="tests")
def called_otherwise(path: str) -> str:
    return f"tower/{path}"


def schedule() -> Any:
    return keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)


BASES = ["sgd", "rmsprop", "adam", "adamw", "laprop"]


def excluded_from_decay(name: str) -> Magma:
    optimizer = Magma(0.1, weight_decay=0.3)
    optimizer.exclude_from_weight_decay(var_names=[name])
    return optimizer


MAKERS: dict[str, Any] = {
    **{f"Magma-{base}": lambda base=base: Magma(0.1, base, block_axes=AXES) for base in BASES},
    "SkipUpdate": lambda: SkipUpdate(0.1, p=0.3, decay="dense", weight_decay=0.2, block_axes=(0,)),
    "SkipUpdate-sgd": lambda: SkipUpdate(0.1, SGD(nesterov=True, momentum=0.7), seed=2**64 - 1),
    "dense": lambda: MaskedOptimizer(0.1, dense(), "rmsprop", momentum=0.5, weight_decay=0.1),
    "damping": lambda: MaskedOptimizer(0.1, damping(momentum="before"), "laprop", beta_1=0.5, beta_2=0.75),
    "survival": lambda: MaskedOptimizer(0.1, score_survival(damped=True, decay="dense"), epsilon=1e-3),
    "own rule": lambda: MaskedOptimizer(0.1, magma_core.Rule(survival="score", weight="inverse_p", p=0.25), "adam"),
    "numbers": lambda: Magma(
        0.1, p=0.25, tau=0.5, score_ema=0.75, initial_score=0.25, cosine_momentum="before", decay="dense", seed=7
    ),
    "axes (0,)": lambda: Magma(0.1, block_axes=(0,)),
    "axes []": lambda: Magma(0.1, block_axes=[]),
    "axes -> None": lambda: Magma(0.1, block_axes={"^w$": (1, 0), "plain|b": None}),
    "names": lambda: Magma(0.1, mask_names={"w": "other/w"}),
    "function of names": lambda: Magma(0.1, mask_names=called_otherwise),
    "schedule": lambda: Magma(schedule()),
    "no decay": lambda: excluded_from_decay("^w$"),
    "keras": lambda: Magma(0.1, clipnorm=1.0, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2, name="mine"),
    "accumulation": lambda: SkipUpdate(0.1, global_clipnorm=1.0, gradient_accumulation_steps=2, loss_scale_factor=4.0),
    "clipvalue": lambda: Magma(0.1, clipvalue=0.5),
}
"""Every base, rule and kind of argument."""

ROADS: dict[str, Any] = {
    "from_config": lambda x: type(x).from_config(x.get_config()),
    "through JSON": lambda x: type(x).from_config(json.loads(json.dumps(x.get_config()))),
    "deserialize": lambda x: keras.optimizers.deserialize(keras.optimizers.serialize(x)),
    "get": lambda x: keras.optimizers.get(json.loads(json.dumps(keras.optimizers.serialize(x)))),
    "serialize_keras_object": lambda x: keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(x)),
}


def run(optimizer: Any, of: Any, first: int = 1, steps: int = 3) -> list[np.ndarray]:
    """Variables and state after some steps with gradients that depend on the step alone."""
    for step in range(first, first + steps):
        optimizer.apply(gradients(step, of), of)
    return [host(x) for x in of] + weights(optimizer)


# Configurations


@pytest.mark.parametrize("maker", MAKERS)
def test_configurations_come_back_equal(maker: str) -> None:
    """Also an optimizer's that has been built, which is when models are saved."""
    optimizer = MAKERS[maker]()
    fresh = optimizer.get_config()
    for road, go in ROADS.items():
        again = go(optimizer)
        assert type(again) is type(optimizer), road
        assert again.get_config() == fresh, road
    optimizer.build(variables())
    built = optimizer.get_config()
    for road, go in ROADS.items():
        assert go(optimizer).get_config() == built, road


@pytest.mark.parametrize("maker", MAKERS)
def test_what_comes_back_computes_the_same(maker: str) -> None:
    optimizer = MAKERS[maker]()
    expected = run(optimizer, variables())
    check_same(run(ROADS["through JSON"](optimizer), variables()), expected)
    check_same(run(ROADS["get"](MAKERS[maker]()), variables()), expected)


def test_configurations_have_the_arguments_that_were_given() -> None:
    """By the constructor's own names, so that one can be changed before an optimizer is made of it again."""
    config = Magma(0.5, "sgd", p=0.25, momentum=0.5, nesterov=True, block_axes={"w": (0,), "b": None}).get_config()
    given = {"learning_rate": 0.5, "base": "sgd", "p": 0.25, "momentum": 0.5, "nesterov": True, "weight_decay": 0.0}
    assert {name: config[name] for name in given} == given
    assert config["block_axes"] == {"w": [0], "b": None}
    assert Magma.from_config({**config, "p": 0.125}).rule == magma_core.magma(p=0.125)


def test_what_get_config_gives_can_be_changed() -> None:
    """Without the optimizer's own options changing with it."""
    names, axes = {"w": "x"}, {"w": [0]}
    optimizer = Magma(0.1, mask_names=names, block_axes=axes)
    config = optimizer.get_config()
    config["mask_names"]["w"] = "y"
    config["block_axes"]["w"].append(1)
    assert optimizer.get_config()["mask_names"] == {"w": "x"}
    assert optimizer.get_config()["block_axes"] == {"w": [0]}


@pytest.mark.parametrize("base", BASES)
def test_a_base_without_decay_does_not_forbid_decay(base: str) -> None:
    """A variable that does not decay because λ is 0 was not excluded: a configuration may be used with another λ."""
    optimizer = Magma(0.1, base, **({} if base == "adam" else {"weight_decay": 0.0}))
    optimizer.build(variables())
    assert all(decays for *_, decays in optimizer.get_config()["variables"])


@pytest.mark.parametrize("how", ["var_list", "var_names"])
@pytest.mark.parametrize("road", ROADS)
def test_exclusions_come_back(how: str, road: str) -> None:
    """From masking always; from decay once the optimizer is built."""
    of = variables()
    optimizer = Magma(0.1, weight_decay=0.5, block_axes=(0,))
    chosen = {"var_list": [of[1]]} if how == "var_list" else {"var_names": ["^b"]}
    optimizer.exclude_from_masking(**chosen)
    optimizer.exclude_from_weight_decay(**chosen)
    expected = run(optimizer, of)
    again = ROADS[road](optimizer)
    check_same(run(again, variables()), expected)
    assert set(again.scores) == {"w", "plain"}
    assert [path for path, *_, decays in again.get_config()["variables"] if not decays] == ["b"]


def test_exclusions_from_masking_of_an_optimizer_that_is_not_built() -> None:
    optimizer = Magma(0.1)
    optimizer.exclude_from_masking(var_names=["b"])
    again = ROADS["get"](optimizer)
    run(again, variables())
    assert set(again.scores) == {"w", "plain"}


@pytest.mark.parametrize("order", ["axes first", "exclusion first"])
def test_exclusion_wins_over_axes(order: str) -> None:
    """Also where block_axes has the very pattern; what is excluded later is excluded."""
    optimizer = Magma(0.1, block_axes={"b": (), "w": (0,)} if order == "axes first" else {"w": (), "b": ()})
    optimizer.exclude_from_masking(var_names=["b"])
    optimizer.build(variables())
    assert set(optimizer.scores) == {"w", "plain"}


@pytest.mark.parametrize(
    "identifier",
    [
        {"class_name": "magma>Magma", "config": {"learning_rate": 0.25, "base": "laprop", "block_axes": [0]}},
        {"class_name": "magma>MaskedOptimizer", "config": {"learning_rate": 0.25, "rule": {"p": 0.25}}},
        {"class_name": "magma>SkipUpdate", "config": {"learning_rate": 0.25, "p": 0.25}},
        "magma>Magma",
    ],
    ids=str,
)
def test_identifiers(identifier: Any) -> None:
    """What a file of settings can have, and `compile` takes; by the registered name, as Keras has no other."""
    model = make_model(copy.deepcopy(identifier))
    assert isinstance(model.optimizer, MaskedOptimizer)
    if isinstance(identifier, dict):
        config = model.optimizer.get_config()
        assert config["learning_rate"] == 0.25
        assert config.get("p", 0.5) == identifier["config"].get("p", 0.5)
    fit(model, epochs=1)


def test_a_function_of_names_that_is_not_registered() -> None:
    """Keras can write it by its module alone, and refuses to read a lambda in safe mode."""
    optimizer = Magma(0.1, mask_names=lambda path: "x" + path)
    with pytest.warns(UserWarning, match="lambda"):
        config = optimizer.get_config()
    with pytest.raises((ValueError, TypeError), match="lambda"):
        Magma.from_config(config)


# Models


def make_model(optimizer: Any, kind: str = "functional", **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(3, activation="relu", name="hidden")
    out = keras.layers.Dense(1, name="out")
    entry = keras.Input((4,))
    if kind == "sequential":
        model = keras.Sequential([entry, hidden, out], name="model")
    elif kind == "nested":
        inner = keras.Sequential([keras.Input((4,)), hidden], name="inner")
        model = keras.Model(entry, out(inner(entry)), name="model")
    else:
        model = keras.Model(entry, out(hidden(entry)), name="model")
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 4)).astype("float32"), rng.normal(size=(16, 1)).astype("float32")


def fit(model: Any, **options: Any) -> Any:
    return model.fit(*data(), batch_size=4, shuffle=False, verbose=0, **options)


def state_of(model: Any) -> list[np.ndarray]:
    return [host(x) for x in model.variables] + weights(model.optimizer)


def feed(model: Any, steps: range) -> list[np.ndarray]:
    of = model.trainable_variables
    for step in steps:
        model.optimizer.apply(gradients(step, of), of)
    return state_of(model)


MODEL_MAKERS: dict[str, Any] = {
    "Magma": lambda: Magma(0.1, block_axes={"kernel": (0,), "hidden/bias": None}),
    "SkipUpdate-sgd": lambda: SkipUpdate(0.1, "sgd", nesterov=True, weight_decay=0.1),
    "damping-rmsprop": lambda: MaskedOptimizer(0.1, damping(), "rmsprop"),
    "survival-laprop": lambda: MaskedOptimizer(0.1, score_survival(), "laprop", block_axes=(0,)),
    "function of names": lambda: Magma(schedule(), mask_names=called_otherwise),
    "ema, accumulation": lambda: Magma(0.1, use_ema=True, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(Magma(0.1), initial_scale=4.0),
}


def through_a_file(model: Any, folder: Any) -> Any:
    model.save(folder / FILE)
    return keras.saving.load_model(folder / FILE)


@pytest.mark.parametrize("maker", [name for name in MODEL_MAKERS if name != "loss scale" or BACKEND != "jax"])
def test_training_goes_on_from_a_file(maker: str, tmp_path: Any) -> None:
    """An odd number of calls before, so that accumulation is cut in the middle. (JAX: Keras's own loss scaling has no
    ``apply`` that works outside of a compiled step.)"""
    model = make_model(MODEL_MAKERS[maker]())
    before = feed(model, range(1, 4))
    loaded = through_a_file(model, tmp_path)
    check_same(state_of(loaded), before)
    after = feed(model, range(4, 8))
    assert any_differ(after, before)
    check_same(feed(loaded, range(4, 8)), after)


@pytest.mark.parametrize("kind", ["sequential", "nested"])
@pytest.mark.parametrize("how", ["file", "pickle", "deepcopy"])
def test_masks_outlive_the_paths_of_variables(how: str, kind: str, tmp_path: Any) -> None:
    """Keras loads "model/hidden/kernel" of a Sequential or a nested model as "hidden/kernel"."""
    model = make_model("sgd", kind)
    prefix = {"sequential": "model/", "nested": "inner/"}[kind]
    axes = {f"^{prefix}hidden/kernel": (0,)}
    optimizer = Magma(0.1, weight_decay=0.5, block_axes=axes, mask_names={f"{prefix}hidden/kernel": "tied"}, seed=1)
    optimizer.exclude_from_masking(var_list=[model.trainable_variables[1]])
    optimizer.exclude_from_weight_decay(var_list=[model.trainable_variables[1]])
    model.compile(optimizer=optimizer, loss="mse")
    feed(model, range(1, 4))
    roads = {"file": lambda x: through_a_file(x, tmp_path), "pickle": lambda x: pickle.loads(pickle.dumps(x))}
    loaded = roads.get(how, copy.deepcopy)(model)
    assert list(loaded.optimizer.scores) == list(model.optimizer.scores)
    check_same(feed(loaded, range(4, 7)), feed(model, range(4, 7)))


def test_names_may_repeat_in_nested_models(tmp_path: Any) -> None:
    """They have different paths when the model is built, and the same ones when it has been loaded."""
    entry = keras.Input((4,))
    towers = [keras.Sequential([keras.layers.Dense(2, name="dense")], name=f"tower_{i}") for i in range(2)]
    model = keras.Model(entry, keras.layers.add([tower(entry) for tower in towers]))
    model.compile(optimizer=Magma(0.1), loss="mse")
    feed(model, range(1, 3))
    loaded = through_a_file(model, tmp_path)
    check_same(feed(loaded, range(3, 5)), feed(model, range(3, 5)))


# Keras on JAX cannot fit twice with use_ema, whatever the optimizer: it donates a buffer twice.
@pytest.mark.parametrize(
    "maker",
    ["Magma", "loss scale", pytest.param("ema, accumulation", marks=pytest.mark.backends("tensorflow", "torch"))],
)
def test_fit_goes_on_from_a_file(maker: str, tmp_path: Any) -> None:
    """In the backend's own compiled step; also in a process where more layers have been made since."""
    model = make_model(MODEL_MAKERS[maker]())
    fit(model, epochs=1)
    loaded = through_a_file(model, tmp_path)
    check_same(state_of(loaded), state_of(model))
    expected = fit(model, epochs=1).history["loss"]
    assert fit(loaded, epochs=1).history["loss"] == expected
    check_same(state_of(loaded), state_of(model))


def test_masks_are_those_of_the_reference_after_a_file(tmp_path: Any) -> None:
    """Not only of one another."""
    axes = {"kernel": (0,)}
    model = make_model(Magma(0.1, block_axes=axes, seed=3))
    of = model.trainable_variables
    by_path = {x.path: (0,) for x in of if x.name == "kernel"}
    reference = Reference(of, model.optimizer.base, model.optimizer.rule, by_path, seed=3)
    for step in range(1, 6):
        if step == 3:
            model = through_a_file(model, tmp_path)
            of = model.trainable_variables
        grads = gradients(step, of)
        model.optimizer.apply(grads, of)
        reference.step({x.path: host(grad) for grad, x in zip(grads, of, strict=True)}, np.float32(0.1))
        reference.check(of, model.optimizer)


def test_exclusions_from_decay_survive_a_file(tmp_path: Any) -> None:
    """Keras's own optimizers forget them, and decay everything after loading."""
    optimizer = Magma(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = make_model(optimizer)
    feed(model, range(1, 3))
    loaded = through_a_file(model, tmp_path)
    check_same(feed(loaded, range(3, 5)), feed(model, range(3, 5)))


@pytest.mark.parametrize("maker", ["Magma", "survival-laprop", "ema, accumulation"])
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_models_are_copied_with_their_optimizers(how: str, maker: str) -> None:
    model = make_model(MODEL_MAKERS[maker]())
    feed(model, range(1, 4))
    copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    check_same(state_of(copied), state_of(model))
    before = state_of(copied)
    after = feed(model, range(4, 6))
    check_same(state_of(copied), before, "the copy stays as it was")
    check_same(feed(copied, range(4, 6)), after)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_optimizers_alone_are_copied_as_keras_copies_its_own(how: str, built: bool) -> None:
    """Its configuration comes along, and its state as far as Keras's own comes along."""

    def copied(optimizer: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that what is not built cannot take the state
            return copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))

    ours, theirs = Magma(0.1, "laprop", p=0.25, block_axes=AXES), keras.optimizers.Adam(0.1)
    if built:
        run(ours, variables())
        run(theirs, variables())
    again, model = copied(ours), copied(theirs)
    assert again.get_config() == ours.get_config()
    assert (again.built, int(again.iterations)) == (model.built, int(model.iterations))


def test_weights_are_taken_from_another_optimizer() -> None:
    of = variables()
    optimizer = Magma(0.1, block_axes=AXES)
    run(optimizer, of)
    twins = [keras.Variable(host(x), name=x.name) for x in of]
    other = Magma(0.1, block_axes=AXES)
    with pytest.raises(ValueError, match="built"):
        other.set_weights(weights(optimizer))
    other.build(twins)
    other.set_weights(weights(optimizer))
    check_same(run(other, twins, 4), run(optimizer, of, 4))


def test_own_variables_are_saved_and_loaded() -> None:
    of = variables()
    optimizer = Magma(0.1, "laprop", block_axes=AXES)
    run(optimizer, of)
    store: dict[str, Any] = {}
    optimizer.save_own_variables(store)
    kept = {name: np.array(x) for name, x in store.items()}
    assert len(kept) == len(optimizer.variables)
    twins = [keras.Variable(host(x), name=x.name) for x in of]
    other = Magma(0.1, "laprop", block_axes=AXES)
    other.build(twins)
    other.load_own_variables(kept)
    check_same(run(other, twins, 4), run(optimizer, of, 4))


def test_state_that_does_not_fit_is_refused() -> None:
    """By Keras, and nothing of it is taken: another rule has other variables, other blocks have other shapes."""
    store: dict[str, Any] = {}
    optimizer = Magma(0.1, block_axes=(0,))
    run(optimizer, variables())
    optimizer.save_own_variables(store)
    store = {name: np.array(x) for name, x in store.items()}
    other = SkipUpdate(0.1)
    other.build(variables())
    before = weights(other)
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        other.load_own_variables(store)
    check_same(weights(other), before)
    whole = Magma(0.1)
    whole.build(variables())
    with pytest.raises(ValueError, match="shape"):
        whole.set_weights(weights(optimizer))
    with pytest.raises(ValueError, match="shape"):
        whole.load_own_variables(store)


def test_weights_of_a_model_alone(tmp_path: Any) -> None:
    """The optimizer's state is in the file as for Keras's own optimizers, and is taken by a built one."""
    model, other = (make_model(MODEL_MAKERS["Magma"]()) for _ in range(2))
    feed(model, range(1, 4))
    model.save_weights(tmp_path / "model.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    check_same(state_of(other), state_of(model))
    check_same(feed(other, range(4, 6)), feed(model, range(4, 6)))


def test_clones_take_the_same_steps() -> None:
    """A clone has the layers' names, so the paths are the same, and with them the masks."""
    model = make_model(Magma(0.1, block_axes=(0,)))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    clone.compile(optimizer=keras.optimizers.get(keras.optimizers.serialize(model.optimizer)), loss="mse")
    assert [x.path for x in clone.trainable_variables] == [x.path for x in model.trainable_variables]
    check_same(feed(clone, range(1, 4)), feed(model, range(1, 4)))


def test_compiled_models_are_saved_from_their_configuration() -> None:
    """``get_compile_config`` is what a file has."""
    model = make_model(MODEL_MAKERS["function of names"]())
    other = keras.Model.from_config(model.get_config())
    other.set_weights(model.get_weights())
    other.compile_from_config(json.loads(json.dumps(model.get_compile_config())))
    check_same(feed(other, range(1, 4)), feed(model, range(1, 4)))


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("restored", ["before it is built", "after"])
def test_checkpoints_of_tensorflow(restored: str, tmp_path: Any) -> None:
    import tensorflow as tf

    model, other = (make_model(MODEL_MAKERS["Magma"]()) for _ in range(2))
    feed(model, range(1, 4))
    written = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "c")
    checkpoint = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
    if restored == "after":
        other.optimizer.build(other.trainable_variables)
        checkpoint.restore(written).assert_existing_objects_matched()
    else:
        status = checkpoint.restore(written)
        other.optimizer.build(other.trainable_variables)
        status.assert_existing_objects_matched()
    check_same(state_of(other), state_of(model))
    check_same(feed(other, range(4, 6)), feed(model, range(4, 6)))


@pytest.mark.backends("tensorflow")
def test_a_compiled_model_is_exported(tmp_path: Any) -> None:
    import tensorflow as tf

    model = make_model(MODEL_MAKERS["Magma"]())
    fit(model, epochs=1)
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    x, _ = data()
    expected = host(model(x))
    for folder in ("exported", "saved"):
        served = tf.saved_model.load(str(tmp_path / folder))
        call = served.serve if folder == "exported" else served.signatures["serving_default"]
        found = call(tf.convert_to_tensor(x))
        # inference in a program of its own, whose products the compiler may sum otherwise; no optimizer is in it
        np.testing.assert_allclose(next(iter(found.values())) if isinstance(found, dict) else found, expected, 1e-6)


@pytest.mark.parametrize("callback", ["ModelCheckpoint", "BackupAndRestore"])
def test_callbacks_that_save(callback: str, tmp_path: Any) -> None:
    """Interrupted after an epoch and started again, against a run that was not."""
    expected = make_model(MODEL_MAKERS["Magma"]())
    fit(expected, epochs=2)
    if callback == "ModelCheckpoint":
        fit(make_model(MODEL_MAKERS["Magma"]()), epochs=1, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / FILE)])
        model = keras.saving.load_model(tmp_path / FILE)
        fit(model, initial_epoch=1, epochs=2)
    else:

        class Interrupt(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if epoch == 1:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(
                make_model(MODEL_MAKERS["Magma"]()),
                epochs=2,
                callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup"), Interrupt()],
            )
        model = make_model(MODEL_MAKERS["Magma"]())
        fit(model, epochs=2, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    check_same(state_of(model), state_of(expected))


def test_a_run_and_its_reference() -> None:
    """That what this file compares with one another is also right."""
    run_ = Run(Magma(0.1, block_axes=AXES))
    for step in range(1, 4):
        grads = gradients(step, run_.variables)
        run_.apply(grads)
        by_path = {x.path: host(grad) for grad, x in zip(grads, run_.variables, strict=True)}
        run_.reference.step(by_path, np.float32(0.1))
        run_.check()
