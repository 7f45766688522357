"""Which axis is which: the files have matrices as PyTorch has them, (out, in), and kernels elsewhere are (in, out)."""

import numpy as np

from magma_conformance.cases.real_text import block_axes
from magma_core import Axes


def axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """For each axis of a kernel that is stored (in, out), the axis of the files, which have (out, in)."""
    return (1, 0) if len(shape) == 2 and name != "embedding" else None


def own_block_axes(name: str, shape: tuple[int, ...]) -> Axes | None:
    """The axes that index the blocks of a kernel that is stored (in, out): a row of (out, in) is a column of it."""
    in_file, order = block_axes(name), axes(name, shape)
    return in_file if in_file is None or order is None else tuple(order.index(axis) for axis in in_file)


def turned(name: str, array: np.ndarray) -> np.ndarray:
    """From the files' layout to that of kernels (in, out), and back: a transposition undoes itself."""
    order = axes(name, array.shape)
    return array if order is None else np.ascontiguousarray(array.transpose(order))
