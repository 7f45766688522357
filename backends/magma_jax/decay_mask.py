"""Which leaves decay: ``weight_decay_mask``, as optax's lars and muon call it, and its adamw ``mask``."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from magma_core.arguments import short
from magma_jax.names import is_none
from magma_jax.trees import difference

DecayMask: TypeAlias = Callable[[Any], Any] | Any
"""A tree of bools like the parameters, or like a prefix of them; or a function of the parameters that makes one."""


def check_decay_mask(mask: DecayMask | None, /) -> None:
    """Raise for a single bool: what `optax.inject_hyperparams` makes of a function that it takes for a schedule."""
    if isinstance(mask, bool | np.bool_ | np.ndarray | jax.Array):
        raise TypeError(
            "weight_decay_mask must be a tree of bools like the parameters, or a function that makes one, got "
            f"{short(mask)}: None lets every leaf decay, weight_decay=0 none; optax.inject_hyperparams takes functions "
            'for schedules unless static_args has "weight_decay_mask"'
        )


def decaying(mask: DecayMask | None, params: Any, /) -> Any:
    """Whether each leaf decays: a tree like the parameters; None without a mask.

    Example:
        >>> decaying(lambda params: jax.tree.map(lambda x: x.ndim > 1, params), {"w": np.ones((2, 2)), "b": np.ones(2)})
        {'b': False, 'w': True}
        >>> decaying({"head": False, "body": True}, {"head": {"w": 1.0, "b": 1.0}, "body": 1.0})
        {'body': True, 'head': {'b': False, 'w': False}}
    """
    if mask is None:
        return None
    chosen = mask(params) if callable(mask) and jax.tree_util.all_leaves([mask]) else mask
    try:
        return jax.tree_util.tree_map_with_path(_spread, chosen, params, is_leaf=is_none)
    except ValueError:  # its message prints whole arrays
        raise ValueError(
            "weight_decay_mask must have the structure of the parameters or of a prefix of them, but "
            f"{difference(chosen, params)}"
        ) from None


def _spread(path: Any, flag: Any, part: Any) -> Any:
    """``flag`` for every leaf of a part of the parameters."""
    if not isinstance(flag, bool | np.bool_) and jax.tree.leaves(part):
        where = jax.tree_util.keystr(path, simple=True, separator=".")
        raise TypeError(
            f"weight_decay_mask must be True or False for {short(where)}, got {short(flag)}: decide by names and "
            "shapes, which are known under jit"
        )
    return jax.tree.map(lambda _: bool(flag), part, is_leaf=is_none)
