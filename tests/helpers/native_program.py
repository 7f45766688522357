"""A compiled step as a program for another processor, run in an emulator."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from magma_native.library import Library
from magma_native.loops import Formula
from magma_native.source import GROUP, TENSOR, source
from paths import HELPERS

from backends import NUMPY_DTYPES

POINTERS = [name for name in TENSOR.names or () if TENSOR[name] == np.uint64]
"""The fields of an entry that are addresses, which come first."""


def build(formula: Formula, compiler: Sequence[str], folder: Path) -> Path:
    """The program of a formula."""
    text, program = folder / "step.c", folder / "step"
    text.write_text(source(formula), encoding="utf-8")
    subprocess.run([*compiler, "-o", program, text, HELPERS / "native_main.c", "-lm"], check=True)
    return program


def emulated(formula: Formula, command: Sequence[str | Path], folder: Path) -> Library:
    """A library whose calls are runs of a program."""

    def step(address: int, count: int, threads: int) -> int:
        table = _view(address, count, TENSOR)
        request, places, arrays = table.copy(), list[tuple[np.ndarray, int]](), bytearray()
        for row, entry in zip(table, request, strict=True):
            for field in POINTERS:
                if entry[field]:
                    array = _array(row, field, formula)
                    places.append((array, len(arrays)))
                    entry[field] = len(arrays) + 1
                    arrays += array.tobytes() + bytes(-array.nbytes % 64)
        head = np.array([count, TENSOR.itemsize, len(POINTERS), threads, len(arrays)], np.int64)
        file = folder / "request"
        file.write_bytes(head.tobytes() + request.tobytes() + arrays)
        subprocess.run([*command, file], check=True)
        written = file.read_bytes()[-len(arrays) :]
        for array, place in places:
            array[...] = np.frombuffer(written, array.dtype, array.size, place)
        return 0

    def no_pass(address: int, threads: int, which: int) -> None:
        raise NotImplementedError("the program has no passes")

    return Library(formula, step, no_pass)


def _view(address: int, count: int, dtype: np.dtype) -> np.ndarray:
    """Memory as an array."""
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype, count)


def _array(row: np.void, field: str, formula: Formula) -> np.ndarray:
    """What a pointer of an entry points to."""
    rows, elements = int(row["rows"]), int(row["rows"] * row["columns"])
    kinds: dict[str, tuple[int, object]] = {
        "theta": (elements, NUMPY_DTYPES[formula.param]),
        "grad": (elements, NUMPY_DTYPES[formula.grad]),
        "mu": (elements, np.float32),
        "nu": (elements, np.float32),
        "mu_power": (1, np.float32),
        "nu_power": (1, np.float32),
        "keep": (rows, np.uint8),
        "sums": (3 * rows, np.int64),
        "settings": (1, GROUP),
    }
    size, dtype = kinds.get(field, (rows, np.float32))
    return _view(int(row[field]), size, np.dtype(dtype))
