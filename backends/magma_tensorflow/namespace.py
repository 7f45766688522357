"""The TensorFlow namespace, eager, in tf.function and under jit_compile.

TensorFlow has no Array API namespace; this one covers what the core uses, with the standard's names, argument
order and semantics for those uses.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf

float16, bfloat16, float32, int32, int64 = tf.float16, tf.bfloat16, tf.float32, tf.int32, tf.int64

add = tf.math.add
subtract = tf.math.subtract
multiply = tf.math.multiply
divide = tf.math.divide
sqrt = tf.math.sqrt
abs = tf.math.abs
negative = tf.math.negative
round = tf.math.rint
equal = tf.math.equal
less = tf.math.less
logical_and = tf.math.logical_and
logical_or = tf.math.logical_or
bitwise_and = tf.bitwise.bitwise_and
bitwise_or = tf.bitwise.bitwise_or
bitwise_xor = tf.bitwise.bitwise_xor
bitwise_left_shift = tf.bitwise.left_shift
bitwise_right_shift = tf.bitwise.right_shift
where = tf.where


def asarray(obj: Any, /, *, dtype: tf.DType | None = None, device: None = None) -> tf.Tensor:
    """A tensor of ``obj``; ``device`` is left to TensorFlow."""
    return tf.convert_to_tensor(obj, dtype=dtype)


def arange(stop: int, /, *, dtype: tf.DType = tf.int64, device: None = None) -> tf.Tensor:
    """0, 1, …, stop − 1."""
    return tf.range(stop, dtype=dtype)


def full(shape: Sequence[int], fill_value: Any, *, dtype: tf.DType | None = None, device: None = None) -> tf.Tensor:
    """``fill_value`` everywhere."""
    return tf.fill(tuple(shape), tf.convert_to_tensor(fill_value, dtype=dtype))


def astype(x: tf.Tensor, dtype: tf.DType, /) -> tf.Tensor:
    """``x`` converted to ``dtype``."""
    return tf.cast(x, dtype)


def reshape(x: tf.Tensor, /, shape: Sequence[int]) -> tf.Tensor:
    """``x`` in another shape."""
    return tf.reshape(x, tuple(shape))


def permute_dims(x: tf.Tensor, /, axes: Sequence[int]) -> tf.Tensor:
    """``x`` with its axes in the order of ``axes``."""
    return tf.transpose(x, tuple(axes))


def concat(arrays: Sequence[tf.Tensor], /, *, axis: int = 0) -> tf.Tensor:
    """Arrays joined along an axis that they have."""
    return tf.concat(list(arrays), axis)


def stack(arrays: Sequence[tf.Tensor], /, *, axis: int = 0) -> tf.Tensor:
    """Arrays joined along a new axis."""
    return tf.stack(list(arrays), axis)


def clip(x: tf.Tensor, /, *, min: int) -> tf.Tensor:
    """``x``, or ``min`` where it is smaller."""
    return tf.math.maximum(x, min)


def take(x: tf.Tensor, indices: tf.Tensor, /, *, axis: int) -> tf.Tensor:
    """The entries of ``x`` at ``indices`` along ``axis``."""
    return tf.gather(x, indices, axis=axis)


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
    """Whether Grappler or XLA will see ``x`` inside a graph."""
    return not hasattr(x, "numpy")


def device(x: tf.Tensor, /) -> None:
    """TensorFlow places constants itself."""


def scope() -> AbstractContextManager[Any]:
    """Nothing to set."""
    return nullcontext()
