"""The TensorFlow namespace: eager, in tf.function and under jit_compile.

TensorFlow has no Array API namespace. This one covers the core's needs, with the standard's names, argument order and
semantics.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util

from magma_core import alignment
from magma_core.namespace import Namespace

float16, bfloat16, float32, int32, int64 = tf.float16, tf.bfloat16, tf.float32, tf.int32, tf.int64

sqrt = tf.math.sqrt
abs = tf.math.abs
negative = tf.math.negative
round = tf.math.rint
logical_not = tf.math.logical_not
where = tf.where


def _with_scalars(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Let a Python scalar, as either operand, take the dtype of the other."""

    def operation(x1: Any, x2: Any, /) -> tf.Tensor:
        if isinstance(x1, int | float):
            x1 = asarray(x1, dtype=x2.dtype)
        elif isinstance(x2, int | float):
            x2 = asarray(x2, dtype=x1.dtype)
        return function(x1, x2)

    return operation


add = _with_scalars(tf.math.add)
subtract = _with_scalars(tf.math.subtract)
multiply = _with_scalars(tf.math.multiply)
divide = _with_scalars(tf.math.divide)
equal = _with_scalars(tf.math.equal)
less = _with_scalars(tf.math.less)
bitwise_and = _with_scalars(tf.bitwise.bitwise_and)
bitwise_or = _with_scalars(tf.bitwise.bitwise_or)
bitwise_xor = _with_scalars(tf.bitwise.bitwise_xor)
bitwise_left_shift = _with_scalars(tf.bitwise.left_shift)
bitwise_right_shift = _with_scalars(tf.bitwise.right_shift)


def asarray(obj: Any, /, *, dtype: tf.DType | None = None, device: None = None) -> tf.Tensor:
    """A tensor of ``obj``; TensorFlow chooses the device.

    Python numbers go through NumPy: TensorFlow caches them, and its cache takes −0.0 and 0.0 for the same.
    """
    if dtype is not None and not tf.is_tensor(obj):
        obj = np.asarray(obj, dtype.as_numpy_dtype)
    return tf.convert_to_tensor(obj, dtype=dtype)


def arange(stop: int, /, *, dtype: tf.DType = tf.int64, device: None = None) -> tf.Tensor:
    """0, 1, …, stop − 1."""
    return tf.range(stop, dtype=dtype)


def full(shape: Sequence[int], fill_value: Any, *, dtype: tf.DType | None = None, device: None = None) -> tf.Tensor:
    """``fill_value`` everywhere."""
    return tf.fill(tuple(shape), asarray(fill_value, dtype=dtype))


def zeros_like(x: tf.Tensor, /, *, dtype: tf.DType | None = None) -> tf.Tensor:
    """+0 in the shape of ``x``."""
    return tf.zeros_like(x, dtype=dtype)


def astype(x: tf.Tensor, dtype: tf.DType, /) -> tf.Tensor:
    """``x`` converted to ``dtype``."""
    return tf.cast(x, dtype)


def squeeze(x: tf.Tensor, /, axis: Sequence[int]) -> tf.Tensor:
    """``x`` without axes of extent 1; TensorFlow reads an empty list as all axes."""
    return tf.squeeze(x, tuple(axis)) if axis else x


def permute_dims(x: tf.Tensor, /, axes: Sequence[int]) -> tf.Tensor:
    """``x`` with its axes in the order of ``axes``."""
    return tf.transpose(x, tuple(axes))


def stack(arrays: Sequence[tf.Tensor], /, *, axis: int = 0) -> tf.Tensor:
    """Arrays joined along a new axis."""
    return tf.stack(list(arrays), axis)


def clip(x: tf.Tensor, /, *, min: int) -> tf.Tensor:
    """The larger of ``x`` and ``min``."""
    return tf.math.maximum(x, min)


def max(x: tf.Tensor, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> tf.Tensor:
    """The largest entry along ``axis``."""
    return tf.reduce_max(x, axis, keepdims=keepdims)


def sum(x: tf.Tensor, /, *, axis: int | tuple[int, ...] | None = None, dtype: tf.DType | None = None) -> tf.Tensor:
    """The sum along ``axis``, accumulated in ``dtype``."""
    return tf.reduce_sum(x if dtype is None else tf.cast(x, dtype), axis)


def bitcast(x: tf.Tensor, dtype: tf.DType, /) -> tf.Tensor:
    """The same bits read as ``dtype``."""
    return tf.bitcast(x, dtype)


def fused(x: tf.Tensor, /) -> bool:
    """Whether ``x`` belongs to a graph, where Grappler or XLA sees it."""
    return not hasattr(x, "numpy")


def device(x: tf.Tensor, /) -> None:
    """TensorFlow places constants itself."""


def scope() -> AbstractContextManager[Any]:
    """Nothing to set."""
    return nullcontext()


def largest(arrays: Sequence[tf.Tensor], /, *, axis: tuple[int, ...]) -> Sequence[tf.Tensor]:
    """All maxima; under XLA one variadic reduction, 20 times faster on CPU than separate ones."""
    magnitudes = [bitwise_and(bitcast(x, int32), 0x7FFFFFFF) for x in arrays]
    if not axis:
        return magnitudes
    if not _in_xla():
        return [max(x, axis=axis, keepdims=True) for x in magnitudes]
    found = _reduce(magnitudes, tf.math.maximum, axis)
    for place in sorted(axis):
        found = [tf.expand_dims(x, place) for x in found]
    return found


def integer_sums(x: tf.Tensor, y: tf.Tensor, /, *, axis: tuple[int, ...]) -> Sequence[tf.Tensor]:
    """All three sums; under XLA one variadic reduction, faster than separate ones."""
    if not axis or not _in_xla():
        return alignment.plain_integer_sums(x, y, axis=axis, xp=_SELF)
    x, y = tf.cast(x, int64), tf.cast(y, int64)
    return _reduce((x * y, x * x, y * y), tf.math.add, axis)


def barrier(x: tf.Tensor, /) -> tf.Tensor:
    """``x``, kept as rounded: XLA does not optimize across this, whatever computed ``x`` in the same program."""
    return xla.optimization_barrier(x)[0] if _in_xla() else x


def _reduce(arrays: Sequence[tf.Tensor], combine: Callable[..., tf.Tensor], axis: tuple[int, ...]) -> list[tf.Tensor]:
    """Each array reduced along ``axis`` by ``combine``, with neutral element 0, in one XLA loop."""
    count, dtype = len(arrays), arrays[0].dtype

    @tf.function(input_signature=[tf.TensorSpec((), dtype)] * (2 * count), autograph=False)
    def all_of_them(*operands: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(combine(a, b) for a, b in zip(operands[:count], operands[count:], strict=True))

    zeros = [tf.zeros((), dtype)] * count
    return xla.variadic_reduce(list(arrays), zeros, axis, all_of_them.get_concrete_function())


def _in_xla() -> bool:
    """Whether tracing is for ``jit_compile``; XLA's own operations exist nowhere else. No public API tells."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


_SELF = cast(Namespace, sys.modules[__name__])
