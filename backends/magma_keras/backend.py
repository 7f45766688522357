"""The differences between Keras's backends: namespace, sparse gradients, and placement of variables."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, cast

import keras
import numpy as np

from magma_core import Plan, Report, State, step
from magma_core.namespace import Array, Namespace
from magma_keras.installed import BACKENDS
from magma_keras.names import path

NAME: str = keras.backend.backend()
"""The backend of this process; Keras fixes it on import."""

if NAME not in BACKENDS:
    raise ImportError(
        f"magma_keras runs on the backends {', '.join(BACKENDS)} of Keras, got {NAME!r}: set KERAS_BACKEND"
    )

xp = cast(Namespace, import_module(f"magma_{NAME}.namespace"))
"""The namespace of the backend's arrays."""

_STEP: Any = step if NAME == "tensorflow" else import_module(f"magma_{NAME}.planned")  # here: Dynamo traces no import


def update_planned(
    plans: Sequence[Plan],
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    **numbers: Any,
) -> tuple[list[Array], list[State], list[Report]]:
    """`magma_core.step.update_planned`, in C where the backend can call it: docs/native.md."""
    return _STEP.update_planned(plans, params, grads, states, **numbers, xp=xp)


def array(x: Any, /) -> Array:
    """The backend's own array of a variable or tensor; embedding slices become dense, repeated rows added."""
    if NAME == "tensorflow":
        return import_module("tensorflow").convert_to_tensor(x)
    if hasattr(x, "todense"):  # from jax.experimental.sparse
        return x.todense()
    return keras.ops.convert_to_tensor(x)


def to_numpy(x: Any, /) -> np.ndarray:
    """A NumPy copy; `keras.ops.convert_to_numpy` emits deprecation warnings with some NumPy versions and backends."""
    x = array(x)
    return np.array(x if NAME == "jax" else x.numpy() if NAME == "tensorflow" else x.detach().cpu().numpy())


def gradient(x: Any, variable: Any, /) -> Array:
    """A gradient for the core: dense, in the variable's shape and dtype.

    Raises:
        ValueError: for another shape.
        TypeError: for integers and complex numbers.
    """
    x, own = array(x), array(variable)
    if not keras.backend.is_float_dtype(x.dtype):
        kind = keras.backend.standardize_dtype(x.dtype)
        raise TypeError(f"gradient of {path(variable)!r} must have real numbers, got {kind}: cast it to float32")
    if NAME == "tensorflow" and not x.shape.is_fully_defined():
        x = import_module("tensorflow").ensure_shape(x, own.shape)
    if tuple(x.shape) != tuple(own.shape):
        raise ValueError(
            f"gradient of {path(variable)!r} must have its shape {tuple(own.shape)}, got {tuple(x.shape)}: "
            "give one gradient for each variable, in their order"
        )
    return x if x.dtype == own.dtype else xp.astype(x, own.dtype)


def entering(x: Array, /) -> Array:
    """``x`` behind a barrier: XLA does not merge the step with what precedes it in the program."""
    own = getattr(xp, "barrier", None)
    return own(x) if own else x


def copy(variable: Any, /) -> Array:
    """A copy of a variable's current value, unaffected by later assignments."""
    value = array(variable)
    return value.detach().clone() if NAME == "torch" else value


def replicas() -> int:
    """The number of copies of a variable under a tf.distribute strategy; each is updated by itself."""
    if NAME != "tensorflow":
        return 1
    return import_module("tensorflow").distribute.get_strategy().num_replicas_in_sync


def beside(variable: Any, /) -> AbstractContextManager[Any]:
    """A context that places new variables where ``variable`` is."""
    if NAME != "tensorflow":
        return nullcontext()
    own = variable.value if isinstance(variable, keras.Variable) else variable
    return import_module("tensorflow").distribute.get_strategy().extended.colocate_vars_with(own)


def layout(variable: Any, axes: tuple[int, ...], /) -> Any:
    """The `keras.distribution` layout of an array that has only ``axes`` of the variable's."""
    own = getattr(variable, "_layout", None)
    if not isinstance(own, keras.distribution.TensorLayout):
        return None
    return keras.distribution.TensorLayout([own.axes[axis] for axis in axes], own.device_mesh)
