"""Fingerprints of what was computed, and from what, so that the reports of two machines can be compared."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from magma_conformance.bits import FLOATS, bits_of, isnan
from magma_conformance.task import Arrays, Task
from magma_conformance.wire.task_json import describe_task


def digest(records: Iterable[Arrays], /) -> str:
    """SHA-256 over name, dtype, shape and bits of every array, in the order of the records and then of the names.

    Two lists of records have the same digest where `runner.result.compare` finds them equal: all NaNs are
    one, for processors disagree about the bits of a NaN that an operation makes.

    Args:
        records: arrays by name, one mapping for each step.

    Example:
        >>> x = np.float32([1, 2])
        >>> digest([{"w": x, "b": x}]) == digest([{"b": x, "w": x}])
        True
        >>> digest([{"w": x}]) == digest([{"w": -x}])
        False
    """
    total = hashlib.sha256()
    for step, record in enumerate(records):
        for name, array in sorted(record.items()):
            array = np.asarray(array)
            total.update(json.dumps([step, name, str(array.dtype), array.shape]).encode())
            total.update(_canonical(array).tobytes())
    return total.hexdigest()


def digest_task(task: Task, /) -> str:
    """SHA-256 of everything that decides what ``task`` gives.

    A report of another machine can only be compared where this is the same on both.
    """
    return hashlib.sha256(json.dumps(describe_task(task), sort_keys=True).encode()).hexdigest()


def _canonical(array: np.ndarray) -> np.ndarray:
    """The bits, little end first, with the same quiet NaN for every NaN."""
    bits = bits_of(array)
    if array.dtype in FLOATS:
        bits = np.where(isnan(array), bits_of(np.asarray(np.nan, array.dtype)), bits)
    return bits.astype(bits.dtype.newbyteorder("<"))
