"""Names of variables, and options selected by name."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from magma_core import Axes
from magma_keras.automatic import stable_names, without_numbers

BlockAxes: TypeAlias = Axes | Mapping[str, Axes | None]
MaskNames: TypeAlias = Mapping[str, str] | Callable[[str], str]


class Choice(NamedTuple):
    """The choices for one variable, made when an optimizer is built and saved with it."""

    path: str
    mask_name: str
    axes: Axes | None
    decays: bool

    def config(self) -> list[Any]:
        """The fields as JSON values."""
        return [self.path, self.mask_name, None if self.axes is None else list(self.axes), self.decays]


def exactly(path: str, /) -> str:
    """A regular expression for one path, with or without the model's name, which loading may drop."""
    first, _, rest = path.partition("/")
    return f"^(?:{re.escape(first)}/)?{re.escape(rest)}$" if "/" in rest else f"^{re.escape(path)}$"


def path(variable: Any, /) -> str:
    """The path of a Keras variable, as in "model/dense/kernel"; the name of a ``tf.Variable``, without its ":0"."""
    return getattr(variable, "path", None) or variable.name.partition(":")[0]


def mask_names(paths: Sequence[str], names: MaskNames | None, /) -> list[str]:
    """The names that key the masks of the variables at ``paths``: those that the user chose, or `stable_names`."""
    if callable(names):
        return [names(path) for path in paths]
    chosen = names or {}
    return [chosen.get(path, stable) for path, stable in zip(paths, stable_names(paths), strict=True)]


def same_variables(paths: Sequence[str], others: Sequence[str], /) -> list[bool]:
    """Whether the variables at two paths may be the same: loading drops names of models, and counts layers on."""
    pairs = zip(without_numbers(paths), without_numbers(others), strict=True)
    return [f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}") for one, other in pairs]


def axes(path: str, block_axes: BlockAxes, /) -> Axes | None:
    """The axes that index the blocks of the variable at ``path``; None if it is not masked.

    Args:
        path: the variable's path.
        block_axes: axes for all variables, or a mapping from regular expressions to axes. The first key found in the
            path counts. A variable without a match is one block.
    """
    if not isinstance(block_axes, Mapping):
        return block_axes
    return next((value for pattern, value in block_axes.items() if re.search(pattern, path)), ())


def check_block_axes(block_axes: Any, /) -> None:
    """Raise unless ``block_axes`` is a sequence of integers, or a mapping of regular expressions to these or None."""
    values = block_axes.values() if isinstance(block_axes, Mapping) else (block_axes,)
    for value in values:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        if not listed and not (value is None and isinstance(block_axes, Mapping)):
            raise TypeError(
                "block_axes must be a sequence of integers such as () or (0,), or map parts of paths of variables to "
                f"such sequences, or to None for variables that are not masked; got {block_axes!r}"
            )
    if isinstance(block_axes, Mapping):
        for pattern in block_axes:
            check_pattern("block_axes", pattern)


def check_pattern(argument: str, pattern: Any, /) -> None:
    """Raise unless ``pattern`` is a regular expression."""
    if not isinstance(pattern, str):
        raise TypeError(f"{argument} must have strings to look for in variables' paths, got {pattern!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument} has {pattern!r}, which is no regular expression: {error}") from None
