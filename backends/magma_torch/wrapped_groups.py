"""What the groups of a wrapped optimizer ask for, beside its own options."""

import functools
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from magma_core import RMSProp, Rule
from magma_torch.options import Options, asks_for, base_entries, check_parameter, read, rule_entries

PREFIX = "magma_"
"""Of what is remembered beside the entries of the wrapped optimizer."""

_RULE = [key for key in rule_entries(Rule()) if key != "decay"]
KEYS = (*_RULE, "lr_scale", "seed", "masked", "block_axes", "compile")
"""The options that stand in the groups of the wrapped optimizer beside its own."""

# The base is the framework's; where it has no first moment, the average of spec 4.2 stands in, without the rest of it.
_STAND_IN = {"lr": 1.0, **base_entries(RMSProp()), "decay": "masked"}


class Asked(NamedTuple):
    """What a group asks for."""

    own: Options  # where the average is kept here
    known: Options  # where the wrapped optimizer has a first moment, or none is looked at


def read_options(group: Mapping[str, Any]) -> Asked:
    """The configuration that a group means, checked."""
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
    """What is remembered here, among what is remembered of a parameter."""
    return {key.removeprefix(PREFIX): value for key, value in state.items() if str(key).startswith(PREFIX)}


def check_wrappable(optimizer: Any) -> None:
    """Raise unless it is an optimizer whose steps can be masked from outside."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of torch such as torch.optim.AdamW(...), got {optimizer!r}")
    arguments = inspect.signature(optimizer.step).parameters.values()
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    if needed := [x.name for x in arguments if x.default is x.empty and x.kind not in variadic]:
        raise TypeError(
            f"{type(optimizer).__name__} cannot be wrapped, its step needs {needed[0]!r}: it moves several times in a "
            "step, and nothing could be masked in between"
        )


def check_members(group: Mapping[str, Any], named: Iterable[tuple[str, Any]]) -> None:
    """Raise unless the options are right, and the parameters can be masked where they are to be."""
    settings = read_options(group).own
    for name, param in named:
        if settings.masked and isinstance(param, Tensor):
            check_parameter(name, param, settings)
