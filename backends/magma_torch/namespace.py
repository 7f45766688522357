"""The PyTorch namespace: eager and under torch.compile."""

import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
import torch
from array_api_compat.torch import arange, asarray, full, max, permute_dims, squeeze, sum

# torch's elementwise functions follow the standard when dtypes agree, as in the core; the compat layer's dtype
# promotion would break a torch.compile graph.
from torch import (
    abs,
    add,
    bfloat16,
    bitwise_and,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    clip,
    float16,
    float32,
    int32,
    int64,
    less,
    logical_not,
    multiply,
    negative,
    round,
    stack,
    subtract,
    where,
    zeros_like,
)
from torch import eq as equal

from magma_core import alignment, keep
from magma_core.config import SMALLEST
from magma_core.keep import Words
from magma_core.namespace import Namespace
from magma_core.numerics import run_time_zero

_BELOW_SMALLEST = SMALLEST * (1 - 2.0**-24)
"""The largest binary32 below 2⁻¹⁰⁰."""


def divide(x1: torch.Tensor, x2: torch.Tensor, /) -> torch.Tensor:
    """x1 / x2; in programs compiled for a GPU via float64, like the root: Triton's own is an approximation.

    Inductor also replaces division by a float64 constant with its reciprocal: `Real` hides constants (docs/numerics.md,
    F2).
    """
    if fused(x1) or fused(x2):
        return torch.divide(x1.to(torch.float64), x2.to(torch.float64)).to(float32)
    return torch.divide(x1, x2)


def sqrt(x: torch.Tensor, /) -> torch.Tensor:
    """√x by NumPy or via float64: the vector library behind torch.sqrt on CPU does not round correctly.

    53 ≥ 2·24 + 2 bits, so rounding twice equals rounding once (docs/numerics.md, F3).
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))
    return torch.sqrt(x.to(torch.float64)).to(torch.float32)


def astype(x: torch.Tensor, dtype: torch.dtype, /) -> torch.Tensor:
    """``x`` converted to ``dtype``; rounds to 16 bits even if the same graph widens the result again.

    Inductor drops such pairs of conversions, and the rounding between two steps with them (docs/numerics.md, F4).
    """
    converted = x.to(dtype)
    if not (torch.compiler.is_compiling() and x.dtype == float32 and dtype.itemsize == 2):
        return converted
    zero = run_time_zero(bitcast(x, int32), xp=cast(Namespace, sys.modules[__name__]))
    return bitcast(add(bitcast(converted, torch.int16), zero.to(torch.int16)), dtype)


def flush(x: torch.Tensor, /) -> torch.Tensor:
    """+0 where |x| < 2⁻¹⁰⁰, in one operation; NaN stays."""
    return torch.hardshrink(x, _BELOW_SMALLEST)


def largest(arrays: Sequence[torch.Tensor], /, *, axis: tuple[int, ...]) -> list[torch.Tensor]:
    """The bits of max|x|. torch's float extrema propagate NaN, with either sign, like integer ones on the bits."""
    if axis:
        # two reductions are faster than a pass for the magnitudes
        arrays = [
            torch.maximum(torch.amax(x, dim=axis, keepdim=True), negative(torch.amin(x, dim=axis, keepdim=True)))
            for x in arrays
        ]
    return [bitwise_and(bitcast(x, int32), 0x7FFFFFFF) for x in arrays]


def integer_sums(x: torch.Tensor, y: torch.Tensor, /, *, axis: tuple[int, ...]) -> list[torch.Tensor]:
    """The sums in float64, exact in any order and with any contraction while below 2⁵³."""
    if not axis or math.prod([x.shape[i] for i in axis]) > 2**23:
        return list(alignment.plain_integer_sums(x, y, axis=axis, xp=cast(Namespace, sys.modules[__name__])))
    x, y = x.to(torch.float64), y.to(torch.float64)
    return [_dot(a, b, axis).to(int64) for a, b in ((x, y), (x, x), (y, y))]


def _dot(x: torch.Tensor, y: torch.Tensor, axis: tuple[int, ...]) -> torch.Tensor:
    if axis == (x.ndim - 1,) and not torch.compiler.is_compiling():
        return (
            torch.dot(x.reshape(-1), y.reshape(-1)).reshape(x.shape[:-1])
            if x.shape[-1] == x.numel()
            else torch.linalg.vecdot(x, y)
        )
    return torch.sum(x * y, dim=axis)


def bitcast(x: torch.Tensor, dtype: torch.dtype, /) -> torch.Tensor:
    """The same bits read as ``dtype``."""
    return x.view(dtype)


def fused(x: torch.Tensor, /) -> bool:
    """Whether the compiler contracts: Inductor's Triton code for GPUs does; eager torch and its C++ do not."""
    return torch.compiler.is_compiling() and x.device.type != "cpu"


def device(x: torch.Tensor, /) -> torch.device:
    """The tensor's device."""
    return x.device


def scope() -> AbstractContextManager[Any]:
    """Disable gradients: a step is not differentiated."""
    return torch.no_grad()


def threefry2x32(key: Words, counter: Words, /) -> Words:
    """The cipher; one opaque operation to torch.compile.

    Inductor copies fused code into every use, and takes half a minute to compile twenty rounds of it.
    """
    if torch.compiler.is_compiling():
        high, low = _threefry2x32(*key, *counter)
        return high, low
    return keep.threefry2x32(key, counter, xp=cast(Namespace, sys.modules[__name__]))


@torch.library.custom_op("magma::threefry2x32", mutates_args=())
def _threefry2x32(
    key0: torch.Tensor, key1: torch.Tensor, counter0: torch.Tensor, counter1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return keep.threefry2x32((key0, key1), (counter0, counter1), xp=cast(Namespace, sys.modules[__name__]))


@_threefry2x32.register_fake
def _(
    key0: torch.Tensor, key1: torch.Tensor, counter0: torch.Tensor, counter1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = torch.broadcast_shapes(key0.shape, key1.shape, counter0.shape, counter1.shape)
    return key0.new_empty(shape), key0.new_empty(shape)
