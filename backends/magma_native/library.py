"""A compiled step, and the call of it."""

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from magma_native import compiler
from magma_native.loops import Formula
from magma_native.source import TENSOR, source


class Pass(IntEnum):
    """The passes over blocks that are decided elsewhere."""

    PEAKS = 0  # moments; `magma_core.alignment.largest` of each part of a block, in ``hints``
    SUMS = 1  # the sums of each part, given those of whole blocks in ``hints``
    WRITE = 2  # the parameter, given ``keep`` and ``scale``


@dataclass(frozen=True)
class Library:
    """The step of one `Formula`."""

    formula: Formula
    function: Callable[[int, int, int], int]
    pass_function: Callable[[int, int, int], None]

    def run_pass(self, tensor: np.ndarray, which: Pass, threads: int) -> None:
        """One pass over this process's part of a parameter, whose blocks other processes share.

        Args:
            tensor: a table of one `TENSOR` entry; the arrays that it points to are written.
            which: the pass.
            threads: as for `step`.
        """
        assert (tensor.dtype, tensor.size) == (TENSOR, 1)
        self.pass_function(tensor.ctypes.data, _usable(threads), which)

    def step(self, tensors: np.ndarray, threads: int) -> None:
        """Step the parameters in a table of `TENSOR` entries; the arrays that it points to are written.

        Args:
            tensors: the table.
            threads: how many to use; see `_usable`.

        Raises:
            MemoryError: if there is none for a few numbers of each block. These tensors have not changed then.
        """
        assert tensors.dtype == TENSOR
        assert tensors.flags.c_contiguous
        if self.function(tensors.ctypes.data, len(tensors), _usable(threads)):
            raise MemoryError("there is no memory to begin the step of these tensors")


_with_threads: int | None = None  # the process that had threads first


def _usable(threads: int) -> int:
    """One in a process that was forked from one with threads: OpenMP would wait for those of its parent."""
    global _with_threads
    if threads > 1:
        _with_threads = _with_threads or os.getpid()
    return threads if _with_threads in (None, os.getpid()) else 1


@functools.cache
def library(formula: Formula) -> Library:
    """Compiled, or taken from the cache.

    Raises:
        magma_native.CompilerMissing: if there is no C compiler that can make it.
    """
    made = load(source(formula))
    step, one_pass = made.magma_step, made.magma_pass
    step.restype, step.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    one_pass.restype, one_pass.argtypes = None, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    return Library(formula, step, one_pass)


def load(text: str, *, headers: str | None = None) -> ctypes.CDLL:
    """The library of a source that has a step in it; arguments and errors: see `compiler.build`."""
    made = compiler.build(text, headers=headers)
    if _contracts(made):
        raise compiler.CompilerMissing("the C compiler contracts a·b + c although it was told not to: unset its flags")
    return made


def _contracts(made: ctypes.CDLL) -> bool:
    """Whether a·b + c is rounded once; twice, 2⁻²⁴ of this square is rounded away."""
    check = made.magma_product_and_sum
    check.restype, check.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    return bool(check(1 + 2**-12, 1 + 2**-12, -1 - 2**-11))
