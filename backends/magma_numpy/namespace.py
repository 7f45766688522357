"""The NumPy namespace. NumPy rounds every binary32 operation by itself, as the contract requires."""

from contextlib import AbstractContextManager
from typing import Any

import ml_dtypes
import numpy as np
from array_api_compat.numpy import (
    abs,
    add,
    arange,
    asarray,
    astype,
    bitwise_and,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    clip,
    divide,
    equal,
    float16,
    float32,
    full,
    int32,
    int64,
    less,
    logical_not,
    max,
    multiply,
    negative,
    permute_dims,
    round,
    sqrt,
    squeeze,
    stack,
    subtract,
    sum,
    where,
    zeros_like,
)

bfloat16 = np.dtype(ml_dtypes.bfloat16)


def bitcast(x: Any, dtype: Any, /) -> Any:
    """The same bits read as ``dtype``."""
    return np.asarray(x).view(dtype)


def fused(x: Any, /) -> bool:
    """NumPy runs one operation at a time."""
    return False


def device(x: Any, /) -> None:
    """NumPy has one device."""


def scope() -> AbstractContextManager[Any]:
    """Infinities and NaNs are ordinary values here: no warnings."""
    return np.errstate(all="ignore")
