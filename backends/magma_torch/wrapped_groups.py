"""The masking options in a wrapped optimizer's groups."""

import functools
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from magma_core import RMSProp, Rule
from magma_torch.names import Named
from magma_torch.options import Options, asks_for, base_entries, check_parameter, read, rule_entries

PREFIX = "magma_"
"""The prefix of the wrapper's entries in the wrapped optimizer's state."""

_RULE = [key for key in rule_entries(Rule()) if key != "decay"]
KEYS = (*_RULE, "lr_scale", "seed", "masked", "block_axes", "compile")
"""The options stored in the wrapped optimizer's groups, beside its own."""

# The wrapped optimizer is the base. If it has no first moment, the average of spec 4.2 stands in for that alone.
_STAND_IN = {"lr": 1.0, **base_entries(RMSProp()), "decay": "masked"}


class Asked(NamedTuple):
    """The options of a group."""

    own: Options  # if the wrapper keeps the average
    known: Options  # if the wrapped optimizer has a first moment, or none is used


def read_options(group: Mapping[str, Any]) -> Asked:
    """The validated configuration of a group."""
    asked = read({**_STAND_IN, **{key: group[key] for key in KEYS}})
    if asks_for(group, "differentiable"):
        raise ValueError("differentiable=True is not supported: keep masks have no derivative")
    if asks_for(group, "maximize") and asked.rule.uses_score:
        raise ValueError("maximize=True is not supported by rules that use scores: negate the loss instead")
    return _variants(asked)


@functools.cache
def _variants(asked: Options) -> Asked:
    kept = ("mu",) if asked.rule.uses_score else ()
    measured_only = asked.structure._replace(advances=False)
    return Asked(replace(asked, fields=kept), replace(asked, fields=(), structure=measured_only))


def ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """The wrapper's entries of a parameter's state."""
    return {key.removeprefix(PREFIX): value for key, value in state.items() if str(key).startswith(PREFIX)}


def check_wrappable(optimizer: Any) -> None:
    """Raise unless ``optimizer`` can be masked from outside."""
    if isinstance(optimizer, Named):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, which masks its steps already: use it as it is, or wrap one "
            "of torch such as torch.optim.AdamW(...)"
        )
    if not isinstance(optimizer, Optimizer):
        if isinstance(optimizer, type):
            what = f"the class {optimizer.__name__}: give it parameters, as in {optimizer.__name__}(params)"
        else:
            what = f"an object of type {type(optimizer).__name__}: for parameters, leave out wrap, as in Magma(params)"
        raise TypeError(f"optimizer must be one of torch such as torch.optim.AdamW(params), got {what}")
    arguments = inspect.signature(optimizer.step).parameters.values()
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    if needed := [x.name for x in arguments if x.default is x.empty and x.kind not in variadic]:
        raise TypeError(
            f"{type(optimizer).__name__} cannot be wrapped, its step needs {needed[0]!r}: it moves several times in a "
            "step, and nothing could be masked in between"
        )


def check_members(group: Mapping[str, Any], named: Iterable[tuple[str, Any]]) -> None:
    """Raise unless the options are valid and the masked parameters can be masked."""
    settings = read_options(group).own
    for name, param in named:
        if settings.masked and isinstance(param, Tensor):
            check_parameter(name, param, settings)
