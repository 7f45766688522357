"""Axis orders: matrices are (out, in) in the files, as in PyTorch, and (in, out) as kernels elsewhere."""

import numpy as np

from magma_conformance.cases.real_text import block_axes
from magma_core import Axes


def axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """For each axis of an (in, out) kernel, the corresponding axis of the (out, in) files."""
    return (1, 0) if len(shape) == 2 and name != "embedding" else None


def own_block_axes(name: str, shape: tuple[int, ...]) -> Axes | None:
    """The block axes of an (in, out) kernel: a row of (out, in) is one of its columns."""
    in_file, order = block_axes(name), axes(name, shape)
    return in_file if in_file is None or order is None else tuple(order.index(axis) for axis in in_file)


def turned(name: str, array: np.ndarray) -> np.ndarray:
    """Convert between the files' layout and (in, out) kernels; a transposition is its own inverse."""
    order = axes(name, array.shape)
    return array if order is None else np.ascontiguousarray(array.transpose(order))
