"""Save and load an optimizer's state in the file format of all frameworks: docs/state.md."""

from dataclasses import fields, replace
from typing import Any, Unpack

import numpy as np

from magma_core import Base, Saved, State, write_state
from magma_core.signatures import shares_arguments
from magma_core.state_file import FilePath, LoadOptions, SaveOptions, from_file, shared_history, to_file
from magma_keras.backend import to_numpy
from magma_keras.memory import POWERS
from magma_keras.names import Choice
from magma_keras.optimizer import MaskedOptimizer


@shares_arguments(to_file)
def save_state(optimizer: MaskedOptimizer, path: FilePath, **mapping: Unpack[SaveOptions]) -> None:
    """Write the state of an optimizer to a file that every framework can load.

    The file holds the step count, moments, running products and scores, with base, rule, seed and block axes. It holds
    no variables, no learning rate and no state of Keras's base class, such as moving averages. A variable excluded from
    weight decay is saved with weight decay 0.

    Args:
        optimizer: a built `Magma`, `SkipUpdate` or `MaskedOptimizer`, or a ``LossScaleOptimizer`` around one, whose
            scale is not saved.
        path: the file, which is replaced atomically.

    Raises:
        TypeError: if ``optimizer`` is of another kind, such as a `Wrapped`.
        ValueError: if it is not built, or holds gradients of an incomplete step; or naming the fault of a variable, of
            ``names`` or of ``axes``.
        OSError: if the file cannot be written. After any error, the former file at ``path`` is still there.

    Example:
        >>> import tempfile
        >>> import keras
        >>> from magma_core import read_state
        >>> from magma_keras import Magma, load_state, save_state
        >>> w = keras.Variable([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], name="w")
        >>> optimizer = Magma()
        >>> optimizer.apply([keras.ops.ones((2, 3))], [w])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(optimizer, f"{folder}/state.safetensors", axes={"w": (1, 0)})
        ...     found = read_state(f"{folder}/state.safetensors")
        ...     load_state(optimizer, f"{folder}/state.safetensors", axes={"w": (1, 0)})
        >>> found["w"].step, found["w"].shape
        (1, (3, 2))
    """
    optimizer = _masked(optimizer)
    own = _variables(optimizer)
    every = optimizer.gradient_accumulation_steps or 1
    calls = int(to_numpy(optimizer._iterations))
    if calls % every:
        raise ValueError(
            f"{calls % every} of the {every} gradients of a step have been accumulated, which the file has no place "
            "for: save after a whole step"
        )
    saved = {
        name: replace(
            wanted, step=calls // every, state=State(**{field: to_numpy(kept[field]) for field in wanted.fields})
        )
        for name, (wanted, kept) in own.items()
    }
    write_state(path, to_file(saved, **mapping))


@shares_arguments(from_file, save_state)
def load_state(optimizer: MaskedOptimizer, path: FilePath, **mapping: Unpack[LoadOptions]) -> None:
    """Load an optimizer's state from a file of any framework, bit for bit.

    Accumulated gradients are dropped; moving averages stay unchanged.

    Args:
        optimizer: see `save_state`; its current state is replaced.

    Raises:
        ValueError: naming the file or the variable, the mismatch, and the remedy; also if variables have taken
            different numbers of steps, as PyTorch allows: here they share one count. The optimizer is unchanged then.
        TypeError: see `save_state`.
        OSError: if the file cannot be opened, e.g. a `FileNotFoundError`.

    Example:
        See `save_state`.
    """
    optimizer = _masked(optimizer)
    own = _variables(optimizer)
    wanted = {name: one for name, (one, _) in own.items()}
    matching = dict(from_file(path, wanted, **mapping))
    every = optimizer.gradient_accumulation_steps or 1
    calls = optimizer._iterations
    history = shared_history(path, matching, most=np.iinfo(to_numpy(calls).dtype).max // every)
    for name, saved in matching.items():
        for field in saved.fields:
            if field not in POWERS:
                own[name][1][field].assign(getattr(saved.state, field))
    for field, power in history.powers.items():
        optimizer._memory.powers[field].assign(power)
    calls.assign(history.step * every)
    if every > 1:
        optimizer._backend_reset_gradient_accumulators()


def _masked(optimizer: Any) -> MaskedOptimizer:
    """The built optimizer, which may be inside a ``LossScaleOptimizer``."""
    own = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(own, MaskedOptimizer):
        raise TypeError(
            f"optimizer must be a Magma, SkipUpdate or MaskedOptimizer, got {type(own).__name__}: the state of another "
            "optimizer, wrapped or not, is its own"
        )
    if not own.built:
        raise ValueError("the optimizer must be built before: call optimizer.build(model.trainable_variables)")
    return own


def _variables(optimizer: MaskedOptimizer) -> dict[str, tuple[Saved, dict[str, Any]]]:
    """The optimizer's options and state variables, by the names that key the masks."""
    memory = optimizer._memory
    found = {}
    for plan, choice, kept in zip(memory.plans, memory.choices, memory.own, strict=True):
        if kept:  # variables overwritten with their gradients have no state
            axes = plan.blocks.axes if plan.masked else None
            base = _base(optimizer.base, choice)
            wanted = Saved(plan.blocks.shape, axes, 0, optimizer._options.seed, base, optimizer.rule, State())
            found[plan.name] = wanted, kept | memory.powers
    return found


def _base(base: Base, choice: Choice) -> Base:
    """The base of one variable."""
    without: dict[str, Any] = {field.name: 0.0 for field in fields(base) if field.name == "weight_decay"}
    return base if choice.decays else replace(base, **without)
