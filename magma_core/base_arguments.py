"""Builds the base configuration from an optimizer's arguments."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from magma_core.arguments import check_interval, short
from magma_core.config import BASES, LARGEST_BETA, SMALLEST, Base


def as_base(base: str | Base, /) -> Base:
    """The configuration that ``base`` is or names; ValueError for an unknown name, TypeError for any other object."""
    if isinstance(base, str):
        if base not in BASES:
            raise ValueError(f"base must be one of {', '.join(map(repr, BASES))} or a configuration, got {base!r}")
        return BASES[base]()
    if type(base) not in BASES.values():
        raise TypeError(
            f"base must be a name or a configuration of magma_core such as AdamW(), got {short(base)}: to mask the "
            "steps of another optimizer, wrap it"
        )
    return base


def base_name(base: Base, /) -> str:
    """The key of a configuration in `magma_core.config.BASES`."""
    return next(name for name, kind in BASES.items() if kind is type(base))


def own_numbers(base: Base, given: Mapping[str, Any], names: Mapping[str, str], /, *, check: bool = True) -> Any:
    """The caller's numbers for ``base``, keyed by its field names.

    Args:
        base: a configuration.
        given: numbers by the framework's names; None selects the configuration's own.
        names: the framework's name of each field that it names differently.
        check: whether to check the renamed numbers here; the configuration checks the others.

    Raises:
        ValueError: for a number out of range, or one that the base does not have.
        TypeError: for a value that is not a number.
    """
    own = {names.get(field.name, field.name): field.name for field in fields(base)}
    values = {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if name not in own:
            kind = type(base).__name__
            raise ValueError(
                f"{name} does not belong to base {kind}, which has {', '.join(own)}: what is no argument is given with "
                f"the configuration, base={kind}(...)"
            )
        if check and own[name] != name:
            low, high = (SMALLEST, None) if own[name] == "eps" else (0.0, LARGEST_BETA)
            check_interval(name, value, low, high)
    return {own[name]: value for name, value in values.items()}
