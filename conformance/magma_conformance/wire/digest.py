"""Digests of results and inputs, for comparing the reports of two machines."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from magma_conformance.bits import FLOATS, bits_of, isnan
from magma_conformance.task import Arrays, Task
from magma_conformance.wire.task_json import describe_task


def digest(records: Iterable[Arrays], /) -> str:
    """SHA-256 over name, dtype, shape and bits of every array, in the order of the records and then of the names.

    Two lists of records have the same digest if and only if `runner.result.compare` finds them equal. All NaNs count
    as one, since processors disagree about the bits of a NaN that an operation makes.

    Args:
        records: arrays by name, one mapping per step.

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
    """SHA-256 of everything that determines the results of ``task``.

    Reports of two machines are comparable only if this digest is the same.
    """
    return hashlib.sha256(json.dumps(describe_task(task), sort_keys=True).encode()).hexdigest()


def _canonical(array: np.ndarray) -> np.ndarray:
    """The bits, little-endian, with one quiet NaN for every NaN."""
    bits = bits_of(array)
    if array.dtype in FLOATS:
        bits = np.where(isnan(array), bits_of(np.asarray(np.nan, array.dtype)), bits)
    return bits.astype(bits.dtype.newbyteorder("<"))
