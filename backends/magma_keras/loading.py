"""Loads values into an optimizer: all of them, or none."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from magma_core.arguments import short
from magma_keras import backend
from magma_keras.names import Choice, check_block_axes, path

_KINDS = {"float": "real numbers", "bfloat": "real numbers", "int": "integers", "uint": "integers"}


def assign_all(variables: Sequence[Any], values: Sequence[Any], fractions: Sequence[Any], /) -> None:
    """Assign new values to variables.

    Args:
        variables: variables of an optimizer.
        values: one value per variable.
        fractions: the variables whose values lie in [0, 1].

    Raises:
        ValueError, TypeError: naming the variable, the value and the remedy; nothing is assigned then.
    """
    if len(values) != len(variables):
        raise ValueError(f"weights must have one entry for each of {len(variables)} variables, got {len(values)}")
    places = {id(variable) for variable in fractions}
    found = [
        _checked(variable, value, id(variable) in places) for variable, value in zip(variables, values, strict=True)
    ]
    for variable, value in zip(variables, found, strict=True):
        variable.assign(value)


def choices_from(entries: Any, /) -> tuple[Choice, ...]:
    """Restore an optimizer's choices from `Choice.config`; ValueError or TypeError for anything else."""
    if not isinstance(entries, list | tuple):
        raise TypeError(f"variables of a configuration must be a list, got {short(entries)}")
    return tuple(_choice(entry) for entry in entries)


def _checked(variable: Any, value: Any, is_fraction: bool) -> Any:
    label, remedy = f"variable {path(variable)!r}", "load what an optimizer with the same variables has saved"
    try:
        value = value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)
        given, own = (_kind(x.dtype) for x in (value, variable))
    except (ValueError, TypeError):
        raise TypeError(f"{label} must have an array of numbers, got {short(value)}: {remedy}") from None
    if tuple(value.shape) != tuple(variable.shape):
        raise ValueError(f"{label} has shape {tuple(variable.shape)}, got shape {tuple(value.shape)}: {remedy}")
    if given != own:
        raise ValueError(f"{label} has {own}, got {given} such as {short(value)}: {remedy}")
    if is_fraction:
        numbers = backend.to_numpy(keras.ops.convert_to_tensor(value))
        if not ((numbers >= 0) & (numbers <= 1)).all():
            raise ValueError(f"{label} must lie in [0, 1], got {short(numbers)}: {remedy}")
    return value


def _kind(dtype: Any) -> str:
    name = keras.backend.standardize_dtype(dtype)
    return _KINDS.get(name.rstrip("0123456789"), name)


def _choice(entry: Any) -> Choice:
    if not isinstance(entry, list | tuple) or len(entry) != len(Choice._fields):
        raise ValueError(f"variables of a configuration must have {', '.join(Choice._fields)} each, got {short(entry)}")
    choice = Choice(*entry)
    if not isinstance(choice.path, str) or not isinstance(choice.mask_name, str) or not isinstance(choice.decays, bool):
        raise TypeError(f"variables of a configuration must have two names, axes and True or False, got {short(entry)}")
    if choice.axes is not None:
        check_block_axes(choice.axes)
    return choice
