"""The arguments of the transformations, as structure, which tracing sees, and numbers, which it may not.

A hyper-parameter is a Python number or an array of shape (), as `optax.inject_hyperparams` and ``vmap`` make it.
Numbers are validated; the values of arrays are not.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypedDict, Unpack, cast

import jax
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec

from magma_core import Axes, Base, Plan, Rule, magma, plan_all
from magma_core.arguments import check_choice, check_integer, check_interval, short
from magma_core.base_arguments import as_base, own_numbers
from magma_core.blocks import Shard
from magma_core.config import LR_SCALE, SEED, Decay, Momentum, check_lr_scale
from magma_core.hyperparameters import base_numbers, rule_numbers
from magma_core.namespace import Namespace
from magma_core.numerics import Operand, real
from magma_core.signatures import shares_arguments
from magma_jax import namespace
from magma_jax.decay_mask import DecayMask, check_decay_mask
from magma_jax.names import Name

_XP = cast(Namespace, namespace)
_NAMES = {"beta1": "b1", "beta2": "b2"}
"""optax's names of a base's numbers; the others keep the core's names."""

Hyperparameter: TypeAlias = float | jax.Array
Specs: TypeAlias = Callable[[str, Any], PartitionSpec]
BlockAxes: TypeAlias = Axes | Callable[[str, Any], Axes | None]


class MaskOptions(TypedDict, total=False):
    """The mask arguments, see `Options`."""

    lr_scale: Hyperparameter
    seed: int | jax.Array
    block_axes: BlockAxes
    name: Name | None
    specs: Specs | None


class BaseOptions(MaskOptions, total=False):
    """The arguments of `read_options` besides rule and base."""

    b1: Hyperparameter | None
    b2: Hyperparameter | None
    eps: Hyperparameter | None
    weight_decay: Hyperparameter | None
    weight_decay_mask: DecayMask | None


@dataclass(frozen=True)
class Options:
    """A base and a rule, with their array-valued numbers kept apart, and the mask options.

    Args:
        base: a configuration of magma_core.
        rule: the rule that keeps and weights blocks, e.g. `magma_core.damping()`.
        base_arrays: the base's array-valued numbers, by field name.
        rule_arrays: the rule's array-valued numbers, by field name.
        lr_scale: learning-rate factor for masked leaves only, ≥ 2⁻¹⁰⁰.
        seed: seed of the keep masks: an integer in [0, 2⁶⁴), or an integer array of shape ().
        block_axes: the axes that *index* blocks, for all leaves: ``()`` makes each leaf a block, ``(0,)`` each row, or
            each layer or expert of a stack. Or a function of a leaf's name and the leaf, which returns its axes, or
            None for a leaf that the base alone updates.
        name: maps a leaf's path, joined by dots as in "params.dense.kernel", to the name that keys its masks. The path
            is a str that also has its keys one by one, as ``path.parts``.
        specs: only inside `jax.shard_map`: a function of a leaf's name and the leaf, which returns its PartitionSpec,
            so that blocks are those of the whole tensor. Under ``jit``, the sharding is found without it.
        weight_decay_mask: see `read_options`.
    """

    base: Base
    rule: Rule
    base_arrays: Mapping[str, Any]
    rule_arrays: Mapping[str, Any]
    lr_scale: Hyperparameter = LR_SCALE
    seed: int | jax.Array = SEED
    block_axes: BlockAxes = ()
    name: Name | None = None
    specs: Specs | None = None
    weight_decay_mask: DecayMask | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be a magma_core.Rule such as magma_core.magma(), got {short(self.rule)}")
        for argument, gets in (("name", "a leaf's path"), ("specs", "a leaf's name and the leaf")):
            function = getattr(self, argument)
            if function is not None and not callable(function):
                raise TypeError(f"{argument} must be a function of {gets}, got {short(function)}")
        if isinstance(self.block_axes, Mapping):
            raise TypeError(
                f"block_axes must be a tuple of axes, or a function of a leaf's name and the leaf, got "
                f"{short(self.block_axes)}: give lambda name, leaf: axes[name]"
            )
        if not _divide({"lr_scale": self.lr_scale})[1]:
            check_lr_scale(self.lr_scale)
        _check_seed(self.seed)
        check_decay_mask(self.weight_decay_mask)

    def plan(
        self, leaves: Sequence[Any], names: Sequence[str], decays: Iterable[bool | None] = itertools.repeat(None)
    ) -> list[Plan]:
        """The plan of each leaf, without weight decay if its entry in ``decays`` is False.

        Errors: see `magma_core.update_all`.
        """
        _check_different(names)
        axes = {name: self.axes(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
        plans = plan_all(leaves, names=names, base=self.base, rule=self.rule, seed=self.seed, block_axes=axes, xp=_XP)
        if self.specs is not None:
            parts = zip(plans, leaves, strict=True)
            plans = [plan._replace(shard=_shard(plan, self.specs(plan.name, leaf))) for plan, leaf in parts]
        if self.base_arrays or self.rule_arrays:
            with _XP.scope():
                of_base = base_numbers(self.base, **_reals(self.base_arrays))
                of_rule = rule_numbers(self.rule, **_reals(self.rule_arrays))
            plans = [
                plan._replace(numbers=of_base, rule_numbers=of_rule if plan.masked else plan.rule_numbers)
                for plan in plans
            ]
        return [_without_decay(plan) if flag is False else plan for plan, flag in zip(plans, decays, strict=False)]

    @property
    def factor(self) -> Hyperparameter:
        """``lr_scale`` for a step; a barrier hides from XLA how the same program computed an array."""
        return namespace.barrier(self.lr_scale) if isinstance(self.lr_scale, jax.Array) else self.lr_scale

    def axes(self, name: str, leaf: Any) -> Axes | None:
        """The axes that index a leaf's blocks; None if the base alone updates it."""
        return self.block_axes(name, leaf) if callable(self.block_axes) else self.block_axes


@shares_arguments(Options)
def read_options(
    rule: Rule,
    rule_arrays: Mapping[str, Any],
    base: str | Base,
    *,
    b1: Hyperparameter | None = None,
    b2: Hyperparameter | None = None,
    eps: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    weight_decay_mask: DecayMask | None = None,
    **options: Unpack[MaskOptions],
) -> Options:
    """The validated arguments of a transformation.

    Args:
        base: "sgd", "rmsprop", "adam", "adamw", "laprop", or a configuration such as ``magma_core.SGD(momentum=0.8)``.
        b1: decay rate of the first moment, in [0, 1); None for the base's own, also for the next three.
        b2: decay rate of the second moment, in [0, 1).
        eps: ε ≥ 2⁻¹⁰⁰, added outside the square root.
        weight_decay: coefficient λ ≥ 0 of decoupled decay; inside the update, unless `magma_core.Rule.decay` is dense.
        weight_decay_mask: which leaves decay, as ``mask`` of `optax.adamw`: a tree of bools like the parameters or like
            a prefix of them, or a function of the parameters that makes one; None for all leaves. It has no part in
            the keep masks.
    """
    base, base_arrays = base_options(base, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    if weight_decay_mask is not None and weight_decay is None and not base.weight_decay:
        raise ValueError(
            f"weight_decay_mask says which leaves decay, but base {type(base).__name__} decays none: give weight_decay "
            'too, which "adam" does not have and "adamw" has'
        )
    return Options(base, rule, base_arrays, rule_arrays, weight_decay_mask=weight_decay_mask, **options)


def base_options(base: str | Base, /, **given: Hyperparameter | None) -> tuple[Base, dict[str, Any]]:
    """The base and its array-valued numbers; errors: see `own_numbers`, with optax's names."""
    if isinstance(base, optax.GradientTransformation):
        raise TypeError(
            f"base must be a name or a configuration of magma_core, got {short(base)}: to put masks around optimizers "
            "of optax, use wrap_magma(optimizer) or wrap_skip_update(optimizer)"
        )
    base = as_base(base)
    constants, arrays = _divide(given)
    arrays = own_numbers(base, arrays, _NAMES, check=False)
    return replace(base, **own_numbers(base, constants, _NAMES)), arrays


def magma_options(
    cosine_momentum: Momentum, decay: Decay = Rule.decay, /, **given: Hyperparameter
) -> tuple[Rule, dict[str, Any]]:
    """Magma's options, see `rule_options`."""
    check_choice("cosine_momentum", cosine_momentum, ("after", "before"))
    return rule_options(magma(momentum=cosine_momentum, decay=decay), **given)


def check_number(name: str, value: Any, /) -> None:
    """Raise unless ``value`` is a number ≥ 0, or a float array of shape ()."""
    if not _divide({name: value})[1]:
        check_interval(name, value, 0.0, None)


def rule_options(rule: Rule, /, **given: Hyperparameter) -> tuple[Rule, dict[str, Any]]:
    """The rule with the numbers ``given``, and the array-valued ones apart; errors: see `magma_core.Rule`."""
    constants, arrays = _divide(given)
    return replace(rule, **constants), arrays


def is_array(x: Any, /) -> bool:
    """Whether this hyper-parameter is an array, with a value that cannot be read."""
    return isinstance(x, jax.Array | np.ndarray)


def _divide(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = {name: x for name, x in given.items() if is_array(x)}
    for name, x in arrays.items():
        if x.shape != () or not jax.numpy.issubdtype(x.dtype, np.floating):
            raise ValueError(f"{name} must be a number or a float array of shape (), got {x.dtype} of shape {x.shape}")
    return {name: x for name, x in given.items() if name not in arrays}, arrays


def _check_seed(seed: Any) -> None:
    if not is_array(seed):
        check_integer("seed", seed, 0, 2**64 - 1, "take it modulo 2**64")
    elif seed.shape != () or not jax.numpy.issubdtype(seed.dtype, np.integer):
        raise TypeError(
            f"seed must be an integer or an integer array of shape (), got {seed.dtype} of shape {seed.shape}: of keys "
            "of jax.random, give jax.random.bits(key)"
        )


def _check_different(names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f"two leaves are called {short(name)} and would share masks: name them with name=, a function of "
                "a leaf's path, whose keys one by one are path.parts"
            )


def _without_decay(plan: Plan) -> Plan:
    """As with weight decay 0, in the base too: state files keep it for each leaf."""
    zero: dict[str, Any] = {"weight_decay": 0.0}
    return plan._replace(base=replace(plan.base, **zero), numbers=plan.numbers._replace(weight_decay=0.0))


def _shard(plan: Plan, spec: PartitionSpec) -> Shard:
    """The shard of a leaf inside `jax.shard_map`."""
    blocks = plan.blocks
    if not isinstance(spec, PartitionSpec) or len(spec) > len(blocks.shape):
        raise ValueError(
            f"specs must give {plan.name!r} a PartitionSpec of at most {len(blocks.shape)} entries, got {spec!r}"
        )
    entries = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    entries += [()] * (len(blocks.shape) - len(entries))
    inner = tuple(itertools.chain.from_iterable(entries[axis] for axis in blocks.inner_axes))
    try:
        sizes = [lax.axis_size(names) if names else 1 for names in entries]
    except NameError as error:
        raise ValueError(
            f"specs gives {plan.name!r} the spec {spec!r}, but no jax.shard_map around it has such an axis ({error}): "
            "leave specs out under jit"
        ) from error
    places = [lax.axis_index(names) if names else 0 for names in entries]
    return Shard(
        shape=tuple(n * size for n, size in zip(blocks.shape, sizes, strict=True)),
        starts=tuple(place * n for place, n in zip(places, blocks.shape, strict=True)),
        largest=lambda x: lax.pmax(x, inner) if inner else x,
        total=lambda x: lax.psum(x, inner) if inner else x,
    )


def _reals(arrays: Mapping[str, Any]) -> dict[str, Operand]:
    return {name: real(x, xp=_XP).flush() for name, x in arrays.items()}
