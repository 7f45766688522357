"""Calls functions by name, so that this process need not import what another one runs."""

import pkgutil
from typing import Any


def call(name: str, *arguments: Any) -> Any:
    """What a function, named as ``"module:function"``, gives."""
    return pkgutil.resolve_name(name)(*arguments)
