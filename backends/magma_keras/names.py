"""Names of variables, and options selected by name."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """The names that key the masks of the variables at ``paths``: those that the user chose, or `stable_names`.

    Raises:
        TypeError, ValueError: if a name is not a string, or is there twice.
    """
    chosen = {path: names(path) for path in paths} if callable(names) else names or {}
    found = [chosen.get(path, stable) for path, stable in zip(paths, stable_names(paths), strict=True)]
    for path, name in zip(paths, found, strict=True):
        if not isinstance(name, str):
            raise TypeError(f"mask_names must give strings, got {name!r} for {path!r}")
        if found.count(name) > 1:
            raise ValueError(
                f"two variables are called {name!r}: names key the masks, so name the layers, or give mask_names="
            )
    return found


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


def unmatched(
    paths: Sequence[str], former: Sequence[str], block_axes: BlockAxes, names: MaskNames | None, /
) -> Iterator[str]:
    """Say of each pattern and name that it selects nothing, and which path is the nearest.

    Args:
        paths: the variables' paths.
        former: the paths that they had before; what selected one of these is not told.
        block_axes: see `axes`.
        names: see `mask_names`.
    """
    patterns = block_axes if isinstance(block_axes, Mapping) else {}
    rest = patterns.get("", ())
    fate = (
        "are left to the base" if rest is None else f"have block axes {tuple(rest)}" if rest else "are one block each"
    )
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in (*paths, *former)):
            yield (
                f"{pattern!r} of block_axes or exclude_from_masking is in no variable's path; the nearest is "
                f"{nearest(pattern, paths)!r}. Variables that no pattern matches {fate}"
            )
    for name in names if isinstance(names, Mapping) else ():
        if name not in paths and name not in former:
            yield f"{name!r} of mask_names is no variable's path; the nearest is {nearest(name, paths)!r}"


def nearest(wanted: str, paths: Sequence[str], /) -> str:
    """The path that is most like ``wanted``, or has a part that is."""
    return max(paths, key=lambda path: max(_likeness(wanted, part) for part in (path, *path.split("/"))))


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


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
