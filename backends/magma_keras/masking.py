"""The common base of masking optimizers: selection of masked variables, and their state."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from magma_core import Plan, Rule, State
from magma_core.arguments import short
from magma_keras.checks import check_dtypes, listed, selected
from magma_keras.loading import assign_all, choices_from
from magma_keras.memory import make_memory
from magma_keras.names import Choice, exactly, nearest, path
from magma_keras.options import Options, mask_names_from


class Masking(keras.optimizers.Optimizer):
    """A Keras optimizer with a rule, and the state for it."""

    def __init__(self, learning_rate: Any, options: Options, **kwargs: Any) -> None:
        if "decay" in kwargs:  # Keras would only warn
            raise ValueError(f"decay={kwargs['decay']!r} is part of the rule here: give rule=Rule(decay=...)")
        super().__init__(learning_rate, **kwargs)
        self._options = options
        self._no_decay: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        """The rule that keeps and weights blocks."""
        return self._options.rule

    @property
    def scores(self) -> dict[str, Any]:
        """The score variables, in block shape, by the names that key the masks; empty before `build`."""
        if not self.built:
            return {}
        pairs = zip(self._memory.plans, self._memory.own, strict=True)
        return {plan.name: own["score"] for plan, own in pairs if "score" in own}

    def exclude_from_masking(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Leave variables to the base alone, in the style of ``exclude_from_weight_decay``.

        Unlike there, names are searched in the whole path, calls accumulate, and exclusions are saved with the
        optimizer.

        Args:
            var_list: variables to exclude.
            var_names: regular expressions to search for in variable paths.

        Raises:
            ValueError: if the optimizer is already built, or a name is not a regular expression.
            TypeError: if ``var_names`` is a single string, or ``var_list`` has something else than variables.

        Example:
            >>> from magma_keras import Magma
            >>> optimizer = Magma()
            >>> optimizer.exclude_from_masking(var_names=["bias", "embeddings"])
        """
        if self.built:
            raise ValueError("exclude_from_masking must be called before the optimizer is built")
        patterns = [exactly(path(variable)) for variable in selected(var_list, var_names)] + list(var_names or ())
        block_axes = self._options.block_axes
        others = block_axes if isinstance(block_axes, Mapping) else {"": block_axes}
        others = {pattern: value for pattern, value in others.items() if pattern not in patterns}
        restored = tuple(
            choice._replace(axes=None) if any(re.search(pattern, choice.path) for pattern in patterns) else choice
            for choice in self._options.restored
        )
        self._options = replace(self._options, block_axes={**dict.fromkeys(patterns), **others}, restored=restored)

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """As in the base class; exclusions are saved with a built optimizer.

        Raises:
            ValueError: if the optimizer is already built with other exclusions, or a name is not a regular expression.
            TypeError: if ``var_names`` is a single string, or ``var_list`` has something else than variables.
        """
        super().exclude_from_weight_decay(selected(var_list, var_names), var_names)
        self._no_decay = tuple(var_names or ())
        if self.built:
            pairs = zip(self._trainable_variables, self._memory.choices, strict=True)
            if any(self._use_weight_decay(variable) != choice.decays for variable, choice in pairs):
                raise ValueError("exclude_from_weight_decay must be called before the optimizer is built")

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """As in the base class, which takes lists of different lengths.

        Raises:
            ValueError, TypeError: see `build`, and for gradients that do not suit the variables.
        """
        if trainable_variables is not None:
            grads = list(grads)
            trainable_variables = listed("trainable_variables", trainable_variables)
            if len(grads) != len(trainable_variables):
                raise ValueError(
                    f"there must be a gradient for each variable, None for those that have none: got {len(grads)} "
                    f"gradients for {len(trainable_variables)} variables"
                )
        super().apply(grads, trainable_variables)

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state; the first ``apply`` calls this.

        Raises:
            ValueError, TypeError: for invalid variables, names or blocks; nothing is created then.
        """
        if self.built:
            return
        variables = listed("variables", variables)
        choices, plans = self._settle(variables)
        for message in self._unmatched(variables):
            warnings.warn(message, stacklevel=2)
        super().build(variables)
        trained = [None if self._overwrite_variable_with_gradient(variable) else variable for variable in variables]
        self._memory = make_memory(plans, choices, self._fields(plans), trained, self.add_variable)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign these values to all ``variables``.

        Raises:
            ValueError, TypeError: naming the variable that a value does not match; nothing has changed then.
        """
        if not self.built:
            super().set_weights(weights)  # raises: there are no variables yet
        fractions = [*self.scores.values(), *self._memory.powers.values()]
        assign_all(self.variables, list(weights), fractions)

    def load_own_variables(self, store: Any) -> None:
        """As in the base class, which only warns about missing or surplus variables.

        Raises:
            ValueError, TypeError: naming the variable that a value does not match; nothing has changed then.
        """
        names = [str(i) for i in range(len(self.variables))]
        if not self.built or len(store.keys()) != len(names):
            super().load_own_variables(store)
        elif missing := [name for name in names if name not in store]:
            raise ValueError(f"there is no variable {missing[0]!r} in what is loaded, only {short(sorted(store))}")
        else:
            self.set_weights([store[name] for name in names])

    def get_config(self) -> dict[str, Any]:
        """The optimizer as JSON values for `from_config`: its arguments, and the choices of `build`.

        To choose names, axes and exclusions anew, remove ``"variables"``.
        """
        config = super().get_config()
        del config["weight_decay"]
        choices = self._memory.choices if self.built else self._options.restored
        if choices:
            config["variables"] = [choice.config() for choice in choices]
        return config | self._options.config()

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> "Masking":
        """Create the optimizer that `get_config` describes."""
        config = {**config, "mask_names": mask_names_from(config.get("mask_names"), custom_objects)}
        restored = choices_from(config.pop("variables", ()))
        optimizer = super().from_config(config, custom_objects)
        optimizer._options = replace(optimizer._options, restored=restored)
        return optimizer

    def _settle(self, variables: Sequence[Any]) -> tuple[list[Choice], list[Plan]]:
        """The validated plan of each variable; changes nothing."""
        check_dtypes(variables)
        choices = self._options.choose(variables, [self._use_weight_decay(variable) for variable in variables])
        return choices, self._options.plan(variables, choices)

    def _unmatched(self, variables: Sequence[Any]) -> Iterator[str]:
        """What was selected by a name that no variable has."""
        if not variables:
            return
        yield from self._options.unmatched(variables)
        names = [variable.name for variable in variables]
        for wanted in self._no_decay:
            if not any(re.search(wanted, name) for name in names):
                yield (
                    f"{wanted!r} of exclude_from_weight_decay is in no variable's name, where Keras looks for it; the "
                    f"nearest is {nearest(wanted, names)!r}"
                )

    def _fields(self, plans: Sequence[Plan]) -> list[tuple[str, ...]]:
        """The stored moments of each variable, by their names in `magma_core.State`."""
        raise NotImplementedError

    def _plans(self, variables: Sequence[Any]) -> list[Plan]:
        return [self._memory.plans[self._get_variable_index(variable)] for variable in variables]

    def _put(self, variable: Any, value: Any, state: State) -> None:
        """Assign new values to a variable and its state."""
        self.assign(variable, value)
        for field, own in self._memory.own[self._get_variable_index(variable)].items():
            self.assign(own, getattr(state, field))

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Do nothing: decay belongs to the rule, or to the wrapped optimizer."""
