"""The ``block_axes`` that `attention_and_mlp` makes of a model."""

import warnings

import keras
import pytest
from architectures import ARCHITECTURES, has_none, named
from magma_keras import Magma, attention_and_mlp
from magma_keras.names import axes


class Node(keras.layers.Layer):
    """A layer with the weights and layers that names describe."""

    def __init__(self, shapes, **kwargs):
        super().__init__(**kwargs)
        self.shapes = list(shapes.items())

    def build(self, shape):
        inner = {}
        for (name, *rest), own in self.shapes:
            if rest:
                inner.setdefault(name, {})[tuple(rest)] = own
            else:
                self.add_weight(shape=own, initializer="zeros", name=name)
        self.inner = [Node(own, name=name) for name, own in inner.items()]
        for node in self.inner:
            node.build(shape)


def tree(shapes):
    """A model whose variables have these names, with slashes in place of dots."""
    model = Node({tuple(name.split(".")): shape for name, shape in shapes.items()}, name="model")
    model.build(())
    return model


def selected(model):
    """The block axes of all trained variables, by the ends of their paths."""
    block_axes = attention_and_mlp(model, quiet=True)
    return {each.path.partition("/")[2]: axes(each.path, block_axes) for each in model.trainable_variables}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures(architecture):
    rows = named(architecture)
    model = tree({row.name: row.shape for row in rows})
    if has_none(rows):
        with pytest.raises(ValueError, match="no attention or MLP matrix was recognised"):
            selected(model)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = selected(model)
    assert found == {row.name.replace(".", "/"): row.axes for row in rows}
    assert len(warned) == any(row.unclear for row in rows)
    assert all(warning.filename == __file__ for warning in warned)


def small():
    """A model with automatic names, and a layer of a class of its own."""

    class TransformerBlock(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mha, self.norm = keras.layers.MultiHeadAttention(2, 4), keras.layers.LayerNormalization()
            self.up, self.down = keras.layers.Dense(16), keras.layers.Dense(8)

        def build(self, shape):
            self.mha.build(shape, shape)
            self.norm.build(shape)
            self.up.build(shape)
            self.down.build((*shape[:-1], 16))

        def call(self, x):
            return self.norm(self.down(self.up(self.mha(x, x))))

    block = TransformerBlock(name="t")
    return keras.Sequential([keras.Input((4,)), keras.layers.Embedding(16, 8), block, keras.layers.Dense(3)])


def test_classes_count_where_names_say_nothing():
    model = small()
    masked = {
        variable.path
        for variable in model.trainable_variables
        if axes(variable.path, attention_and_mlp(model, quiet=True)) is not None
    }
    assert masked == {
        f"{layer.path}/kernel"
        for layer in model._flatten_layers()
        if "/t/" in f"{layer.path}" and "norm" not in layer.path and hasattr(layer, "kernel")
    }
    assert len(masked) == 6


def test_an_optimizer_takes_it():
    model = small()
    optimizer = Magma(0.1, block_axes=attention_and_mlp(model, quiet=True))
    optimizer.build(model.trainable_variables)
    assert len(optimizer.scores) == 6
    again = Magma.from_config(optimizer.get_config())
    again.build(model.trainable_variables)
    assert again.scores.keys() == optimizer.scores.keys()


def test_it_prints_what_it_finds(capsys):
    attention_and_mlp(tree({"layers.0.mlp.up.kernel": (4, 4), "layers.1.mlp.up.kernel": (4, 4), "head.kernel": (4, 4)}))
    assert capsys.readouterr().out.splitlines() == [
        "matrices, one block each: 2 tensors, 32 elements",
        "  model/layers/*/mlp/up/kernel",
        "not masked: 1 tensors, 16 elements",
        "  model/head/kernel",
    ]
    selected(tree({"layers.0.mlp.up.kernel": (4, 4)}))
    assert not capsys.readouterr().out


def test_all_masked_needs_no_pattern_for_others():
    assert None not in attention_and_mlp(tree({"layers.0.mlp.up.kernel": (4, 4)}), quiet=True).values()


def frozen():
    """A model with nothing to train."""
    model = small()
    model.trainable = False
    return model


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda: small().trainable_variables, TypeError, "model must be a Keras model or layer, not its variables"),
        (lambda: keras.layers.Dense(3, name="late"), ValueError, "'late' is not built and has no variables yet"),
        (frozen, ValueError, "has no variable that is trained, and 17 that are not"),
    ],
)
def test_wrong_calls(wrong, error, said):
    with pytest.raises(error, match=said):
        attention_and_mlp(wrong())
