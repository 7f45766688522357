"""The Keras backends that magma_keras supports, and the remedy if the configured one is missing."""

from importlib.util import find_spec

from magma_core.optional import not_installed, require

BACKENDS = ("tensorflow", "jax", "torch")
"""Keras uses the first unless KERAS_BACKEND or its configuration file names another."""


def require_keras() -> None:
    """Import Keras, or raise an ImportError that names the package to install or the setting to change."""
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
