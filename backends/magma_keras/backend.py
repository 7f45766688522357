"""What differs between the backends of Keras: the namespace, gradients that are not dense, and where variables live."""

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, cast

import keras
import numpy as np

from magma_core.namespace import Array, Namespace
from magma_keras.installed import BACKENDS
from magma_keras.names import path

NAME: str = keras.backend.backend()
"""The backend of this process; Keras settles it when it is imported."""

if NAME not in BACKENDS:
    raise ImportError(
        f"magma_keras runs on the backends {', '.join(BACKENDS)} of Keras, got {NAME!r}: set KERAS_BACKEND"
    )

xp = cast(Namespace, import_module(f"magma_{NAME}.namespace"))
"""The namespace of its arrays."""


def array(x: Any, /) -> Array:
    """The backend's own array of a variable or a tensor; slices of embeddings become the whole, repeated rows added."""
    if NAME == "tensorflow":
        return import_module("tensorflow").convert_to_tensor(x)
    if hasattr(x, "todense"):  # of jax.experimental.sparse
        return x.todense()
    return keras.ops.convert_to_tensor(x)


def to_numpy(x: Any, /) -> np.ndarray:
    """A copy in NumPy; `keras.ops.convert_to_numpy` warns of deprecations, depending on NumPy and backend."""
    x = array(x)
    return np.array(x if NAME == "jax" else x.numpy() if NAME == "tensorflow" else x.detach().cpu().numpy())


def gradient(x: Any, variable: Any, /) -> Array:
    """A gradient as the core wants it: dense, in the variable's shape and dtype; ValueError for another shape."""
    x, own = array(x), array(variable)
    if NAME == "tensorflow" and not x.shape.is_fully_defined():
        x = import_module("tensorflow").ensure_shape(x, own.shape)
    if tuple(x.shape) != tuple(own.shape):
        raise ValueError(
            f"gradient of {path(variable)!r} must have its shape {tuple(own.shape)}, got {tuple(x.shape)}: "
            "give one gradient for each variable, in their order"
        )
    return x if x.dtype == own.dtype else xp.astype(x, own.dtype)


def entering(x: Array, /) -> Array:
    """``x`` as what a step is given: XLA does not mix what came before in the same program with the step."""
    own = getattr(xp, "barrier", None)
    return own(x) if own else x


def copy(variable: Any, /) -> Array:
    """The present value of a variable, whatever becomes of the variable."""
    value = array(variable)
    return value.detach().clone() if NAME == "torch" else value


def replicas() -> int:
    """How many copies of a variable a tf.distribute strategy keeps, each of which is updated by itself."""
    if NAME != "tensorflow":
        return 1
    return import_module("tensorflow").distribute.get_strategy().num_replicas_in_sync


def beside(variable: Any, /) -> AbstractContextManager[Any]:
    """New variables are put where ``variable`` is."""
    if NAME != "tensorflow":
        return nullcontext()
    own = variable.value if isinstance(variable, keras.Variable) else variable
    return import_module("tensorflow").distribute.get_strategy().extended.colocate_vars_with(own)


def layout(variable: Any, axes: tuple[int, ...], /) -> Any:
    """How an array that has only ``axes`` of the variable's is spread over devices by `keras.distribution`."""
    own = getattr(variable, "_layout", None)
    if not isinstance(own, keras.distribution.TensorLayout):
        return None
    return keras.distribution.TensorLayout([own.axes[axis] for axis in axes], own.device_mesh)
