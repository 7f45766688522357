"""The JAX namespace: eager, and under jit, scan and vmap."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.numpy import (
    abs,
    add,
    arange,
    asarray,
    astype,
    bfloat16,
    bitwise_and,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    clip,
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
    squeeze,
    stack,
    subtract,
    sum,
    zeros_like,
)

from magma_core.namespace import Namespace
from magma_core.numerics import plain_fence
from magma_jax.gpu.rounding import divide, sqrt


def where(condition: jax.Array, x1: jax.Array, x2: jax.Array, /) -> jax.Array:
    """``x1`` where ``condition`` holds, otherwise ``x2``.

    Under explicit sharding, a replicated condition is first sharded like the values.
    """
    if condition.shape == x1.shape != ():
        mine, theirs = (jax.typeof(x).sharding for x in (condition, x1))
        if mine != theirs:
            condition = jax.sharding.reshard(condition, theirs)
    return jnp.where(condition, x1, x2)


def bitcast(x: jax.Array, dtype: Any, /) -> jax.Array:
    """The same bits read as ``dtype``."""
    return lax.bitcast_convert_type(x, dtype)


@jax.custom_jvp
def fence(x: jax.Array, source: jax.Array, /) -> jax.Array:
    """The fence of `magma_core.numerics`, with derivative 1; JAX would take the derivative of bits as 0."""
    return plain_fence(x, source, xp=cast(Namespace, sys.modules[__name__]))


@fence.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return fence(*primals), tangents[0]


def barrier(x: jax.Array, /) -> jax.Array:
    """``x``, kept as rounded: XLA does not optimize across this, whatever computed ``x`` in the same program."""
    return lax.optimization_barrier(x)


def fused(x: jax.Array, /) -> bool:
    """Whether XLA sees ``x`` inside a larger program; each eager operation is a program of its own."""
    return isinstance(x, jax.core.Tracer)


def device(x: jax.Array, /) -> None:
    """None: JAX moves uncommitted constants to the arrays they meet."""


def scope() -> AbstractContextManager[Any]:
    """Enable int64 for the integer sums, whatever ``jax_enable_x64`` says outside."""
    return jax.enable_x64(True)


def largest(arrays: Sequence[jax.Array], /, *, axis: tuple[int, ...]) -> Sequence[jax.Array]:
    """All maxima in one variadic reduction, 20 times faster on CPU than separate ones."""
    magnitudes = [bitcast(x, int32) & 0x7FFFFFFF for x in arrays]
    if not axis:
        return magnitudes
    found = lax.reduce(magnitudes, [int32(0)] * len(arrays), _max_all, axis)
    return [jnp.expand_dims(x, axis) for x in found]


def integer_sums(x: jax.Array, y: jax.Array, /, *, axis: tuple[int, ...]) -> Sequence[jax.Array]:
    """All three sums in one variadic reduction, 10 to 20 times faster on CPU than three calls of ``jnp.sum``."""
    x, y = x.astype(jnp.int64), y.astype(jnp.int64)
    zero = jnp.zeros((), jnp.int64)
    return lax.reduce((x * y, x * x, y * y), (zero, zero, zero), _add_all, axis)


# Not lambdas: JAX recompiles for every new function.


def _add_all(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> Sequence[jax.Array]:
    return tuple(map(lax.add, a, b))


def _max_all(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> Sequence[jax.Array]:
    return tuple(map(lax.max, a, b))
