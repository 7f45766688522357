"""Save and load a transformation's state in the file format of all frameworks: docs/state.md."""

from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from magma_core import Plan, Saved, State, write_state
from magma_core.signatures import shares_arguments
from magma_core.state import POWERS
from magma_core.state_file import (
    FilePath,
    History,
    LoadOptions,
    SaveOptions,
    from_file,
    shared_history,
    to_file,
    together,
)
from magma_jax.optimizer import Leaves, MagmaState, MagmaTransformation, initial_state
from magma_jax.options import Options

_TREES = ("mu", "nu", "score")


@shares_arguments(to_file)
def save_state(
    optimizer: MagmaTransformation,
    params: Any,
    state: MagmaState,
    path: FilePath,
    **mapping: Unpack[SaveOptions],
) -> None:
    """Write the state of a transformation to a file that every framework can load.

    The file holds the step count, moments, running products and scores, with base, rule, seed and block axes, but no
    parameters and no learning rate. Array-valued hyper-parameters are saved as numbers.

    If arrays are spread over several processes, each of them must call this; the first writes.

    Args:
        optimizer: made by `magma`, `skip_update`, `by_rule`, `scale_by_magma` or `scale_by_skip_update`; for a chain,
            that member of it.
        params: the tree of parameters; only shapes and paths are read.
        state: its state; for a chain, that member's part.
        path: the file, which is replaced atomically.

    Raises:
        TypeError: if ``optimizer`` or ``state`` is of another kind, such as those of `wrap`; or under tracing.
        ValueError: naming the fault of a leaf, of ``names`` or of ``axes``.
        OSError: if the file cannot be written. After any error, the former file at ``path`` is still there.
        RuntimeError: if another process could not write the file.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from magma_core import read_state
        >>> from magma_jax import load_state, magma, save_state
        >>> params = {"dense": {"kernel": jnp.ones((3, 2))}}
        >>> optimizer = magma(0.1)
        >>> params, state = optimizer.step(params, params, optimizer.init(params))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(optimizer, params, state, f"{folder}/state.safetensors", axes={"dense.kernel": (1, 0)})
        ...     found = read_state(f"{folder}/state.safetensors")
        ...     again = load_state(optimizer, params, f"{folder}/state.safetensors", axes={"dense.kernel": (1, 0)})
        >>> found["dense.kernel"].shape, int(again.count)
        ((2, 3), 1)
    """
    options = _concrete(optimizer)
    if not isinstance(state, MagmaState):
        raise TypeError(
            f"state must be the MagmaState that init or a step made, got {type(state).__name__}: of a chain, give the "
            "member that is one; what wrap() makes is in part the state of another optimizer"
        )
    _check_concrete(params, state)
    leaves = Leaves(options, params, None)
    count, powers = int(state.count), {field: getattr(state, field) for field in POWERS}
    kept = {field: leaves.pick(getattr(state, field), f"state.{field}") for field in _TREES}
    own = {}
    for i, plan in enumerate(leaves.plans):
        arrays = powers | {field: entries[i] for field, entries in kept.items()}
        wanted = _wanted(options, plan)
        own[plan.name] = replace(
            wanted,
            step=count,
            state=State(**{field: None if arrays[field] is None else _host(arrays[field]) for field in State._fields}),
        )
    shared = any(map(_is_shared, jax.tree.leaves((params, state))))

    def write() -> None:
        if not shared or jax.process_index() == 0:
            write_state(path, to_file(own, **mapping))

    together(write, partial(_any_failed, shared))


@shares_arguments(from_file, save_state)
def load_state(
    optimizer: MagmaTransformation,
    params: Any,
    path: FilePath,
    **mapping: Unpack[LoadOptions],
) -> MagmaState:
    """The state in a file from any framework, bit for bit.

    If parameters are spread over several processes, each of them must call this and reads the file.

    Args:
        optimizer: see `save_state`.
        params: the tree of parameters; arrays are placed where ``optimizer.init(params)`` would place them.

    Returns:
        The result of ``optimizer.init(params)``, with other values.

    Raises:
        ValueError: naming the file or the leaf, the mismatch, and the remedy; also if leaves have taken different
            numbers of steps, as PyTorch allows: here they share one count.
        TypeError: see `save_state`.
        OSError: if the file cannot be opened, e.g. a `FileNotFoundError`.
        RuntimeError: if another process could not load it.

    Example:
        See `save_state`.
    """
    options = _concrete(optimizer)
    _check_concrete(params)
    leaves = Leaves(options, params, None)
    expected = {plan.name: _wanted(options, plan) for plan in leaves.plans}

    def read() -> tuple[dict[str, Saved], History]:
        matching = dict(from_file(path, expected, **mapping))
        return matching, shared_history(path, matching, most=2**31 - 1)

    matching, history = together(read, partial(_any_failed, any(map(_is_shared, jax.tree.leaves(params)))))
    start = initial_state(options, params)
    states = [matching[plan.name].state for plan in leaves.plans]
    trees = {}
    for field in _TREES:
        own = zip(leaves.pick(getattr(start, field)), states, strict=True)
        placed = [place if place is None else _placed(getattr(one, field), place) for place, one in own]
        trees[field] = leaves.put(getattr(start, field), placed)
    powers = {field: _placed(power, getattr(start, field)) for field, power in history.powers.items()}
    return start._replace(count=_placed(np.int32(history.step), start.count), **powers, **trees)


def _concrete(optimizer: Any) -> Options:
    """The options with numbers for arrays; blocks are always those of whole leaves."""
    if not isinstance(optimizer, MagmaTransformation):
        raise TypeError(
            f"optimizer must be a transformation that magma(), skip_update(), by_rule() or scale_by_…() made, got "
            f"{type(optimizer).__name__}: of a chain, give the member that is one and its own state, and of "
            "inject_hyperparams one made with state.hyperparams and state.inner_state; the state of what wrap() makes "
            "is in part that of another optimizer"
        )
    options = optimizer.options
    _check_concrete(options.base_arrays, options.rule_arrays, options.seed)
    of_base: dict[str, Any] = {field: float(x) for field, x in options.base_arrays.items()}
    of_rule: dict[str, Any] = {field: float(x) for field, x in options.rule_arrays.items()}
    return replace(
        options,
        base=replace(options.base, **of_base),
        rule=replace(options.rule, **of_rule),
        base_arrays={},
        rule_arrays={},
        seed=int(options.seed),
        specs=None,
    )


def _check_concrete(*trees: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees)):
        raise TypeError(
            "state is saved and loaded outside of jit, vmap and shard_map, where arrays have values: got a tracer"
        )


def _wanted(options: Options, plan: Plan) -> Saved:
    axes = plan.blocks.axes if plan.masked else None
    return Saved(plan.blocks.shape, axes, 0, int(options.seed), plan.base, options.rule, State())


def _host(array: Any) -> np.ndarray:
    """A copy on the host, gathered from all processes that hold parts."""
    if _is_shared(array) and not array.is_fully_replicated:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _is_shared(leaf: Any) -> bool:
    """Whether other processes hold parts or copies of an array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _any_failed(shared: bool, failed: bool) -> bool:
    """Whether any process that shares arrays has failed."""
    return bool(multihost_utils.process_allgather(np.int32(failed)).any()) if shared else failed


def _placed(value: Any, like: jax.Array) -> jax.Array:
    """``value``, sharded like ``like``."""
    if not like.committed:
        return jnp.asarray(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: np.asarray(value, like.dtype)[index])
