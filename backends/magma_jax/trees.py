"""Trees that go together: which leaves take part, entries of one at the leaves of another, errors that name a leaf."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from magma_core.arguments import short
from magma_jax.names import is_none


def entries(tree: Any, like: Any, /, *, label: str, of: str) -> list[Any]:
    """The entry of ``tree`` at each leaf of ``like``, where None is a leaf.

    Raises:
        ValueError: if ``tree`` lacks a leaf of ``like``, or has another; ``label`` and ``of`` call the two.

    Example:
        >>> entries({"a": 1, "b": {"c": 2}}, {"a": 0, "b": None}, label="params", of="the gradients")
        [1, {'c': 2}]
        >>> entries({"a": 1}, {"a": 0, "b": 0}, label="params", of="the gradients")
        Traceback (most recent call last):
        ...
        ValueError: params must have the structure of the gradients, but lacks 'b'
    """
    try:
        return jax.tree.structure(like, is_leaf=is_none).flatten_up_to(tree)
    except ValueError:  # its message prints whole arrays
        raise ValueError(f"{label} must have the structure of {of}, but {difference(tree, like)}") from None


def difference(tree: Any, like: Any, /) -> str:
    """What tells ``tree`` from ``like``: a leaf that one of them lacks, or else the kinds of their containers."""
    own, others = ({path for path, _ in jax.tree.leaves_with_path(x, is_leaf=is_none)} for x in (tree, like))
    for verb, paths, besides in (("lacks", others, own), ("also has", own, others)):
        if missing := sorted(jax.tree_util.keystr(path, simple=True, separator=".") for path in _alone(paths, besides)):
            return f"{verb} {short(missing[0])}"
    one, other = (short(str(jax.tree.structure(x, is_leaf=is_none))) for x in (tree, like))
    return f"is {one} where that is {other}"


def _alone(paths: set[Any], besides: set[Any]) -> Iterator[Any]:
    """The paths that lead neither to, nor through, nor short of any of ``besides``."""
    known = {path[:length] for path in besides for length in range(len(path) + 1)}
    for path in paths:
        if path not in known and not any(path[:length] in besides for length in range(len(path))):
            yield path


def float_places(leaves: Sequence[Any], grads: Sequence[Any], names: Sequence[str], /) -> list[int]:
    """The places of leaves that take part: not those of integers, None, functions, strings and other objects."""
    places = []
    for place, (leaf, grad) in enumerate(zip(leaves, grads, strict=True)):
        if takes_arithmetic(leaf) and takes_arithmetic(grad):
            try:
                is_float = jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else type(leaf), jnp.inexact)
            except TypeError:
                given = f"{type(leaf).__name__} of {leaf.dtype}"
                raise TypeError(
                    f"parameter {names[place]!r} must be an array of JAX or NumPy, got {given}: convert it"
                ) from None
            places += [place] if is_float else []
    return places


def takes_arithmetic(x: Any, /) -> bool:
    """Whether ``x`` is an array or a number: functions, strings, types and None are not."""
    return isinstance(x, int | float | complex) or (hasattr(x, "dtype") and not isinstance(x, type))
