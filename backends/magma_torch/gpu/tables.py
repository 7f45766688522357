"""What kernels are told: where each tensor lies, and which tiles cover it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

AT_ONCE = {"cuda": 2**12, "cpu": 2**14}
"""Elements of a tile, or fewer. In Triton's interpreter a tile takes as long whatever its size."""

_VECTOR = 16
"""Bytes that a thread reads at a time where addresses and extents are multiples of it, and of as many elements."""


STEPS_IN_A_GRAPH = 4
"""How many steps can be captured in CUDA graphs without a step outside of one in between."""


class Shape(NamedTuple):
    """Of tiles, in powers of two."""

    rows: int
    columns: int
    whole: bool  # whether a row of the matrix lies in one tile
    aligned: bool  # whether every row begins at a multiple of `_VECTOR`

    @classmethod
    def of(cls, rows: int, columns: int, addresses: Sequence[int], at_once: int) -> "Shape":
        """For a matrix (rows, columns) whose parts are at ``addresses``, in tiles of ``at_once`` elements or fewer."""
        aligned = columns % _VECTOR == 0 and all(address % _VECTOR == 0 for address in addresses)
        width = min(_power_of_two(columns), at_once)
        return cls(min(_power_of_two(rows), at_once // width), width, columns <= width, aligned)


def stretches(tensor: int, rows: int, columns: int, shape: Shape, tiles: int) -> np.ndarray:
    """Stretches of ``tiles`` tiles that cover a matrix, (stretches, 3): its number, their first rows and columns."""
    down, across = np.arange(0, rows, shape.rows), np.arange(0, columns, shape.columns * tiles)
    grid = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([np.full((len(grid), 1), tensor), grid], axis=1).astype(np.int64)


class Upload:
    """A table on the device that follows one on the host; the host does not wait.

    A CUDA graph that is captured contains the copy, whether anything has changed or not, and reads its source again
    with every replay: the graph is right whatever steps were taken in between. No memory may be pinned during a
    capture, so there are sources in reserve.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, device: torch.device) -> None:
        self._known = np.zeros(shape, dtype)
        self.table = torch.from_numpy(self._known.copy()).to(device)
        self._reserve: list[Tensor] = []
        self._captured: list[Tensor] = []  # the sources of graphs, which change the table unseen

    def follow(self, values: np.ndarray) -> None:
        """Send ``values`` if they may be others than those that are there."""
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
