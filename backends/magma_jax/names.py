"""Names of leaves, which key their masks: the path in the tree, or the caller's function of it."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from optax import MaskedNode


class LeafPath(str):
    """A leaf's path, joined by dots.

    Attributes:
        parts: its keys one by one, as strings. They tell {"a.b": {"c": x}} from {"a": {"b.c": x}}, both "a.b.c".
    """

    parts: tuple[str, ...]

    def __new__(cls, parts: tuple[str, ...], /) -> "LeafPath":
        path = super().__new__(cls, ".".join(parts))
        path.parts = parts
        return path


Name: TypeAlias = Callable[[LeafPath], str]

_BOX = (jax.tree_util.GetAttrKey("value"),)
"""The only child of flax's variables; nnx passes variables sometimes with this box, sometimes without."""


def leaf_names(tree: Any, name: Name | None, /) -> list[str]:
    """The name of each leaf, ``None`` included: its path joined by dots, through ``name`` if there is one.

    Example:
        >>> leaf_names({"layers": [{"w": 1.0}, {"w": 2.0}]}, None)
        ['layers.0.w', 'layers.1.w']
        >>> leaf_names({"params": {"dense": {"kernel": 1.0}}}, lambda path: path.removeprefix("params."))
        ['dense.kernel']
        >>> leaf_names({"a.b": {"c": 1.0}, "a": {"b.c": 2.0}}, lambda path: "/".join(path.parts))
        ['a/b.c', 'a.b/c']
    """
    every = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None or isinstance(x, MaskedNode))[0]
    children = Counter(path[:-1] for path, _ in every)  # with those that optax hides: names must not depend on it
    paths = [path for path, leaf in every if not isinstance(leaf, MaskedNode)]
    paths = [path[:-1] if path[-1:] == _BOX and children[path[:-1]] == 1 else path for path in paths]
    if name is None:
        return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    return [name(LeafPath(tuple(jax.tree_util.keystr((key,), simple=True) for key in path))) for path in paths]


def is_none(x: Any, /) -> bool:
    """Whether ``x`` is None: a leaf here, but an empty tree to JAX."""
    return x is None
