"""Frameworks are extras: say which one to install where one is missing."""

import importlib
from types import ModuleType


def require(module: str, /, *, extra: str) -> ModuleType:
    """Import ``module``, or raise an ImportError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # installed, but something that it needs is not
        raise ImportError(f"{module} is not installed: pip install 'magma-core[{extra}]'", name=module) from error
