"""The backends of Keras that magma_keras runs on, and what to do where the one that Keras is set to is missing."""

from importlib.util import find_spec

from magma_core.optional import not_installed, require

BACKENDS = ("tensorflow", "jax", "torch")
"""Keras takes the first unless KERAS_BACKEND or its configuration file names another."""


def require_keras() -> None:
    """Import Keras, or raise an ImportError that says what to install or to set."""
    try:
        require("keras", extra="keras")
    except ModuleNotFoundError as error:
        if error.name not in BACKENDS:
            raise
        others = [name for name in BACKENDS if name != error.name]
        usable = " or ".join(f"KERAS_BACKEND={name}" for name in others if find_spec(name))
        instead = f"or set {usable}" if usable else f"or install one of {', '.join(others)} and set KERAS_BACKEND to it"
        message = f"Keras runs on {error.name}, and {not_installed(error.name, extra=error.name)}, {instead}"
        raise ImportError(message, name=error.name) from error
