"""What users of other optimizers pass, each with its remedy: names that ours do not have, values of other kinds."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from magma_core.arguments import short
from magma_core.misspelt import nearest
from magma_torch.warn import warn

FLAGS = {
    "fused": "compile=True fuses",
    "foreach": "compile=True steps all parameters in one call",
    "capturable": "with compile=True every step on CUDA can be captured in a graph",
    "differentiable": "keep masks have no derivative",
    "amsgrad": "no base here keeps a maximum",
    "maximize": "negate the loss instead",
}
"""Options of torch's optimizers."""

_NUMBERS = {
    "momentum": "it belongs to the base, as in base=magma_core.SGD(momentum=0.8)",
    "nesterov": "it belongs to the base, as in base=magma_core.SGD(nesterov=True)",
    "dampening": "SGD has none here",
    "alpha": "it belongs to the base, as in base=magma_core.RMSProp(beta2=0.99)",
    "centered": "RMSProp is not centered here",
}
"""Numbers of bases that are no arguments."""

_SCORES = "it belongs to rules with scores: Magma, or MaskedOptimizer with rule=magma_core.damping(...)"
_RULE = {
    "rule": "MaskedOptimizer takes a rule",
    "survival": "it belongs to the rule, as in MaskedOptimizer(params, rule=magma_core.Rule(survival='score'))",
    "weight": "it belongs to the rule, as in MaskedOptimizer(params, rule=magma_core.Rule(weight='one'))",
    "p": "it belongs to the rule, as in rule=magma_core.magma(p=0.5)",
    "decay": "it belongs to the rule, as in rule=magma_core.magma(decay='dense')",
    **dict.fromkeys(("tau", "ema", "initial_score", "cosine_momentum"), _SCORES),
}
_ELSEWHERE = {
    "exclude": "put those parameters into a group of their own, with masked=False",
    "moment_key": "wrap() finds the first moment itself",
    "momentum_beta": "the score uses the first moment of the base, or an average with decay rate 0.9",
}
"""Arguments of other packages."""

ARGUMENTS = {**FLAGS, **_NUMBERS, **_RULE, **_ELSEWHERE}
"""Remedies for arguments that an optimizer does not have."""

WRAP_ARGUMENTS = {
    **ARGUMENTS,
    **dict.fromkeys(
        ("lr", "learning_rate", "base", "betas", "eps", "weight_decay", *FLAGS, *_NUMBERS),
        "give it to the optimizer that is wrapped",
    ),
    "decay": "weight decay is part of the wrapped optimizer's update, masked with it",
}
"""Remedies for arguments that wrapping does not have."""

_ENTRIES = {
    "rule": "give its fields, as in {'survival': 'p', 'weight': 'one'}",
    "alpha": "'rmsprop' calls it 'beta2'",
    **_ELSEWHERE,
}
"""Remedies for entries that a parameter group does not have."""

_SCHEDULERS = ("max_momentum", "base_momentum")
"""Entries of torch's schedulers whose names resemble ours."""


def check_params(params: Any, label: str = "params", /) -> None:
    """Raise TypeError unless ``params`` may be parameters or groups; torch refuses a tensor, and looks at items."""
    if isinstance(params, Tensor):
        return
    if isinstance(params, Optimizer):
        remedy = "wrap(optimizer) masks the steps of another optimizer, as in Magma.wrap(torch.optim.AdamW(...))"
    elif isinstance(params, type) and issubclass(params, Optimizer):
        remedy = "base= chooses one of ours, as in base='adamw', and Magma.wrap(torch.optim.AdamW(...)) masks another"
    elif isinstance(params, nn.Module) and not isinstance(params, nn.ParameterList):
        remedy = "pass its named_parameters(), or attention_and_mlp(model)"
    elif isinstance(params, Mapping):
        remedy = "pass its items(), or put a group into a list"
    elif isinstance(params, set | frozenset):
        remedy = "sets have another order in every run, so pass a list"
    elif isinstance(params, str) or not isinstance(params, Iterable):
        remedy = "call it" if callable(params) else "pass model.named_parameters()"
    else:
        return
    kind = f"the class {params.__name__}" if isinstance(params, type) else f"an object of type {type(params).__name__}"
    raise TypeError(f"{label} must be a list of tensors, of (name, tensor) pairs or of groups, got {kind}: {remedy}")


def check_closure(closure: Any, /) -> None:
    """Raise TypeError unless ``closure`` is None or can be called."""
    if closure is not None and not callable(closure):
        raise TypeError(
            f"closure must be a function that computes the loss anew, got an object of type {type(closure).__name__}: "
            "after loss.backward(), call step()"
        )


def checked_group(group: Mapping[str, Any], i: int, known: frozenset[str], /) -> dict[str, Any]:
    """A new group with its parameters in a list, if they come from an iterator.

    Args:
        group: the group.
        i: its number.
        known: the entries that are read.

    Raises:
        ValueError: if "params" is missing, or an entry seems to be misspelt or another package's.
        TypeError: if "params" are no parameters.
    """
    for key in group:
        if reason := _unread(key, known):
            raise ValueError(f"parameter group {i} has an entry {reason}")
    if "params" not in group:
        raise ValueError(f"parameter group {i} has no entry 'params', got {short(list(group))}")
    params = group["params"]
    if not isinstance(params, set):  # which torch refuses
        check_params(params, f"params of group {i}")
    if isinstance(params, Iterator):
        params = list(params)
        if not params:
            warn(f"parameter group {i} has no parameters: its iterator gave none, perhaps because it was used before")
    return {**group, "params": params}


def warn_of_unread(groups: Iterable[Mapping[str, Any]], known: frozenset[str], /) -> None:
    """Warn of entries that were put into groups and seem to be misspelt."""
    for i, group in enumerate(groups):
        for key in group:
            if key not in known and (reason := _unread(key, known)):
                warn(f"parameter group {i} has an entry {reason}")


@functools.lru_cache(maxsize=1024)
def _unread(key: Any, known: frozenset[str]) -> str:
    """The entry, and why it looks wrong; "" for entries that are read, or left to the code that added them."""
    if key in known or key in _SCHEDULERS or not isinstance(key, str):
        return ""
    if key in _ENTRIES:
        return f"{key!r}, which is not read: {_ENTRIES[key]}"
    near = nearest(key, sorted(known))
    return f"{key!r}, which is not read. Did you mean {near!r}?" if near else ""
