"""Blocks: which axes of a parameter index them, and how per-block values broadcast (spec section 3)."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from magma_core.arguments import short
from magma_core.namespace import Array, Namespace

Axes: TypeAlias = Sequence[int]

MOST = 2**32
"""The largest number of elements in a block (so sums fit 2⁶²) and of blocks (so their index fits a word)."""


@dataclass(frozen=True)
class Blocks:
    """How a parameter of shape ``shape`` is cut: one block per index along ``axes``, in their order."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def block_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def count(self) -> int:
        return math.prod(self.block_shape)

    @property
    def inner_axes(self) -> tuple[int, ...]:
        """The axes that a block spans."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)

    @property
    def block_size(self) -> int:
        return math.prod([self.shape[axis] for axis in self.inner_axes])

    def order(self, x: Array, /, *, xp: Namespace) -> Array:
        """Reorder per-block values from ascending axis order to the order of ``axes``."""
        ascending = sorted(self.axes)
        if list(self.axes) == ascending:
            return x
        return xp.permute_dims(x, tuple(ascending.index(axis) for axis in self.axes))

    def spread(self, x: Array, /, *, xp: Namespace) -> Array:
        """Per-block values in block shape, reshaped to broadcast against the parameter."""
        ascending = sorted(self.axes)
        if list(self.axes) != ascending:
            x = xp.permute_dims(x, tuple(self.axes.index(axis) for axis in ascending))
        inner = self.inner_axes
        return x[tuple(None if axis in inner else slice(None) for axis in range(len(self.shape)))]


class Shard(NamedTuple):
    """The position of a part in the whole parameter, and how to combine its parts.

    Blocks are those of the whole tensor. Needed where a program sees only one device's part.
    """

    shape: tuple[int, ...]  # of the whole parameter
    starts: tuple[int | Array, ...]  # of the part, along each axis
    largest: Callable[[Array], Array]  # maxima of blocks, from their parts to the whole
    total: Callable[[Array], Array]  # sums of blocks, from their parts to the whole


def cut(shape: Sequence[int], axes: Axes, /, *, name: str) -> Blocks:
    """Validate ``axes`` against ``shape`` and return the blocks.

    Args:
        shape: the parameter's shape.
        axes: the axes that *index* blocks: ``()`` one block, ``(0,)`` one block per row, all axes single elements.
            Negative axes count from the end. Their order sets the order of the block index.
        name: the parameter's name, for messages.

    Raises:
        TypeError: if an axis is not an integer.
        ValueError: if an axis is out of range or named twice, a block has more than 2³² elements, or there
            are more than 2³² blocks.

    Example:
        >>> cut((4, 3), (0,), name="w").count
        4
    """
    shape = tuple(int(n) for n in shape)
    try:
        named = tuple(axes)
        if any(isinstance(axis, bool) for axis in named):
            raise TypeError
        given = tuple(operator.index(axis) for axis in named)
    except TypeError:
        raise TypeError(f"block_axes of {short(name)} must be a sequence of integers, got {short(axes)}") from None
    rank = len(shape)
    for axis in given:
        if not -rank <= axis < rank:
            choice = f"axes from {-rank} to {rank - 1}, or ()" if rank else "()"
            raise ValueError(
                f"block_axes of {short(name)} has axis {short(axis)}, out of range for shape {short(shape)}: "
                f"use {choice} for a single block"
            )
    blocks = Blocks(shape, tuple(axis % rank for axis in given))
    if len(set(blocks.axes)) < len(blocks.axes):
        raise ValueError(f"block_axes of {short(name)} names an axis twice: {short(axes)}; name each once")
    if blocks.block_size > MOST:
        raise ValueError(
            f"a block of {short(name)} has {blocks.block_size} elements, more than 2**32: "
            f"name more of the axes of {short(shape)} in block_axes, got {short(axes)}"
        )
    if blocks.count > MOST:
        raise ValueError(
            f"{short(name)} has {blocks.count} blocks, more than 2**32: "
            f"name fewer of the axes of {short(shape)} in block_axes, got {short(axes)}"
        )
    return blocks
