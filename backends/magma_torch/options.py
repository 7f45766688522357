"""Parameter groups: plain values that schedulers may change and checkpoints hold, and their meaning."""

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias, TypedDict

import torch
from torch.nn.parameter import is_lazy

from magma_core import Base, Rule, cut, state_fields
from magma_core.arguments import check_choice, check_flag, check_integer, check_interval, short
from magma_core.base_arguments import as_base, base_name
from magma_core.config import BASES, LR_SCALE, SEED, check_lr_scale
from magma_torch.engine.compiler import compile_if_possible
from magma_torch.engine.matrix_step import Structure
from magma_torch.mistakes import FLAGS

Group: TypeAlias = dict[str, Any]


class MaskOptions(TypedDict, total=False):
    """The arguments of `mask_entries`."""

    lr_scale: float
    seed: int
    masked: bool
    block_axes: Sequence[int]
    compile: bool


class BaseOptions(MaskOptions, total=False):
    """The arguments of `magma_torch.MaskedOptimizer` that do not concern the rule."""

    base: str | Base
    betas: tuple[float, float] | None
    eps: float | None
    weight_decay: float | None


_RULE_KEYS = {"cosine_momentum" if field.name == "momentum" else field.name: field.name for field in fields(Rule)}
"""Entries of a group and their fields of `magma_core.Rule`; in torch, momentum is a number of the base."""


@dataclass(frozen=True)
class Options:
    """The options of one parameter group, without its learning rate."""

    base: Base
    rule: Rule  # the dense rule if the group is not masked
    masked: bool
    block_axes: tuple[int, ...]
    lr_scale: float  # 1 if the group is not masked
    seed: int
    compile: bool
    structure: Structure
    fields: tuple[str, ...]  # the stored moments, see `magma_core.state_fields`

    @property
    def memory(self) -> object:
        """The options that determine the memory's shapes and computation."""
        return self.fields, self.rule.uses_score, self.masked, self.block_axes, self.seed, self.compile


def base_entries(base: str | Base, /, **numbers: Any) -> Group:
    """A group's entries for the base: its name, and its numbers as torch names them.

    Args:
        base: a name or a configuration of magma_core.
        numbers: values that override the configuration's, such as ``betas`` or ``eps``; None overrides nothing.

    Raises:
        ValueError: for an unknown name, or a number that the base does not have.
        TypeError: if ``base`` is neither a name nor a configuration of magma_core.
    """
    base = as_base(base)
    name = base_name(base)
    entries = asdict(base)
    if "beta1" in entries:
        entries = {"betas": (entries.pop("beta1"), entries.pop("beta2")), **entries}
    given = {key: value for key, value in numbers.items() if value is not None}
    if alien := [key for key in given if key not in entries]:
        raise ValueError(f"{alien[0]} does not belong to base {name!r}, which has {', '.join(entries)}")
    return {"base": name, **entries, **given}


def mask_entries(
    *,
    lr_scale: float = LR_SCALE,
    seed: int = SEED,
    masked: bool = True,
    block_axes: Sequence[int] = (),
    compile: bool = True,
) -> Group:
    """A group's entries for masking.

    Args:
        lr_scale: learning-rate factor for masked parameters only, ≥ 2⁻¹⁰⁰.
        seed: seed of the masks, in [0, 2⁶⁴).
        masked: False for the plain base; most useful in a group.
        block_axes: the axes that index blocks: ``()`` the whole tensor, ``(0,)`` one block per row, expert or layer.
        compile: on the CPU, step with the C library that `magma_native` compiles once; on CUDA, with the kernels of
            `magma_torch.gpu`. Without it, or without a C compiler and Triton, the same bits take longer.

    Raises:
        TypeError: if ``block_axes`` is not a sequence of integers.
    """
    return {
        "lr_scale": lr_scale,
        "seed": seed,
        "masked": masked,
        "block_axes": _axes(block_axes),
        "compile": compile_if_possible(compile),
    }


def _axes(block_axes: Any) -> tuple[int, ...]:
    if isinstance(block_axes, str) or not isinstance(block_axes, Sequence):
        raise TypeError(f"block_axes must be a sequence of integers such as () or (0,), got {short(block_axes)}")
    return tuple(block_axes)


def rule_entries(rule: Rule, /) -> Group:
    """A group's entries for the rule; TypeError for anything but a rule."""
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a magma_core.Rule such as magma() or skip_update(), got {short(rule)}")
    return {key: getattr(rule, field) for key, field in _RULE_KEYS.items()}


def read(group: Mapping[str, Any], /) -> Options:
    """The validated configuration of a group.

    Raises:
        ValueError, TypeError: naming the entry, its value and the remedy.
    """
    for key, reason in FLAGS.items():
        if asks_for(group, key):
            raise ValueError(f"{key}=True is not supported: {reason}")
    if missing := lacking(group):
        raise ValueError(
            f"a parameter group has no entry {missing!r}, which base {short(group.get('base'))} needs: to change the "
            "base, replace all of its numbers, or make a new optimizer"
        )
    for flag in ("masked", "compile", "nesterov"):  # before the cache, whose keys do not distinguish 1 and True
        if flag in group or flag != "nesterov":
            check_flag(flag, group[flag])
    check_rate(group["lr"])
    check_lr_scale(_frozen("lr_scale", group["lr_scale"]))
    check_choice("base of a group", group["base"], tuple(BASES))
    return _read(tuple((key, _frozen(key, group[key])) for key in _keys(group["base"])))


def lacking(group: Mapping[str, Any], /) -> str | None:
    """The first entry that a group needs and does not have; None if it is complete, or of an unknown base."""
    base = group.get("base")
    needed = _keys(base) if isinstance(base, str) and base in BASES else ("base",)
    return next((key for key in ("lr", *needed) if key not in group), None)


def asks_for(group: Mapping[str, Any], flag: str, /) -> bool:
    """Whether a group sets an option of torch, which may be missing or None."""
    value = group.get(flag)
    if value is not None:
        check_flag(flag, value)
    return value is True


def asked_rule(group: Mapping[str, Any], /) -> Rule:
    """The rule that a group requests, masked or not."""
    return Rule(**{field: _frozen(key, group[key]) for key, field in _RULE_KEYS.items()})


def own_entries(group: Mapping[str, Any], defaults: Mapping[str, Any], /) -> Group:
    """The entries of a new group's base, where the group does not give them.

    Raises:
        ValueError: for a number, other than 0 or None, that the base does not have.
    """
    base = group.get("base", defaults["base"])
    given = {key: group[key] for key in _base_keys() if key in group and not _is_unset(group[key])}
    own = base_entries(base, **given)
    if base == defaults["base"]:  # given by name: use the optimizer's own numbers
        own = {key: defaults[key] for key in own}
    return {**own, **group, "base": own["base"]}


@functools.cache
def _base_keys() -> tuple[str, ...]:
    """The numbers of all bases."""
    return tuple(dict.fromkeys(key for base in BASES for key in base_entries(base) if key != "base"))


def _is_unset(value: Any) -> bool:
    """Whether an entry says nothing, as those of other optimizers' groups may: None, False or 0."""
    return value is None or (isinstance(value, int | float) and not value)


@functools.cache
def _keys(base: str) -> tuple[str, ...]:
    """The entries that are read, besides the rate; others are left to the code that added them."""
    return (*base_entries(base), *_RULE_KEYS, "lr_scale", "seed", "masked", "block_axes", "compile")


ENTRIES = frozenset(("params", "param_names", "lr", *FLAGS, *(key for base in BASES for key in _keys(base))))
"""The entries of a group that are read, whatever its base."""


@functools.lru_cache(maxsize=1024)
def _read(entries: tuple[tuple[str, Any], ...]) -> Options:
    group = dict(entries)
    kind = BASES[group["base"]]
    if "betas" in group:
        if not isinstance(group["betas"], tuple) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {short(group['betas'])}")
        group["beta1"], group["beta2"] = group["betas"]
    base = kind(**{field.name: group[field.name] for field in fields(kind)})
    check_choice("cosine_momentum", group["cosine_momentum"], ("after", "before"))  # in torch, momentum is a number
    rule = asked_rule(group)
    if not isinstance(group["block_axes"], tuple):
        raise TypeError(f"block_axes must be a sequence of integers, got {short(group['block_axes'])}")
    check_integer("seed", group["seed"], 0, 2**64 - 1, "take it modulo 2**64")
    if not group["masked"]:
        rule = rule.unmasked
    return Options(
        base=base,
        rule=rule,
        masked=group["masked"],
        block_axes=group["block_axes"],
        lr_scale=float(group["lr_scale"]) if group["masked"] else LR_SCALE,
        seed=group["seed"],
        compile=group["compile"],
        structure=Structure.of(base, rule),
        fields=state_fields(base, rule),
    )


def check_rate(lr: Any, /) -> None:
    """Raise unless ``lr`` is a number ≥ 0, or a tensor with one float (its value is checked on the CPU only)."""
    if isinstance(lr, torch.Tensor):
        if not has_values(lr) or lr.numel() != 1 or not lr.is_floating_point():
            raise ValueError(f"lr must be a number or a tensor with one float, got {short(lr)}")
        if lr.device.type != "cpu":
            return
    check_interval("lr", _frozen("lr", lr), 0.0, None)


def check_parameter(name: str, param: torch.Tensor, settings: Options, /) -> None:
    """Raise unless ``param`` can be optimized with ``settings``.

    Not while it cannot have a gradient, because it is frozen, or lazy and without a shape: it may never be stepped.
    """
    if (not param.requires_grad or is_lazy(param)) and param.grad is None:
        return
    if param.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            f"parameter {name!r} must be float32, bfloat16 or float16, got {param.dtype}: "
            "cast it, or split complex numbers with torch.view_as_real"
        )
    cut(tuple(param.shape), settings.block_axes if settings.masked else (), name=name)


def shape_of(name: str, param: torch.Tensor, /) -> tuple[int, ...]:
    """The shape of a parameter; ValueError if it is lazy and has none yet."""
    if is_lazy(param):
        raise ValueError(f"{name!r} has no shape yet: call the forward of its lazy module first")
    return tuple(param.shape)


def has_values(tensor: torch.Tensor, /) -> bool:
    """Whether ``tensor`` is dense and not on the device "meta"."""
    return not tensor.is_nested and tensor.layout is torch.strided and not tensor.is_meta


def _frozen(key: str, value: Any, is_item: bool = False) -> Any:
    """A tensor's value as a Python number, a list as a tuple."""
    if isinstance(value, torch.Tensor):
        if has_values(value) and value.numel() == 1:
            return value.item()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not is_item:
            return tuple(_frozen(key, x, is_item=True) for x in value)
    else:
        with suppress(TypeError):
            hash(value)
            return value
    raise TypeError(f"{key} of a parameter group must be a plain value, got {short(value)}")
