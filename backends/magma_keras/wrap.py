"""Keep masks and scores around any Keras optimizer, in the style of `keras.optimizers.LossScaleOptimizer`."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from magma_core import Plan, RMSProp, Rule, State
from magma_core.alignment import alignment_sums
from magma_core.arguments import short
from magma_core.bases import advance_moments
from magma_core.config import LR_SCALE, SEED
from magma_core.hyperparameters import masked_rate
from magma_core.namespace import Array
from magma_core.numerics import real
from magma_core.rule import Advanced, Decision
from magma_core.signatures import shares_arguments
from magma_core.step import decide_all
from magma_keras import backend
from magma_keras.checks import listed, selected
from magma_keras.masking import Masking
from magma_keras.names import BlockAxes, MaskNames
from magma_keras.optimizer import MaskedOptimizer
from magma_keras.options import Options, rule_from

_STAND_IN = RMSProp()
"""Supplies a gradient average (spec 4.2) when the wrapped optimizer has none."""

MOMENTS = {"Adam": "_momentums", "Nadam": "_momentums", "Lamb": "_momentums", "Lion": "_momentums", "Adamax": "_m"}
"""Where Keras's optimizers keep a gradient average. Its SGD is missing: that momentum contains the learning rate."""


@keras.saving.register_keras_serializable(package="magma")
@shares_arguments(MaskedOptimizer)
class Wrapped(Masking):
    """A rule over any optimizer: dropped blocks get their bits back, kept blocks move w times as far.

    Masks and scores follow the contract; the wrapped optimizer computes the step. If it turns θ into θ′, a kept block
    becomes θ + (lr_scale·w)·(θ′ − θ), or θ′ itself if that factor is 1. The optimizer's weight decay is part of the
    step, so it is masked and weighted too.

    The cosine uses the wrapped optimizer's first moment. Without one, the wrapper keeps a gradient average with decay
    0.9.

    Args:
        optimizer: a Keras optimizer. Set ``use_ema``, ``gradient_accumulation_steps`` and ``loss_scale_factor``
            on the wrapper, and also clipping, if the cosine is to use clipped gradients; put a ``LossScaleOptimizer``
            around the wrapper.
        rule: the rule that keeps and weights blocks: a `magma_core.Rule` such as ``magma_core.magma()``, or a dict of
            its fields, with ``decay="masked"``.
        moment: the attribute that holds the wrapped optimizer's first moments, a list of variables; detected for Adam,
            AdamW, Nadam, Lamb, Lion and Adamax.

    Raises:
        ValueError, TypeError: naming the argument, its value and the remedy.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from magma_core import damping
        >>> from magma_keras import Wrapped
        >>> w = keras.Variable([1.0, 1.0], name="w")
        >>> optimizer = Wrapped(keras.optimizers.SGD(0.5), damping())
        >>> optimizer.apply([keras.ops.array([0.5, -0.5])], [w])
        >>> np.asarray(w)
        array([0.8719385, 1.1280615], dtype=float32)
    """

    def __init__(
        self,
        optimizer: Any,
        rule: Rule | Mapping[str, Any],
        *,
        moment: str | None = None,
        lr_scale: float = LR_SCALE,
        seed: int = SEED,
        block_axes: BlockAxes = (),
        mask_names: MaskNames | None = None,
        **kwargs: Any,
    ) -> None:
        _check_inner(optimizer)
        if moment is not None and not isinstance(moment, str):
            raise TypeError(f"moment must be the name of an attribute, got {moment!r}")
        rule = rule_from(rule)
        if rule.decay != "masked":
            raise ValueError(f'decay must be "masked", got {rule.decay!r}: weight decay is part of what is wrapped')
        for argument in ("learning_rate", "weight_decay"):
            if kwargs.pop(argument, None) is not None:
                raise ValueError(f"{argument} is the wrapped optimizer's own: give it to optimizer")
        super().__init__(0.0, Options(_STAND_IN, rule, lr_scale, seed, block_axes, mask_names), **kwargs)
        self.optimizer = optimizer
        self._moment = moment

    @property
    def variables(self) -> list[Any]:
        """The wrapper's variables, then the wrapped optimizer's."""
        return self._variables + self.optimizer.variables

    @property
    def learning_rate(self) -> Any:
        """The wrapped optimizer's learning rate."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.optimizer.learning_rate = learning_rate

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state of both optimizers.

        Raises:
            ValueError, TypeError: for invalid variables, names or blocks; nothing is created then.
            ValueError: if the wrapped optimizer was built for other variables, or lacks ``moment``.
        """
        if self.built:
            return
        variables = listed("variables", variables)
        self._settle(variables)
        self.optimizer.build(variables)
        self._check_built_inner(variables)
        super().build(variables)

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Exclude variables from the wrapped optimizer's decay; errors: see `Masking.exclude_from_weight_decay`."""
        self.optimizer.exclude_from_weight_decay(selected(var_list, var_names), var_names)

    def get_config(self) -> dict[str, Any]:
        """See `Masking.get_config`."""
        config = super().get_config()
        del config["learning_rate"]
        inner = keras.saving.serialize_keras_object(self.optimizer)
        return {"optimizer": inner, "moment": self._moment, **config}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> "Wrapped":
        """Create the optimizer that `get_config` describes."""
        if "optimizer" not in config:
            raise ValueError("the configuration has no entry 'optimizer': give what get_config() of one returned")
        inner = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        return super().from_config({**config, "optimizer": inner}, custom_objects)

    def _fields(self, plans: Sequence[Plan]) -> list[tuple[str, ...]]:
        known = self._inner_moments() is not None
        return [("mu",) if plan.rule.uses_score and not known else () for plan in plans]

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """Let the wrapped optimizer step, then mask and weight the result."""
        if backend.replicas() > 1:
            raise NotImplementedError(
                f"Wrapped cannot run under a strategy of {backend.replicas()} replicas: use Magma or SkipUpdate there"
            )
        variables = list(trainable_variables)
        plans, xp = self._plans(variables), backend.xp
        dense = [backend.entering(backend.gradient(*pair)) for pair in zip(grads, variables, strict=True)]
        before = [backend.entering(backend.copy(variable)) for variable in variables]
        states = self._memory.states([self._get_variable_index(variable) for variable in variables])
        seen_before = self._moments(variables, states)
        self.optimizer.apply(list(grads), variables)
        with xp.scope():
            states = [_averaged(*one) for one in zip(plans, dense, states, strict=True)]
            seen = seen_before if self.rule.momentum == "before" else self._moments(variables, states)
            advanced = [_measured(*one) for one in zip(plans, dense, seen, states, strict=True)]
            decisions = decide_all(
                plans,
                advanced,
                states,
                step=backend.array(self.iterations) + 1,
                rate=masked_rate(real(1.0, xp=xp, device=xp.device(dense[0])), self._options.lr_scale),
                device=xp.device(dense[0]),
            )
            after = [backend.entering(backend.array(variable)) for variable in variables]
            settled = [
                _settled(*one, self._options.lr_scale) for one in zip(plans, decisions, before, after, strict=True)
            ]
        for variable, new, state, decision in zip(variables, settled, states, decisions, strict=True):
            score = state.score if decision is None else decision.score
            self._put(variable, new, state._replace(score=score))

    def _check_built_inner(self, variables: Sequence[Any]) -> None:
        try:
            places = [self.optimizer._get_variable_index(variable) for variable in variables]
        except KeyError:
            raise ValueError("optimizer was built for other variables: give a new one") from None
        if self._moment and len(getattr(self.optimizer, self._moment, ())) <= max(places, default=-1):
            raise ValueError(
                f"moment={self._moment!r} is no list of {type(self.optimizer).__name__} with an entry for each "
                "variable: name the attribute that has its first moments, or leave it out"
            )

    def _inner_moments(self) -> Any:
        """The wrapped optimizer's first moments; None if it has none that is known."""
        kinds = [kind.__name__ for kind in type(self.optimizer).__mro__ if kind.__module__.startswith("keras.")]
        name = self._moment or next((MOMENTS[kind] for kind in kinds if kind in MOMENTS), None)
        return name and getattr(self.optimizer, name)

    def _moments(self, variables: Sequence[Any], states: Sequence[State]) -> list[Array | None]:
        """The momentum of each variable."""
        inner = self._inner_moments()
        if inner is None:
            return [state.mu for state in states]
        places = [self.optimizer._get_variable_index(variable) for variable in variables]
        return [backend.entering(backend.copy(inner[place])) for place in places]


def _averaged(plan: Plan, grad: Array, state: State) -> State:
    """The state with an updated gradient average, if kept here."""
    if state.mu is None:
        return state
    return advance_moments(real(grad, xp=backend.xp).flush(), state, plan.numbers, base=_STAND_IN)


def _measured(plan: Plan, grad: Array, mu: Array | None, state: State) -> Advanced:
    """The alignment with a momentum."""
    if not plan.rule.uses_score:
        return Advanced(state, plan.numbers, None)
    xp = backend.xp
    return Advanced(
        state, plan.numbers, alignment_sums(real(mu, xp=xp).flush(), real(grad, xp=xp), plan.blocks, plan.shard)
    )


def _settled(plan: Plan, decision: Decision | None, before: Array, after: Array, lr_scale: float) -> Array:
    """The final value of a variable that the wrapped optimizer has moved."""
    if decision is None:
        return after
    xp, weighted = backend.xp, after
    keep = plan.blocks.spread(decision.keep, xp=xp)
    if plan.rule.weight != "one" or lr_scale != 1:
        scale = decision.scale.array
        w = real(plan.blocks.spread(scale, xp=xp) if plan.rule.weight == "score" else scale, xp=xp)
        old, new = real(before, xp=xp), real(real(after, xp=xp).fenced(), xp=xp)  # else (θ − x) − θ would become −x
        moved = (old + w * (new - old)).replace(xp.equal(w.array, 1.0), new)
        weighted = moved.astype(after.dtype)
    return xp.where(keep, weighted, before)


def _check_inner(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"optimizer must be a Keras optimizer such as keras.optimizers.Adam(), got {short(optimizer)}")
    if isinstance(optimizer, Masking):
        raise TypeError(f"optimizer is masked already, got {optimizer!r}: wrap an optimizer that is not")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise TypeError("optimizer must not scale the loss: put LossScaleOptimizer around the wrapper")
    for argument in ("use_ema", "gradient_accumulation_steps", "loss_scale_factor"):
        if value := getattr(optimizer, argument):
            raise ValueError(f"optimizer has {argument}={value!r}: set it on the wrapper instead")
