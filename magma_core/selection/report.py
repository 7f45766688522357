"""What a selection tells its caller: a table of what is masked, a warning of what is unclear, an error without any."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping

from magma_core.selection.place import Tensor
from magma_core.selection.select import select

_KINDS = {"matrices, one block each": (), "stacks, one block for each matrix": (0,), "not masked": None}
_NUMBER = re.compile(r"(?<![^./])\d+(?![^./])|(?<=layer_)\d+|(?<=block_)\d+")  # of an item: fc1 and fc2 stay apart


def chosen(tensors: Mapping[str, Tensor], /, *, quiet: bool, stacklevel: int) -> dict[str, tuple[int, ...] | None]:
    """The axes that index the blocks of each tensor, None for those that are not masked; prints them unless ``quiet``.

    Args:
        tensors: all parameters that are trained, by name.
        quiet: print nothing. Warnings are given all the same.
        stacklevel: the level of the caller to whom a warning points, from here.

    Raises:
        ValueError: if none is an attention or MLP matrix.
    """
    choices = dict(zip(tensors, select(list(tensors.values())), strict=True))
    axes = {name: choice.axes for name, choice in choices.items()}
    if all(each is None for each in axes.values()):
        raise ValueError(
            f"no attention or MLP matrix was recognised among {len(tensors)} parameters such as "
            f"{next(iter(tensors), 'none')!r}: choose the masked parameters by hand"
        )
    if unclear := _patterns(name for name, choice in choices.items() if choice.unclear):
        warnings.warn(
            "layers are masked in part. These may be attention or MLP matrices, but no rule recognises them, so they "
            f"are not masked: {', '.join(unclear)}. To mask them, choose the masked parameters by hand",
            stacklevel=stacklevel + 1,
        )
    if not quiet:
        for line in _table(tensors, axes):
            print(line)
    return axes


def _table(tensors: Mapping[str, Tensor], axes: Mapping[str, tuple[int, ...] | None]) -> Iterable[str]:
    """Whole names, each on its own line; items of a list as one."""
    for kind, like in _KINDS.items():
        names = [name for name, own in axes.items() if (own is None) == (like is None) and bool(own) == bool(like)]
        if names:
            yield f"{kind}: {len(names)} tensors, {sum(math.prod(tensors[name].shape) for name in names):,} elements"
            yield from (f"  {pattern}" for pattern in _patterns(names))


def _patterns(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(_NUMBER.sub("*", name) for name in names))
