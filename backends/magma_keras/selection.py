"""The paper's masked parameters, attention and MLP matrices, as ``block_axes``."""

from typing import Any

import keras

from magma_core import Axes
from magma_core.arguments import short
from magma_core.selection import Tensor, chosen
from magma_keras.names import exactly, path


def attention_and_mlp(model: keras.Layer, *, quiet: bool = False) -> dict[str, Axes | None]:
    """``block_axes`` that mask only attention and MLP matrices, as in arXiv 2602.15322.

    It finds the layers that are attention or an MLP by class and name, and in the layers around them the matrices that
    are these layers' own. Embeddings, norms, biases, routers and heads are not masked. A matrix is a block, and so is
    each matrix of a stack of experts. The selection is printed, so check it.

    Args:
        model: a model or layer that is built. Variables that are not trained are omitted.
        quiet: print nothing; warnings come all the same.

    Returns:
        A dict for ``block_axes``, from a pattern for each variable's path to its axes, or None.

    Raises:
        ValueError: if no attention or MLP matrix is found, or the model is not built, or nothing in it is trained.
        TypeError: if ``model`` is no model or layer.

    Warns:
        UserWarning: if a layer with masked matrices has others that no rule knows.

    Example:
        >>> import keras
        >>> from magma_keras import Magma, attention_and_mlp
        >>> text = keras.Input((6, 8))
        >>> attended = keras.layers.MultiHeadAttention(2, 4, name="attention")(text, text)
        >>> up = keras.layers.Dense(16, name="mlp_up")(attended)
        >>> model = keras.Model(text, keras.layers.Dense(3, name="head")(up))
        >>> optimizer = Magma(3e-3, block_axes=attention_and_mlp(model, quiet=True))
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model must be a Keras model or layer, not its variables, got {short(model)}")
    if not model.built:
        raise ValueError(f"{model.name!r} is not built and has no variables yet: call it, or its build, before")
    if not model.trainable_variables:
        others = len(model.variables)
        raise ValueError(f"{model.name!r} has no variable that is trained, and {others} that are not: unfreeze some")
    classes = {layer.path: type(layer).__name__ for layer in model._flatten_layers() if layer.path}
    tensors = {path(variable): _tensor(variable, classes) for variable in model.trainable_variables}
    selected = chosen(tensors, quiet=quiet, stacklevel=2)
    masked: dict[str, Axes | None] = {exactly(name): axes for name, axes in selected.items() if axes is not None}
    return masked if len(masked) == len(selected) else {**masked, "": None}


def _tensor(variable: Any, classes: dict[str, str]) -> Tensor:
    names = path(variable).split("/")
    around = ["/".join(names[:n]) for n in range(len(names))]
    return Tensor(tuple(names), tuple(variable.shape), tuple(classes.get(each, "") for each in around))
