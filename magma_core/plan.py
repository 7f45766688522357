"""Validates every argument before any computation, and plans each parameter's update."""

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from magma_core.arguments import check_integer, check_interval
from magma_core.bases import state_fields, state_shapes
from magma_core.blocks import Axes, Blocks, Shard, cut
from magma_core.config import LR_SCALE, Base, Decay, Rule, check_lr_scale
from magma_core.hyperparameters import BaseNumbers, RuleNumbers, base_numbers, rule_numbers
from magma_core.keep import mask_key
from magma_core.namespace import Array, Namespace
from magma_core.numerics import binary32
from magma_core.state import State


class Plan(NamedTuple):
    """The plan of one parameter's update."""

    name: str
    key: tuple[Any, Any]  # of its masks: two integers, or arrays if the seed is an array
    blocks: Blocks
    base: Base
    numbers: BaseNumbers  # of the base, without bias corrections
    rule: Rule  # the dense rule if the parameter is not masked
    rule_numbers: RuleNumbers
    masked: bool
    shard: Shard | None = None  # if the arrays are parts

    @property
    def decays(self) -> Decay | None:
        """How weight decay is applied; None if there is none (spec 4.5, 8)."""
        decay = self.numbers.weight_decay
        return None if isinstance(decay, float) and not binary32(decay) else self.rule.decay


def make_plan(
    param: Array,
    /,
    *,
    name: str,
    base: Base,
    rule: Rule,
    seed: int | Array,
    block_axes: Axes | None,
    xp: Namespace,
) -> Plan:
    """The validated plan of one parameter; reads only its shape and dtype.

    Args and errors: see `magma_core.init`.
    """
    _check_name(name)
    _check_param(param, name=name, xp=xp)
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a magma_core.Rule such as magma() or skip_update(), got {rule!r}")
    masked = block_axes is not None
    blocks = cut(tuple(param.shape), block_axes if block_axes is not None else (), name=name)
    rule = rule if masked else rule.unmasked
    state_fields(base, rule)  # raises for an unknown base
    return Plan(name, mask_key(name, seed, xp=xp), blocks, base, base_numbers(base), rule, rule_numbers(rule), masked)


def plan_all(
    params: Sequence[Array],
    /,
    *,
    names: Sequence[str],
    base: Base,
    rule: Rule,
    seed: int | Array,
    block_axes: Mapping[str, Axes | None],
    xp: Namespace,
) -> list[Plan]:
    """Plans for many parameters; make them once and pass them to `magma_core.update_planned` at every step.

    Args and errors: see `magma_core.update_all`.
    """
    if len(names) != len(params):
        raise ValueError(f"names must have one entry for each parameter: {len(names)} != {len(params)}")
    _check_names(names)
    if not isinstance(block_axes, Mapping):
        raise TypeError(f"block_axes must map each name to its axes, got {block_axes!r}")
    if missing := [name for name in names if name not in block_axes]:
        raise ValueError(
            f"block_axes has no entry for {missing[0]!r}: give the axes that index its blocks, "
            "() for one block, or None not to mask it"
        )
    if _is_array(seed):
        _check_scalar("seed", seed, "int")
    else:
        check_integer("seed", seed, 0, 2**64 - 1, "take it modulo 2**64")
    with xp.scope():
        return [
            make_plan(param, name=name, base=base, rule=rule, seed=seed, block_axes=block_axes[name], xp=xp)
            for param, name in zip(params, names, strict=True)
        ]


def check_inputs(
    plans: Sequence[Plan],
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[State],
    *,
    step: int | Array,
    lr: float | Array,
    lr_scale: float | Array = LR_SCALE,
    xp: Namespace,
) -> None:
    """Validate what changes from step to step; args and errors: see `magma_core.update_all`."""
    for label, given in (("params", params), ("grads", grads), ("states", states)):
        if len(given) != len(plans):
            raise ValueError(f"{label} must have one entry for each name: {len(given)} != {len(plans)}")
    if _is_array(step):
        _check_scalar("step", step, "int")
    else:
        check_integer("step", step, 1, 2**32 - 1, "the first step is 1, and the masks count in 32 bits")
    if _is_array(lr):
        _check_scalar("lr", lr, "float")
    else:
        check_interval("lr", lr, 0.0, None)
    if _is_array(lr_scale):
        _check_scalar("lr_scale", lr_scale, "float")
    else:
        check_lr_scale(lr_scale)
    for plan, param, grad, state in zip(plans, params, grads, states, strict=True):
        _check_param(param, name=plan.name, xp=xp)
        _check_like(f"gradient of {plan.name!r}", grad, plan.blocks.shape, param.dtype)
        check_state(state, plan, xp)


def _check_param(param: Array, /, *, name: str, xp: Namespace) -> None:
    """Raise TypeError unless the contract covers the parameter's dtype."""
    formats = ("float32", "bfloat16", "float16")
    supported = [getattr(xp, kind) for kind in formats if getattr(xp, kind, None) is not None]
    dtype = getattr(param, "dtype", None)
    if dtype is not None and any(dtype == kind for kind in supported):
        return
    kind = str(getattr(dtype, "name", dtype))
    given, remedy = f"{type(param).__name__} of {kind}", "cast it, or split complex numbers into their parts"
    if dtype is None:
        given, remedy = type(param).__name__, "make it one"
    elif kind.rpartition(".")[2] in formats:
        remedy = "pass the namespace that it belongs to as xp"
    raise TypeError(f"parameter {name!r} must be an array of float32, bfloat16 or float16, got {given}: {remedy}")


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"names must be strings, got {name!r}")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"names must be text that UTF-8 can encode, got {name!r}: rename it") from None


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        _check_name(name)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"names must all be different, but {repeated[0]!r} is there twice: "
            "parameters of one name would share their masks"
        )


def check_state(state: State, plan: Plan, xp: Namespace) -> None:
    """Raise unless the state matches the plan's base, rule and shapes."""
    if not isinstance(state, State):
        raise TypeError(f"state of {plan.name!r} must be a magma_core.State, got {type(state).__name__}")
    shapes = state_shapes(state_fields(plan.base, plan.rule), plan.blocks, has_score=plan.rule.uses_score)
    for field, value in state._asdict().items():
        label = f"state.{field} of {plan.name!r}"
        if field not in shapes and value is not None:
            raise ValueError(f"{label} must be None under this base and rule: make the state with init()")
        if field in shapes and value is None:
            raise ValueError(f"{label} is missing: make the state with init() for this base and rule")
        if field in shapes:
            _check_like(label, value, shapes[field], xp.float32)


def _check_like(label: str, x: Array, shape: tuple[int, ...], dtype: object) -> None:
    if not _is_array(x):
        raise TypeError(f"{label} must be an array, got {type(x).__name__}")
    if tuple(x.shape) != shape:
        remedy = ": make the state with init()" if label.startswith("state") else ""
        raise ValueError(f"{label} must have shape {shape}, got {tuple(x.shape)}{remedy}")
    if x.dtype != dtype:
        raise TypeError(f"{label} must have dtype {dtype}, got {x.dtype}: cast it")


def _check_scalar(label: str, x: Array, kind: str) -> None:
    """Check shape and dtype, which are known even under tracing; the value is not."""
    if tuple(x.shape) != ():
        raise ValueError(f"{label} must be a single number or an array of shape (), got shape {tuple(x.shape)}")
    if kind not in str(x.dtype):
        raise TypeError(f"{label} must be an array of {kind}s, got dtype {x.dtype}: cast it")


def _is_array(x: object) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, Real)
