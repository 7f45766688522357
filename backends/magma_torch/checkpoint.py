"""Loads a state_dict bit for bit, and validates all of it."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from magma_core import cut
from magma_core.arguments import check_integer, short
from magma_core.bases import state_shapes
from magma_torch import options
from magma_torch.engine.sharding import local
from magma_torch.names import check_names
from magma_torch.options import Group, Options

_HELPERS = "torch.distributed.checkpoint.state_dict"
_REMEDY = "load what state_dict() of an optimizer with the same groups has returned"


Names: TypeAlias = Callable[[int, Group], Sequence[str]]
"""Gives the parameter names of a group, which has a number."""


def restore(loaded: Mapping[str, Any], groups: Sequence[Group], names: Names) -> defaultdict[Any, dict[str, Any]]:
    """The state in ``loaded``, by parameter: float32 as saved, copied to the parameters' devices.

    torch's own ``load_state_dict`` casts floats to the parameter's format: a bfloat16 score would never change again.

    Args:
        loaded: a state_dict, from `name_groups`.
        groups: the optimizer's parameter groups.
        names: the parameter names of a group.

    Raises:
        ValueError, TypeError: naming the entry, its value and the remedy.
    """
    check_loaded_names(loaded["param_groups"], groups)
    state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    for i, (group, saved) in enumerate(zip(groups, loaded["param_groups"], strict=True)):
        if key := options.lacking(completed(saved)):
            raise ValueError(f"group {i} of the loaded state has no entry {key!r}: it was saved by another optimizer")
        settings = read_group(i, completed(saved), options.read)
        check_same(i, saved, group, ("base", "survival", "weight"))
        for name, param, key in zip(names(i, {**group, **saved}), group["params"], saved["params"], strict=True):
            options.check_parameter(name, param, settings)
            if loaded["state"].get(key):
                state[param] = validated_state(name, param, settings, loaded["state"][key])
    known = {key for saved in loaded["param_groups"] for key in saved["params"]}
    state.update({key: value for key, value in loaded["state"].items() if key not in known})  # kept, as torch does
    return state


def check_layout(loaded: Any, groups: Sequence[Group], /) -> None:
    """Raise unless ``loaded`` has the layout of a state_dict of ``groups``; entries are not checked."""
    check_kind("the state_dict", loaded, dict)
    for key, kind in (("param_groups", list | tuple), ("state", Mapping)):
        if key not in loaded:
            raise ValueError(f"the state_dict has no entry {key!r}, only {short(list(loaded))}: {_REMEDY}")
        check_kind(f"{key!r} of the state_dict", loaded[key], kind)
    if len(loaded["param_groups"]) != len(groups):
        raise ValueError(
            f"the loaded state has a different number of parameter groups, {len(loaded['param_groups'])}, than the "
            f"optimizer, {len(groups)}: {_REMEDY}"
        )
    owners: dict[int | str, Tensor] = {}
    for i, (group, saved) in enumerate(zip(groups, loaded["param_groups"], strict=True)):
        label = f"group {i} of the loaded state"
        check_kind(label, saved, dict)
        if "params" not in saved:
            raise ValueError(f"{label} has no entry 'params': {_REMEDY}")
        for key in ("params", "param_names"):
            listed = saved.get(key, group["params"])
            check_kind(f"{key!r} of {label}", listed, list | tuple)
            if len(listed) != len(group["params"]):
                raise ValueError(f"{label} has {len(listed)} {key}, the optimizer's {len(group['params'])}: {_REMEDY}")
        for key, param in zip(saved["params"], group["params"], strict=True):
            if type(key) not in (int, str):
                raise TypeError(f"'params' of {label} must have integers or strings, got {short(key)}: {_REMEDY}")
            if owners.setdefault(key, param) is not param:
                raise ValueError(f"'params' of {label} has {short(key)}, which is another parameter's: {_REMEDY}")
    for key, values in loaded["state"].items():
        if key in owners:
            check_kind(f"the loaded state of parameter {short(key)}", values, Mapping)
        elif isinstance(values, Mapping) and values.keys() & {"step", "magma_step"}:
            raise ValueError(f"the loaded state has {short(key)}, which is in no group of it: {_REMEDY}")


def copied(groups: Sequence[Group], /) -> list[Group]:
    """A copy of the loaded groups; ValueError for an entry that cannot be copied."""
    copies: list[Group] = [{} for _ in groups]
    for i, group in enumerate(groups):
        for key, value in group.items():
            try:
                copies[i][key] = deepcopy(value)
            except Exception as error:
                raise ValueError(
                    f"{short(key)} in group {i} of the loaded state cannot be copied ({type(error).__name__}), got "
                    f"{short(value)}: {_REMEDY}"
                ) from error
    return copies


def completed(saved: Group, /) -> Group:
    """Restores the empty values that torch loses from a group when it flattens a state_dict."""
    return saved if "block_axes" in saved else {**saved, "block_axes": ()}


def read_group(i: int, saved: Group, read: Callable[[Group], Any], /) -> Any:
    """The result of ``read`` for a loaded group; errors name the group."""
    try:
        return read(saved)
    except (ValueError, TypeError) as error:
        raise type(error)(f"group {i} of the loaded state cannot be used: {error}") from None


def check_same(i: int, saved: Group, group: Group, keys: Sequence[str], /) -> None:
    """Raise ValueError if a loaded group is of another base or rule; their numbers are loaded."""
    for key in keys:
        if saved[key] != group[key]:
            methods = " (Magma has 'score', SkipUpdate 'inverse_p')" if key == "weight" else ""
            raise ValueError(
                f"group {i} of the loaded state has {key} {saved[key]!r}, the optimizer {group[key]!r}{methods}: "
                "load it into an optimizer with the base and the rule of the one that saved it"
            )


def name_groups(loaded: Mapping[str, Any], groups: Sequence[Group], names: Names) -> dict[str, Any]:
    """The state_dict with the names that its optimizer used, also where it does not hold them.

    torch would leave those of a named optimizer, and the run would go on with other masks.
    """
    check_layout(loaded, groups)
    saved_groups = [
        {**saved, "param_names": names(i, saved)} if "param_names" in group and "param_names" not in saved else saved
        for i, (group, saved) in enumerate(zip(groups, loaded["param_groups"], strict=True))
    ]
    return {**loaded, "param_groups": saved_groups}


def check_loaded_names(saved_groups: Sequence[Group], groups: Sequence[Group]) -> None:
    """Raise ValueError if names repeat, or are the optimizer's in another order.

    torch pairs parameters by position. Names that only differ belong to the run that continues.
    """
    saved, own = ([name for group in side for name in group.get("param_names", ())] for side in (saved_groups, groups))
    check_names(saved)
    if saved != own and sorted(saved) == sorted(own):
        moved = next(name for name, other in zip(saved, own, strict=True) if name != other)
        raise ValueError(
            f"the loaded state has the parameters in another order, {short(moved)} first: state is paired by position, "
            "so make the groups as they were"
        )


def wants_only_state() -> bool:
    """Whether torch.distributed.checkpoint takes a step with zero rates and gradients, only to create the state.

    Such a step counts under the rule, and changes parameters that are -0, infinite or below 2⁻¹⁰⁰. Only the caller
    distinguishes it from other steps.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_init_optim_state" and frame.f_globals.get("__name__") == _HELPERS:
            return True
        frame = frame.f_back
    return False


def validated_state(name: str, param: Tensor, settings: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter, see `restore`."""
    blocks = cut(options.shape_of(name, param), settings.block_axes if settings.masked else (), name=name)
    values = {field: value for field, value in values.items() if not is_missing(value)}
    fields = {"step": (), **state_shapes(settings.fields, blocks, has_score=settings.rule.uses_score)}
    if odd := sorted(fields.keys() ^ values.keys(), key=str):
        what = "lacks" if odd[0] in fields else "has"
        raise ValueError(
            f"the loaded state of {short(name)} {what} {short(odd[0])}: it was saved by another optimizer, with other "
            "options, or not as a whole"
        )
    restored = {}
    for field, shape in fields.items():
        try:
            value = _validated(values[field], field, shape, param)
        except (ValueError, TypeError) as error:
            raise type(error)(f"the loaded {field} of {short(name)} {error}") from None
        restored[field] = value.detach().to("cpu" if field == "step" else param.device, copy=True)
    return restored


def is_missing(value: Any, /) -> bool:
    """Whether torch.distributed.checkpoint put this in the place of an entry that a checkpoint does not have."""
    return isinstance(value, dict) and not value


def check_whole(name: str, values: Mapping[str, Any], own: Mapping[str, Any], /) -> None:
    """Raise ValueError if a loaded state lacks a tensor that the optimizer has."""
    for field, value in values.items():
        if is_missing(value) and isinstance(own.get(field), Tensor):
            raise ValueError(f"the loaded state of {short(name)} lacks {short(field)}: it was not saved as a whole")


def compacted(state_dict: Mapping[str, Any], prefix: str = "", /) -> dict[str, Any]:
    """A state_dict whose tensors are no parts of larger memory: these are copied.

    Small parameters are stepped in stacks, and saving the state of one would write them all.

    Args:
        state_dict: as the optimizer made it.
        prefix: of the entries that are ours.
    """

    def whole(field: Any, value: Any) -> Any:
        return value.clone() if str(field).startswith(prefix) and _is_part(value) else value

    state = {
        key: {field: whole(field, value) for field, value in values.items()} if isinstance(values, dict) else values
        for key, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _is_part(value: Any) -> bool:
    if not isinstance(value, Tensor) or not options.has_values(value):
        return False
    seen = local(value)
    return seen.untyped_storage().nbytes() > seen.nbytes


def _validated(value: Any, field: str, shape: tuple[int, ...], param: Tensor) -> Tensor:
    """One state entry as a tensor, with its type, shape and value validated (`magma_core.State`)."""
    dtype = torch.int64 if field == "step" else torch.float32
    if field == "step" and type(value) is int:
        check_integer("counts steps, which", value, 0, 2**32 - 1, _REMEDY)
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"must be a tensor, got {short(value)} of type {type(value).__name__}: {_REMEDY}")
    if not options.has_values(value) and not param.is_meta:
        raise ValueError(f"must be dense and have values, got {short(value)}: {_REMEDY}")
    if tuple(value.shape) != shape:
        raise ValueError(f"has shape {tuple(value.shape)}, expected {shape}: {_REMEDY}")
    if value.dtype != dtype:
        raise ValueError(f"is {value.dtype}, expected {dtype}: bits have been lost")
    if field in ("mu", "nu") or param.is_meta:
        return value
    seen = local(value)
    low, high = 0, 2**32 - 1 if field == "step" else 1
    if not ((seen >= low) & (seen <= high)).all():
        raise ValueError(f"must lie in [{low}, {high}], got {short(value)}: {_REMEDY}")
    return value


def check_kind(label: str, value: Any, kind: Any, /) -> None:
    """Raise TypeError unless ``value`` has a type that a state_dict may hold."""
    if not isinstance(value, kind):
        names = {dict: "a dict", Mapping: "a mapping"}
        what = names.get(kind, "a list")
        raise TypeError(f"{label} must be {what}, got {short(value)} of type {type(value).__name__}: {_REMEDY}")
