"""The kernels' tables: where each tensor lies, and which tiles cover it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

AT_ONCE = {"cuda": 2**12, "cpu": 2**14}
"""Elements of a tile, at most. In Triton's interpreter, a tile takes equally long whatever its size."""

_VECTOR = 16
"""Bytes of a vector load, if addresses and extents are multiples of it; also that many elements."""


STEPS_IN_A_GRAPH = 4
"""The number of steps that CUDA graphs can capture without an ordinary step between them."""


class Shape(NamedTuple):
    """The shape of tiles, in powers of two."""

    rows: int
    columns: int
    whole: bool  # whether a row of the matrix lies in one tile
    aligned: bool  # whether every row begins at a multiple of `_VECTOR`

    @classmethod
    def of(cls, rows: int, columns: int, addresses: Sequence[int], at_once: int) -> "Shape":
        """For a matrix (rows, columns) with parts at ``addresses``, in tiles of at most ``at_once`` elements."""
        aligned = columns % _VECTOR == 0 and all(address % _VECTOR == 0 for address in addresses)
        width = min(_power_of_two(columns), at_once)
        return cls(min(_power_of_two(rows), at_once // width), width, columns <= width, aligned)


def stretches(tensor: int, rows: int, columns: int, shape: Shape, tiles: int) -> np.ndarray:
    """Stretches of ``tiles`` tiles that cover matrix ``tensor``, (stretches, 3): number, first row, first column."""
    down, across = np.arange(0, rows, shape.rows), np.arange(0, columns, shape.columns * tiles)
    grid = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([np.full((len(grid), 1), tensor), grid], axis=1).astype(np.int64)


class Upload:
    """A device table that follows a host table; the host does not wait.

    A captured CUDA graph contains the copy, whether or not values changed, and reads its source at every replay. The
    graph is therefore right whatever steps run between replays. A capture must not pin memory, so sources are kept in
    reserve.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, device: torch.device) -> None:
        self._known = np.zeros(shape, dtype)
        self.table = torch.from_numpy(self._known.copy()).to(device)
        self._reserve: list[Tensor] = []
        self._captured: list[Tensor] = []  # the graphs' sources; their replays change the table unnoticed

    def follow(self, values: np.ndarray) -> None:
        """Send ``values`` if they may differ from the current ones."""
        if self.table.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self._capture(torch.from_numpy(values))
            return
        if self.table.device.type == "cuda":
            while len(self._reserve) < STEPS_IN_A_GRAPH:
                self._reserve.append(torch.empty_like(self.table, device="cpu", pin_memory=True))
        if self._captured or not np.array_equal(values, self._known):
            source = torch.from_numpy(values)
            self.table.copy_(source.pin_memory() if self._reserve else source, non_blocking=True)
            self._known = values

    @property
    def captured(self) -> bool:
        """Whether a graph reads and writes it."""
        return bool(self._captured)

    def _capture(self, values: Tensor) -> None:
        if not self._reserve:
            raise RuntimeError(
                f"more than {STEPS_IN_A_GRAPH} steps were captured in CUDA graphs one after the other: "
                "take a step outside of a graph before the next"
            )
        self._captured.append(self._reserve.pop().copy_(values))
        self.table.copy_(self._captured[-1], non_blocking=True)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
