"""Fences stacked on each other, separated by identities that a compiler removes: one program per mode."""

from collections.abc import Callable
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pytest
from fence_tasks import mode
from magma_conformance.implementations.inductor import compiler_missing
from magma_conformance.implementations.modes import Mode

from magma_core.namespace import Array
from magma_core.numerics import run_time_zero

SIDE = 64
A, B, C = (np.random.default_rng(i).standard_normal(SIDE * SIDE, dtype=np.float32) for i in range(3))


def reshaped(m: Mode, x: Array) -> Array:
    return m.framework.reshape(m.framework.reshape(x, (SIDE, SIDE)), (SIDE * SIDE,))


def transposed(m: Mode, x: Array) -> Array:
    square = m.framework.reshape(x, (SIDE, SIDE))
    for _ in range(2):
        square = m.xp.permute_dims(square, (1, 0))
    return m.framework.reshape(square, (SIDE * SIDE,))


def chosen(m: Mode, x: Array) -> Array:
    one = m.xp.asarray(1, dtype=m.xp.int32)
    return m.xp.where(m.xp.equal(one, 1), x, m.xp.negative(x))


def divided(m: Mode, x: Array) -> Array:
    return m.xp.divide(x, m.xp.asarray(1.0, dtype=m.xp.float32))


IDENTITIES: dict[str, Callable[[Mode, Array], Array]] = {
    "nothing": lambda m, x: x,
    "x · 1": lambda m, x: m.xp.multiply(x, 1.0),
    "x / 1": divided,
    "x + 0": lambda m, x: m.xp.add(x, 0.0),
    "x + −0": lambda m, x: m.xp.add(x, -0.0),
    "x − 0": lambda m, x: m.xp.subtract(x, 0.0),
    "(x · 2) · 0.5": lambda m, x: m.xp.multiply(m.xp.multiply(x, 2.0), 0.5),
    "−(−x)": lambda m, x: m.xp.negative(m.xp.negative(x)),
    "where of a constant": chosen,
    "where of the same": lambda m, x: m.xp.where(m.xp.less(x, 0.5), x, x),
    "cast to the same": lambda m, x: m.xp.astype(x, m.xp.float32),
    "bits of bits": lambda m, x: m.xp.bitcast(m.xp.bitcast(x, m.xp.int32), m.xp.float32),
    "reshape": reshaped,
    "transposes": transposed,
    "stack and pick": lambda m, x: m.xp.stack([x, m.xp.negative(x)])[0],
    "sum of one": lambda m, x: m.xp.sum(m.framework.reshape(x, (-1, 1)), axis=(1,)),
    "largest of one": lambda m, x: m.xp.max(m.framework.reshape(x, (-1, 1)), axis=(1,)),
    "barrier": lambda m, x: m.xp.barrier(x) if hasattr(m.xp, "barrier") else x,
}
"""What a compiler may remove; that x + 0 turns −0 into 0 does not matter, since no product here is a zero."""

SOURCES: dict[str, Callable[[int], bool]] = {
    "own bits": lambda layer: True,
    "bits of another": lambda layer: False,  # the same one for every layer, as `Real.fenced_like` has it
    "alternating": lambda layer: layer % 2 == 0,
}

Stack: TypeAlias = tuple[str, int, str]  # identity, depth, source

STACKS: list[Stack] = list(product(IDENTITIES, (2, 3, 4), SOURCES))

FEW = [stack for stack in STACKS if stack[1:] == (2, "own bits")]  # Inductor takes half a minute over all

MODES = [("jax", "jit"), ("jax", "scan"), ("tensorflow", "graph"), ("tensorflow", "xla"), ("torch", "compile")]

XLA = [("jax", "jit"), ("jax", "scan"), ("tensorflow", "xla")]  # those that contract


def no_fence(x: Array, source: Array, /, *, xp: Any) -> Array:
    return x


def xor_fence(x: Array, source: Array, /, *, xp: Any) -> Array:
    """The fence as it was."""
    zero = run_time_zero(xp.bitcast(source, xp.int32), xp=xp)
    return xp.bitcast(xp.bitwise_xor(xp.bitcast(x, xp.int32), zero), xp.float32)


def opened(where: tuple[str, str]) -> Mode:
    found = mode(*where)
    if found.backend == "torch" and (missing := compiler_missing()):
        pytest.skip(missing)
    return found


def stacked(m: Any, a: Array, b: Array, c: Array, stack: Stack, fence: Callable[..., Array]) -> Array:
    """a·b behind fences, and then + c, which would be contracted with the product."""
    identity, depth, source = stack
    x = m.xp.multiply(a, b)
    for layer in range(depth):
        x = IDENTITIES[identity](m, x) if layer else x
        x = fence(x, x if SOURCES[source](layer) else c, xp=m.xp)
    return m.xp.add(x, c)


def results(m: Mode, stacks: list[Stack], fence: Callable[..., Array]) -> list[np.ndarray]:
    """`stacked`, of every stack."""
    program = m.compile(lambda *arrays: tuple(stacked(m, *arrays, stack, fence) for stack in stacks))
    with m.xp.scope():
        return [m.get(x) for x in program(*map(m.put, (A, B, C)))]


def cancelled(m: Mode, fence: Callable[..., Array]) -> set[Stack]:
    """The stacks that do not keep the product's rounding."""
    stacks = FEW if m.backend == "torch" else STACKS
    expected = results(mode("numpy", "eager"), stacks, no_fence)
    actual = results(m, stacks, fence)
    return {
        stack
        for stack, x, y in zip(stacks, actual, expected, strict=True)
        if (x.view(np.int32) != y.view(np.int32)).any()
    }
