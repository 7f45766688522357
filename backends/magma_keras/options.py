"""The arguments of an optimizer, and their form in its configuration."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypedDict

import keras

from magma_core import Base, Plan, Rule, plan_all
from magma_core.arguments import check_integer, short
from magma_core.base_arguments import as_base, base_name, own_numbers
from magma_core.config import LR_SCALE, SEED, check_lr_scale
from magma_keras import backend
from magma_keras.checks import WRAPPED
from magma_keras.names import (
    BlockAxes,
    Choice,
    MaskNames,
    axes,
    check_block_axes,
    mask_names,
    path,
    same_variables,
    unmatched,
)

_NAMES = {"beta1": "beta_1", "beta2": "beta_2", "eps": "epsilon"}
"""Keras's names of a base's numbers; the others keep the core's names."""


class KerasOptions(TypedDict, total=False):
    """The arguments of `keras.optimizers.Optimizer`, passed through to it."""

    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None


class BaseOptions(KerasOptions, total=False):
    """The arguments of `magma_keras.MaskedOptimizer` besides learning rate, rule and base."""

    beta_1: float | None
    beta_2: float | None
    epsilon: float | None
    momentum: float | None
    nesterov: bool | None
    weight_decay: float | None
    lr_scale: float
    seed: int
    block_axes: BlockAxes
    mask_names: MaskNames | None


@dataclass(frozen=True)
class Options:
    """An optimizer's options, without its learning rate and the options of Keras's base class.

    Args:
        base: a configuration of magma_core.
        rule: the rule that keeps and weights blocks.
        lr_scale: learning-rate factor for masked variables only, ≥ 2⁻¹⁰⁰.
        seed: seed of the keep masks: an integer in [0, 2⁶⁴).
        block_axes: the axes that *index* blocks, for all variables: ``()`` makes each variable a block, ``(0,)`` each
            row. Or a dict that maps parts of paths (regular expressions; the first match counts) to axes, or to None
            for variables that the base alone updates.
        mask_names: the names that key the masks, if not those of docs/keras.md: a dict from paths as Keras has them, or
            a function of such a path.
        restored: the choices saved with the optimizer.
    """

    base: Base
    rule: Rule
    lr_scale: float = LR_SCALE
    seed: int = SEED
    block_axes: BlockAxes = ()
    mask_names: MaskNames | None = None
    restored: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        check_lr_scale(self.lr_scale)
        check_integer("seed", self.seed, 0, 2**64 - 1, "take it modulo 2**64")
        check_block_axes(self.block_axes)
        names = self.mask_names
        if names is not None and not callable(names) and not isinstance(names, Mapping):
            raise TypeError(
                f"mask_names must map paths of variables to names, or be a function that does, got {names!r}"
            )

    def choose(self, variables: Sequence[Any], decaying: Sequence[bool]) -> list[Choice]:
        """The choices for each variable: the saved ones, if the variables are the same.

        Paths may differ: a loaded model may lack its name.

        Args:
            variables: all of them.
            decaying: for each variable, whether weight decay applies.
        """
        paths = [path(variable) for variable in variables]
        if len(self.restored) == len(paths):
            before = [choice.path for choice in self.restored]
            if all(same := same_variables(paths, before)):
                pairs = zip(self.restored, decaying, strict=True)
                return [choice._replace(decays=choice.decays and decays) for choice, decays in pairs]
            first = same.index(False)
            warnings.warn(
                f"{paths[first]!r} was {before[first]!r} when this optimizer was saved or copied: masks will be others "
                "than before. For another model, remove 'variables' from the configuration; for the same one, give its "
                "layers names",
                stacklevel=3,
            )
        return [
            Choice(path, name, axes(path, self.block_axes), decays)
            for path, name, decays in zip(paths, mask_names(paths, self.mask_names), decaying, strict=True)
        ]

    def unmatched(self, variables: Sequence[Any]) -> Iterator[str]:
        """What selects none of the variables."""
        former = [choice.path for choice in self.restored]
        return unmatched([path(variable) for variable in variables], former, self.block_axes, self.mask_names)

    def plan(self, variables: Sequence[Any], choices: Sequence[Choice]) -> list[Plan]:
        """The plan of each variable; errors: see `magma_core.update_all`."""
        plans = plan_all(
            [variable.value if isinstance(variable, keras.Variable) else variable for variable in variables],
            names=[choice.mask_name for choice in choices],
            base=self.base,
            rule=self.rule,
            seed=self.seed,
            block_axes={choice.mask_name: choice.axes for choice in choices},
            xp=backend.xp,
        )
        return [
            plan if choice.decays else plan._replace(numbers=plan.numbers._replace(weight_decay=0.0))
            for plan, choice in zip(plans, choices, strict=True)
        ]

    def config(self) -> dict[str, Any]:
        """The arguments as JSON values, without those of the base."""
        names = keras.saving.serialize_keras_object(self.mask_names) if callable(self.mask_names) else self.mask_names
        return {
            "rule": asdict(self.rule),
            "lr_scale": float(self.lr_scale),
            "seed": self.seed,
            "block_axes": _listed(self.block_axes),
            "mask_names": names if names is None else dict(names),
        }


def base_config(base: Base, /) -> dict[str, Any]:
    """The arguments that `base_from` turns into ``base``, as JSON values."""
    numbers = {_NAMES.get(name, name): value for name, value in asdict(base).items()}
    return {"base": base_name(base), **numbers}


def mask_names_from(config: Any, /, custom_objects: Mapping[str, Any] | None) -> Any:
    """Restore ``mask_names`` from `Options.config`."""
    if isinstance(config, Mapping) and {"class_name", "config"} <= config.keys():
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    return config


def base_from(base: str | Base, /, **given: Any) -> Base:
    """The base that the arguments describe; errors: see `own_numbers`, with Keras's names."""
    if isinstance(base, keras.optimizers.Optimizer):
        raise TypeError(f"base must be a name such as 'adamw', got an optimizer of Keras: {WRAPPED}")
    base = as_base(base)
    return replace(base, **own_numbers(base, given, _NAMES))


def rule_from(rule: Any, /) -> Rule:
    """The rule, or the one that `Options.config` describes; TypeError for anything else."""
    if isinstance(rule, Mapping):
        if alien := sorted(rule.keys() - {field.name for field in fields(Rule)}, key=str):
            raise ValueError(f"rule has an unknown {short(alien[0])}, which is no field of magma_core.Rule")
        return Rule(**rule)
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a magma_core.Rule such as magma() or skip_update(), got {rule!r}")
    return rule


def _listed(block_axes: BlockAxes) -> Any:
    """Lists for tuples: Keras writes tuples in its own form and does not read them here."""
    if isinstance(block_axes, Mapping):
        return {pattern: None if value is None else list(value) for pattern, value in block_axes.items()}
    return list(block_axes)
