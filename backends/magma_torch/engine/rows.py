"""A tensor read as a matrix with a row for each block, and cut into pieces that fit a cache."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from magma_core import cut


class Piece(NamedTuple):
    """A part of the matrix: some whole rows, or a part of one row."""

    first: int  # row
    shape: tuple[int, int]
    start: int  # element of the matrix, row-major
    indices: tuple[int, int]  # what it covers of the first of the ordered axes, where the tensor is not flat

    @property
    def rows(self) -> slice:
        """Its rows in the matrix."""
        return slice(self.first, self.first + self.shape[0])

    @property
    def elements(self) -> slice:
        """Its elements in the matrix, row-major."""
        return slice(self.start, self.start + math.prod(self.shape))


@dataclass(frozen=True)
class Layout:
    """How a tensor becomes a matrix (rows, columns): ``order`` puts the block axes first.

    Inside a block no order matters to the rule, so the other axes follow by falling stride: transposed tensors and
    channels_last are read as they lie in memory.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    rows: int
    columns: int
    flat: bool  # whether the matrix lies in memory row after row

    @classmethod
    def of(cls, tensor: torch.Tensor, axes: tuple[int, ...]) -> "Layout":
        """The layout for ``tensor``, whose blocks are indexed by ``axes``."""
        blocks = cut(tensor.shape, axes, name="tensor")
        strides = tensor.stride()
        order = blocks.axes + tuple(sorted(blocks.inner_axes, key=lambda axis: -strides[axis]))
        flat = tensor.permute(order).is_contiguous()
        return cls(blocks.shape, order, blocks.count, blocks.block_size, flat)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.rows * self.columns

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies in memory in this order."""
        return tensor.permute(self.order).is_contiguous()

    def view(self, matrix: torch.Tensor) -> torch.Tensor:
        """Memory that holds the matrix, in the tensor's own shape."""
        permuted = matrix.view([self.shape[axis] for axis in self.order])
        return permuted.permute([self.order.index(axis) for axis in range(len(self.order))])

    def pieces(self, limit: int) -> Iterator[Piece]:
        """Pieces of about ``limit`` elements that make up the whole."""
        if not self.size:
            return
        if self.flat:
            yield from self._flat_pieces(limit)
            return
        extent = self.shape[self.order[0]]
        unit = self.size // extent
        whole_rows = self.columns <= unit
        for i in range(0, extent, step := max(1, limit // unit)):
            j = min(i + step, extent)
            start, size = i * unit, (j - i) * unit
            shape = (size // self.columns, self.columns) if whole_rows else (1, size)
            yield Piece(start // self.columns, shape, start, (i, j))

    def _flat_pieces(self, limit: int) -> Iterator[Piece]:
        if self.columns <= limit:
            for row in range(0, self.rows, step := max(1, limit // self.columns)):
                rows = min(step, self.rows - row)
                yield Piece(row, (rows, self.columns), row * self.columns, (0, 0))
            return
        for row in range(self.rows):
            for column in range(0, self.columns, limit):
                columns = min(limit, self.columns - column)
                yield Piece(row, (1, columns), row * self.columns + column, (0, 0))

    def read(self, tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
        """The piece as a matrix: the tensor's own memory where that is possible, else a copy."""
        permuted = tensor.permute(self.order)
        if permuted.is_contiguous():
            return permuted.view(-1)[piece.elements].view(piece.shape)
        return permuted[slice(*piece.indices)].reshape(piece.shape).contiguous()

    def write(self, tensor: torch.Tensor, piece: Piece, values: torch.Tensor) -> None:
        """Put back what `read` had to copy."""
        if not self.flat:
            part = tensor.permute(self.order)[slice(*piece.indices)]
            part.copy_(values.view(part.shape))


def in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one that has no memory of its own, or not its values: wrappers, negative views."""
    if type(tensor) is torch.Tensor and not tensor.is_neg():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
