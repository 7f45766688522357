"""Frameworks and the suite's libraries are extras: if one is missing, say which to install."""

import importlib
from types import ModuleType

_BUILDS = {"tensorflow": ", or pip install tensorflow-cpu"}
"""Other distributions that provide the same modules."""


def require(module: str, /, *, extra: str) -> ModuleType:
    """Import ``module``, or raise an ImportError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is installed, but one of its dependencies is not
        raise ImportError(not_installed(module, extra=extra), name=module) from error


def not_installed(module: str, /, *, extra: str) -> str:
    """The message for a missing module, with the remedy."""
    return f"{module} is not installed: pip install 'magma-optim[{extra}]'{_BUILDS.get(module, '')}"
