"""Names of leaves, which key their masks: the path in the tree, or the caller's function of it."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from optax import MaskedNode

Name: TypeAlias = Callable[[str], str]

_BOX = (jax.tree_util.GetAttrKey("value"),)
"""The only child of flax's variables; nnx passes variables sometimes with this box, sometimes without."""


def leaf_names(tree: Any, name: Name | None, /) -> list[str]:
    """The name of each leaf, ``None`` included: its path joined by dots, through ``name`` if there is one.

    Example:
        >>> leaf_names({"layers": [{"w": 1.0}, {"w": 2.0}]}, None)
        ['layers.0.w', 'layers.1.w']
        >>> leaf_names({"params": {"dense": {"kernel": 1.0}}}, lambda path: path.removeprefix("params."))
        ['dense.kernel']
    """
    every = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None or isinstance(x, MaskedNode))[0]
    children = Counter(path[:-1] for path, _ in every)  # with those that optax hides: names must not depend on it
    paths = [path for path, leaf in every if not isinstance(leaf, MaskedNode)]
    paths = [path[:-1] if path[-1:] == _BOX and children[path[:-1]] == 1 else path for path in paths]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    return names if name is None else [name(each) for each in names]


def is_none(x: Any, /) -> bool:
    """Whether ``x`` is None: a leaf here, but an empty tree to JAX."""
    return x is None
