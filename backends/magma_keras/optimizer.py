"""A Keras optimizer for every base and rule: the core computes the step, Keras everything around it."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from magma_core import Base, Plan, Rule, State, state_fields
from magma_core.bases import advance_powers
from magma_core.config import LR_SCALE, SEED
from magma_core.namespace import Array
from magma_core.signatures import shares_arguments
from magma_core.state import Alignment, Report
from magma_keras import backend
from magma_keras.checks import check_rate, listed
from magma_keras.masking import Masking
from magma_keras.names import BlockAxes, MaskNames
from magma_keras.options import Options, base_config, base_from, rule_from


@keras.saving.register_keras_serializable(package="magma")
@shares_arguments(Options)
class MaskedOptimizer(Masking):
    """Any rule over any base: θ ← θ − lr·w·k·Δ (docs/spec.md), bitwise identical on every Keras backend.

    The base class works as usual around a step: clipping, loss scaling, gradient accumulation (t counts steps, not
    micro-steps), moving averages, constraints. Its arithmetic is the backend's own. Weight decay belongs to the rule
    instead. Embedding gradients (``tf.IndexedSlices``) become dense.

    Variables are float32, bfloat16 or float16; all state is float32. Variable paths, as in "model/dense/kernel", key
    the masks, without the numbers that Keras counts throughout a process: docs/keras.md.

    Args:
        learning_rate: lr ≥ 0: a float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable.
        rule: the rule that keeps and weights blocks: a `magma_core.Rule` such as ``magma_core.damping()``, or a dict of
            its fields.
        base: "sgd", "rmsprop", "adam", "adamw", "laprop", or a configuration such as ``magma_core.SGD(nesterov=True)``.
        beta_1: decay rate of the first moment, in [0, 1); None for the base's own, also for the next four.
        beta_2: decay rate of the second moment, in [0, 1).
        epsilon: ε ≥ 2⁻¹⁰⁰, added outside the square root.
        momentum: momentum of "sgd"; for "rmsprop", the decay rate of the average that only the score uses.
        nesterov: Nesterov momentum for "sgd".
        weight_decay: coefficient λ ≥ 0 of decoupled decay, inside or outside the update, see `magma_core.Rule.decay`.
        **kwargs: arguments of `keras.optimizers.Optimizer`: ``clipnorm``, ``clipvalue``, ``global_clipnorm``,
            ``use_ema``, ``ema_momentum``, ``ema_overwrite_frequency``, ``loss_scale_factor``,
            ``gradient_accumulation_steps``, ``name``.

    Raises:
        ValueError, TypeError: naming the argument, its value and the remedy; for variables, on first use.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from magma_core import damping
        >>> from magma_keras import MaskedOptimizer
        >>> w = keras.Variable([1.0, 1.0], name="w")
        >>> optimizer = MaskedOptimizer(0.1, damping(), base="sgd")
        >>> optimizer.apply([keras.ops.array([0.5, -0.5])], [w])
        >>> np.asarray(w)
        array([0.9743877, 1.0256124], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any,
        rule: Rule | Mapping[str, Any],
        base: str | Base = "adamw",
        *,
        beta_1: float | None = None,
        beta_2: float | None = None,
        epsilon: float | None = None,
        momentum: float | None = None,
        nesterov: bool | None = None,
        weight_decay: float | None = None,
        lr_scale: float = LR_SCALE,
        seed: int = SEED,
        block_axes: BlockAxes = (),
        mask_names: MaskNames | None = None,
        **kwargs: Any,
    ) -> None:
        given = base_from(
            base,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
        )
        options = Options(given, rule_from(rule), lr_scale, seed, block_axes, mask_names)
        check_rate(learning_rate)
        super().__init__(learning_rate, options, **kwargs)

    @property
    def base(self) -> Base:
        """The base optimizer."""
        return self._options.base

    @property
    def weight_decay(self) -> float:
        """λ, fixed at construction."""
        return self._options.base.weight_decay

    @weight_decay.setter
    def weight_decay(self, weight_decay: float | None) -> None:
        if weight_decay is not None:  # the base class sets None; it applies no decay here
            raise AttributeError(f"weight_decay cannot be set to {weight_decay!r}: give it to the constructor")

    @property
    def learning_rate(self) -> Any:
        """lr for the next step."""
        return self._get_current_learning_rate()  # as in the base class, whose property torch.compile cannot trace

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        check_rate(learning_rate)
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable; `_backend_update_step` does what all share."""
        self._update([gradient], [variable], learning_rate)

    def alignment(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> dict[str, Alignment]:
        """What the next step would observe and decide, given ``grads``; changes nothing.

        Args:
            grads: gradients as they reach the step: unscaled, accumulated, clipped. None for variables without one.
            trainable_variables: as for ``apply``; by default, those that the optimizer was built with.

        Returns:
            An `Alignment` for each masked variable, by the name that keys its masks; holds backend tensors.

        Raises:
            ValueError: unless there is one entry per variable, or if a variable is unknown.
        """
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        else:
            trainable_variables = listed("trainable_variables", trainable_variables)
            self.build(trainable_variables)
        if not self.built or len(grads) != len(trainable_variables):
            raise ValueError(
                f"grads must have one entry for each variable, got {len(grads)} for {len(trainable_variables)}: "
                "build the optimizer before, or give trainable_variables"
            )
        self._check_variables_are_known(trainable_variables)
        pairs = [
            (grad, variable)
            for grad, variable in zip(grads, trainable_variables, strict=True)
            if grad is not None and not self._overwrite_variable_with_gradient(variable)
        ]
        variables = [variable for _, variable in pairs]
        _, states, reports = self._step([grad for grad, _ in pairs], variables, self.learning_rate)
        return {
            plan.name: Alignment(report.cosine, state.score, report.keep, report.sums)
            for plan, state, report in zip(self._plans(variables), states, reports, strict=True)
            if plan.masked
        }

    def get_config(self) -> dict[str, Any]:
        """See `Masking.get_config`."""
        return super().get_config() | base_config(self.base)

    def _fields(self, plans: Sequence[Plan]) -> list[tuple[str, ...]]:
        return [state_fields(plan.base, plan.rule) for plan in plans]

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """One step: over all variables at once, unless they are replicated."""
        if backend.replicas() > 1:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        else:
            self._update(grads, trainable_variables, learning_rate)
        # not from the states: replicated variables keep those on other devices
        powers = {field: backend.entering(backend.array(x)) for field, x in self._memory.powers.items()}
        with backend.xp.scope():
            advanced, _ = advance_powers(State(**powers), self._memory.plans[0].numbers, xp=backend.xp)
        for field, variable in self._memory.powers.items():
            self.assign(variable, getattr(advanced, field))

    def _update(self, grads: Sequence[Any], variables: Sequence[Any], learning_rate: Any) -> None:
        params, states, _ = self._step(grads, variables, learning_rate)
        for variable, param, state in zip(variables, params, states, strict=True):
            self._put(variable, param, state)

    def _step(
        self, grads: Sequence[Any], variables: Sequence[Any], learning_rate: Any
    ) -> tuple[list[Array], list[State], list[Report]]:
        """New parameters, states and reports, as backend arrays."""
        return backend.update_planned(
            self._plans(variables),
            [backend.entering(backend.array(variable)) for variable in variables],
            [
                backend.entering(backend.gradient(grad, variable))
                for grad, variable in zip(grads, variables, strict=True)
            ],
            self._memory.states([self._get_variable_index(variable) for variable in variables]),
            step=backend.array(self.iterations) + 1,
            lr=backend.entering(keras.ops.cast(keras.ops.convert_to_tensor(learning_rate), "float32")),
            lr_scale=self._options.lr_scale,
        )
