"""Checks of what users give to an optimizer. Each error names the argument, its value and the remedy."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import keras

from magma_core.arguments import check_interval, short
from magma_keras import backend
from magma_keras.names import check_pattern, path

_ORDER = "give apply(gradients, variables), in this order"

WRAPPED = "to put a rule around it, use Wrapped(optimizer, magma_core.magma())"


def listed(argument: str, variables: Any, /, remedy: str = _ORDER) -> list[Any]:
    """The variables as a list; TypeError for anything else, with the remedy for a list of something else."""
    on_tensorflow = backend.NAME == "tensorflow"
    kinds = (keras.Variable, import_module("tensorflow").Variable) if on_tensorflow else (keras.Variable,)
    if isinstance(variables, (*kinds, keras.Layer)):  # on JAX, a variable's elements have no end
        raise TypeError(f"{argument} must be a list such as model.trainable_variables, got {type(variables).__name__}")
    variables = list(variables)
    for each in variables:
        if not isinstance(each, kinds):
            given = repr(each) if isinstance(each, str) else type(each).__name__
            raise TypeError(f"{argument} must have variables of Keras, got {given}: {remedy}")
    return variables


def check_dtypes(variables: Sequence[Any], /) -> None:
    """Raise TypeError for a variable that the contract does not cover."""
    for variable in variables:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if dtype not in ("float32", "bfloat16", "float16"):
            raise TypeError(
                f"variable {path(variable)!r} must be float32, bfloat16 or float16, got {dtype}: make it with one of "
                "these, or leave it to another optimizer, see keras.optimizers.MultiOptimizer"
            )


def selected(var_list: Any, var_names: Any, /) -> list[Any]:
    """The variables of a selection, and a check of its names; ValueError or TypeError for anything else."""
    if isinstance(var_names, str):
        raise TypeError(f"var_names must be a list of strings, got the string {var_names!r}: write [{var_names!r}]")
    for pattern in var_names or ():
        check_pattern("var_names", pattern)
    return [] if var_list is None else listed("var_list", var_list, "var_names= is for names")


def check_rate(rate: Any, /) -> None:
    """Raise unless ``rate`` may be a learning rate; Keras would take anything that can be called."""
    if isinstance(rate, int | float):
        check_interval("learning_rate", rate, 0.0, None)
    elif isinstance(rate, keras.optimizers.Optimizer):
        raise TypeError(f"learning_rate must be a number or a schedule, got an optimizer: {WRAPPED}")
    elif isinstance(rate, keras.Layer | type | list | str | None):
        raise TypeError(
            f"learning_rate must be a number, a schedule or a function, got {short(rate)}: variables come from the "
            "model, or from optimizer.build(variables)"
        )
