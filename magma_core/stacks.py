"""Arrays side by side, for namespaces that write programs: their languages have neither slices nor new axes."""

from collections.abc import Callable
from typing import Any


class Stack(tuple[Any, ...]):
    """Arrays of one shape, stacked along a new first axis."""

    __slots__ = ()

    @property
    def dtype(self) -> Any:
        """The dtype of each."""
        return tuple.__getitem__(self, 0).dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape with the new axis."""
        return (len(self), *tuple.__getitem__(self, 0).shape)

    def __getitem__(self, index: Any) -> Any:
        """``stack[i]`` or ``stack[i, ...]``."""
        return super().__getitem__(index[0] if isinstance(index, tuple) else index)


def each(function: Callable[..., Any], /, *operands: Any) -> Any:
    """The function of arrays, or of each array of stacks; arrays that are no stack are used for every entry."""
    lengths = {len(x) for x in operands if isinstance(x, Stack)}
    if not lengths:
        return function(*operands)
    (length,) = lengths
    columns = [x if isinstance(x, Stack) else (x,) * length for x in operands]
    return Stack(function(*entries) for entries in zip(*columns, strict=True))
