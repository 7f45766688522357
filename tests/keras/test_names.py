"""Names key the masks: a model built again, loaded or cloned has those of its twin."""

import copy
import doctest
import re
import warnings
from typing import Any

import keras
import magma_keras.automatic
import numpy as np
import pytest
from keras_reference import check_same, gradients
from magma_keras import Magma
from magma_keras.automatic import stable_names

layers = keras.layers


@keras.saving.register_keras_serializable(package="test_names")
class TwoDense(layers.Layer):
    """A layer of layers without names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.second = layers.Dense(2), layers.Dense(4)

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second.build((*shape[:-1], 2))

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


@keras.saving.register_keras_serializable(package="test_names")
class Tower(keras.Model):
    """A subclassed model of layers without names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.block, self.inner = TwoDense(), keras.Sequential([layers.Dense(4), layers.Dense(3)])
        self.out = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(self.inner(self.block(x)))


class Unnamed(layers.Layer):
    """A layer whose variables have no names."""

    def build(self, shape: Any) -> None:
        self.first, self.second = self.add_weight((4, 4)), self.add_weight((4,))

    def call(self, x: Any) -> Any:
        return x @ self.first + self.second


def chain(*made: Any, shape: Any = (4,)) -> Any:
    """A functional model."""
    entry = x = keras.Input(shape)
    for each in made:
        x = each(x)
    return keras.Model(entry, x)


def sequential() -> Any:
    return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])


def built_late() -> Any:
    model = keras.Sequential([layers.Dense(3), layers.Dense(1)])
    model(np.ones((1, 4), "float32"))
    return model


def outer_first() -> Any:
    entry = keras.Input((4,))
    return keras.Model(entry, layers.Dense(1)(layers.Dense(3)(entry)))  # Python makes the outer layer first


def nested() -> Any:
    return chain(keras.Sequential([layers.Dense(4)]), chain(layers.Dense(4)), sequential(), layers.Dense(1))


def subclassed(**options: Any) -> Any:
    model = Tower(**options)
    model(np.ones((1, 4), "float32"))
    return model


def shared() -> Any:
    same = layers.Dense(4)
    return chain(same, same, layers.Dense(1))


def attention() -> Any:
    entry = x = keras.Input((2, 4))
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(1, 2)(x, x))
    return keras.Model(entry, x)


def recurrent() -> Any:
    both = layers.Bidirectional(layers.GRU(2, return_sequences=True))
    cells = layers.RNN(layers.StackedRNNCells([layers.GRUCell(2), layers.GRUCell(2)]))
    return chain(layers.TimeDistributed(layers.Dense(4)), both, cells, layers.Dense(1), shape=(2, 4))


MODELS: dict[str, tuple[Any, list[str]]] = {
    "sequential": (sequential, ["dense", "dense_1"]),
    "built late": (built_late, ["dense", "dense_1"]),
    "outer first": (outer_first, ["dense", "dense_1"]),
    "nested": (nested, ["dense", "dense_1", "dense_2", "dense_3", "dense_4"]),
    "subclassed": (
        subclassed,
        ["two_dense/dense", "two_dense/dense_1", "dense", "dense_1", "dense_2"],
    ),
    "layers of layers": (
        lambda: chain(TwoDense(), TwoDense(), layers.Dense(1)),
        ["two_dense/dense", "two_dense/dense_1", "two_dense_1/dense", "two_dense_1/dense_1", "dense"],
    ),
    "shared": (shared, ["dense", "dense_1"]),
    "attention": (
        attention,
        [
            f"{layer}{number}"
            for number in ("", "_1")
            for layer in (
                *(f"multi_head_attention{number}/{part}" for part in ("query", "key", "value", "attention_output")),
                f"layer_normalization{number}",
            )
        ],
    ),
}
"""Models without a name, and the names that their layers have in every process and however often."""


def built(model: Any) -> Magma:
    optimizer = Magma(0.1)
    optimizer.build(model.trainable_variables)
    return optimizer


def names(model: Any) -> list[str]:
    return list(built(model).scores)


def layers_of(model: Any) -> list[str]:
    """Without the number that "attention" repeats."""
    return list(dict.fromkeys(name.rpartition("/")[0] for name in names(model)))


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_built_again_has_the_same_names(kind):
    make, _ = MODELS[kind]
    first = make()
    expected = names(first)
    layers.Dense(1)  # so that the numbers are not even multiples
    again = make()
    assert [x.path for x in again.trainable_variables] != [x.path for x in first.trainable_variables]
    assert names(again) == names(make()) == expected


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "attention"])
def test_names_of_layers(kind):
    make, expected = MODELS[kind]
    make()
    assert layers_of(make()) == expected


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("how", ["file", "clone", "deepcopy"])
def test_twins_have_the_same_names(how, kind, tmp_path):
    """With an optimizer of their own."""
    make, _ = MODELS[kind]
    make()
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras builds what has no ``build``
        if how == "file":
            model.save(tmp_path / "model.keras")
            twin = keras.saving.load_model(tmp_path / "model.keras")
        else:
            twin = keras.models.clone_model(model) if how == "clone" else copy.deepcopy(model)
    if not twin.trainable_variables:
        twin(np.ones((1, 4), "float32"))
    assert names(twin) == names(model)


@pytest.mark.parametrize("make", [make for make, _ in MODELS.values()] + [recurrent, lambda: subclassed(name="net")])
def test_a_saved_optimizer_knows_its_variables_again(make, tmp_path):
    """Even where Keras loses names of wrappers and models, and counts the rest on."""
    make()
    model = make()
    model.compile(Magma(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert list(loaded.optimizer.scores) == list(model.optimizer.scores)


def test_two_runs_in_one_process_are_one_run():
    """Bit for bit: the second model's layers have other numbers."""
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        of = sequential().trainable_variables
        optimizer = Magma(0.1)
        for step in range(1, 4):
            optimizer.apply(gradients(step, of), of)
        runs.append([*of, *optimizer.variables])
    check_same(*runs)


def test_unnamed_variables():
    for _ in range(2):
        assert names(chain(Unnamed(), Unnamed())) == [
            "unnamed/variable", "unnamed/variable_1", "unnamed_1/variable", "unnamed_1/variable_1"
        ]  # fmt: skip
        optimizer = Magma(0.1)
        optimizer.build([keras.Variable([1.0]), keras.Variable([1.0])])
        assert list(optimizer.scores) == ["variable", "variable_1"]


def test_recurrent_layers():
    for _ in range(2):
        assert layers_of(recurrent()) == [
            "time_distributed/dense",
            "bidirectional/forward_gru/gru_cell",
            "bidirectional/backward_gru/gru_cell",
            "rnn/stacked_rnn_cells/gru_cell",
            "rnn/stacked_rnn_cells/gru_cell_1",
            "dense",
        ]


@pytest.mark.parametrize(
    "paths",
    [
        ["model/hidden/kernel", "model/head/kernel"],
        ["encoder/block_7/attention/wq", "encoder/block_3/attention/wq"],
        ["hidden_2/kernel", "hidden_1/kernel"],
        ["dense_0/kernel", "dense_1/kernel", "dense_2/kernel"],  # counted from 0
        ["dense/dense_4"],  # a variable
        ["attention/wq", "mlp/up", "embedding/embeddings"],
        ["Variable"],  # of a tf.Variable
        ["", "a//b", "/"],
        [],
    ],
)
def test_names_that_users_give_stay(paths):
    assert stable_names(paths) == paths


def test_what_only_a_models_name_tells_apart_keeps_it():
    """Numbered anew."""
    paths = ["sequential_4/hidden/kernel", "sequential_5/hidden/kernel", "dense_9/kernel"]
    assert stable_names(paths) == ["sequential/hidden/kernel", "sequential_1/hidden/kernel", "dense/kernel"]


def test_equal_paths_have_equal_names():
    """The core then refuses them, naming one."""
    assert stable_names(["sequential/dense_1/kernel"] * 2) == ["dense/kernel"] * 2


def test_automatic_names_are_those_that_keras_gives():
    made = [kind for kind in vars(layers).values() if isinstance(kind, type) and issubclass(kind, layers.Layer)]
    from keras.src.utils.naming import to_snake_case

    assert len(made) > 100
    for kind in (*made, TwoDense, Tower, keras.Sequential):
        assert magma_keras.automatic._snake(kind.__name__) == to_snake_case(kind.__name__)


# Selections by name


def pair() -> list[Any]:
    made = []
    for layer, name in (("hidden", "kernel"), ("embedding", "embeddings")):
        with keras.name_scope(layer):
            made.append(keras.Variable([1.0], name=name))
    return made


def excluding(how: str, names: Any) -> Magma:
    optimizer = Magma(0.1, weight_decay=0.5)
    getattr(optimizer, how)(var_names=names)
    return optimizer


SELECTIONS: dict[str, tuple[Any, str]] = {
    "axes": (
        lambda: Magma(block_axes={"kernal": ()}),
        "'kernal' of block_axes or exclude_from_masking is in no variable's path; the nearest is 'hidden/kernel'. "
        "Variables that no pattern matches are one block each",
    ),
    "axes and the rest": (
        lambda: Magma(block_axes={"kernal": (), "": None}),
        "Variables that no pattern matches are left to the base",
    ),
    "axes and other axes": (
        lambda: Magma(block_axes={"kernal": (), "": (0,)}),
        "Variables that no pattern matches have block axes (0,)",
    ),
    "a regular expression": (
        lambda: Magma(block_axes={"hiden/.*kernel$": ()}),
        "'hiden/.*kernel$' of block_axes or exclude_from_masking is in no variable's path; the nearest is "
        "'hidden/kernel'",
    ),
    "exclusion": (
        lambda: excluding("exclude_from_masking", ["embeding", "kernel"]),
        "'embeding' of block_axes or exclude_from_masking is in no variable's path; the nearest is "
        "'embedding/embeddings'",
    ),
    "names": (
        lambda: Magma(mask_names={"model/hidden/kernel": "w"}),
        "'model/hidden/kernel' of mask_names is no variable's path; the nearest is 'hidden/kernel'",
    ),
    "decay": (
        lambda: excluding("exclude_from_weight_decay", ["kernel", "hidden/kernel"]),
        "'hidden/kernel' of exclude_from_weight_decay is in no variable's name, where Keras looks for it; the nearest "
        "is 'kernel'",
    ),
}


@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_selection_that_matches_nothing_is_told(kind):
    make, message = SELECTIONS[kind]
    optimizer = make()
    with pytest.warns(UserWarning, match=re.escape(message)) as told:
        optimizer.build(pair())
    assert len(told) == 1
    assert optimizer.built


def test_selections_that_match_are_not_told():
    """Also those of before, where loading has dropped a model's name."""
    optimizer = Magma(
        block_axes={"^model/hidden": (0,), "hidden": (), "": None}, mask_names={"model/hidden/kernel": "w"}
    )
    optimizer.exclude_from_weight_decay(var_names=["kern"])
    with keras.name_scope("model"):
        optimizer.build(pair())
    again = Magma.from_config(optimizer.get_config())
    again.build(pair())
    assert list(again.scores) == ["w"]


def test_docstring_examples_run():
    outcome = doctest.testmod(magma_keras.automatic)
    assert outcome.attempted
    assert not outcome.failed
