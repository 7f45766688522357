"""The required arguments of every adapter's constructors: names of `magma_core.config`, with its defaults."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import pytest

from magma_core import Rule
from magma_core.config import BASES, LEARNING_RATE, LR_SCALE, SEED

_FIELDS = {"cosine_momentum": "momentum", "score_ema": "ema"}
"""Fields of `Rule` by the names that adapters give them: elsewhere "momentum" is a number of the base."""

_NUMBERS = {"b1": "beta1", "b2": "beta2", "beta_1": "beta1", "beta_2": "beta2", "epsilon": "eps", "betas": "beta1"}
"""Numbers of bases by the names that users of the frameworks know."""

_RULE = {field.name: field.default for field in fields(Rule)}
_BASE = {field.name for kind in BASES.values() for field in fields(kind)}

REQUIRED = inspect.Parameter.empty


def check_defaults(make: Callable[..., Any], own: Mapping[str, Any], base: str = "adamw") -> None:
    """Every argument is one of ``own``, with this default, or has a name and the default of `magma_core.config`."""
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            assert name in own, name
            continue
        assert (parameter.default, name) == (expected_default(name, own, base), name)


def expected_default(name: str, own: Mapping[str, Any], base: str) -> Any:
    """The default of one argument; None stands for the base's own number."""
    if name in own:
        return own[name]
    common = {"lr": LEARNING_RATE, "learning_rate": LEARNING_RATE, "lr_scale": LR_SCALE, "seed": SEED}
    common |= {"block_axes": (), "base": base}
    if name in common:
        return common[name]
    if name != "momentum" and _FIELDS.get(name, name) in _RULE:
        return _RULE[_FIELDS.get(name, name)]
    assert _NUMBERS.get(name, name) in _BASE, f"{name} is no name of magma_core.config"
    return None


def check_documented(make: Callable[..., Any]) -> None:
    """``help`` describes every argument, in order."""
    section = (inspect.getdoc(make) or "").split("Args:")[1].split("Returns:")[0].split("Raises:")[0]
    documented = [
        line.split(":")[0].strip(" *") for line in section.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert documented == list(inspect.signature(make).parameters)


def check_refused(make: Callable[..., Any], *given: Any, error: Any = TypeError) -> None:
    """A misspelt keyword is an error that names it."""
    for misspelt in ("block_axis", "sed"):
        with pytest.raises(error, match=misspelt):
            make(*given, **{misspelt: 1})
