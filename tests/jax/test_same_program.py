"""Values that a caller computes in a step's program are rounded before they enter: the compiler sees no further."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_jax import MagmaState, MagmaTransformation, by_rule

from magma_core import damping
from magma_core.config import BASES

SHAPE = (48, 40)
X, Y = (np.random.default_rng(i).standard_normal(SHAPE, dtype=np.float32) for i in range(2))
KNOWN = np.full(SHAPE, 0.1, np.float32)


def scaled(field: str) -> Callable[..., Any]:
    def before(x: Any, y: Any, state: MagmaState) -> Any:
        return x, y, state._replace(**{field: jax.tree.map(lambda leaf: leaf * 0.37, getattr(state, field))})

    return before


BEFORE: dict[str, Callable[..., Any]] = {
    "parameters": lambda x, y, state: (x * 0.3, y, state),
    "parameters and gradients": lambda x, y, state: (x * 0.3, y * 0.7, state),
    "products of tensors": lambda x, y, state: (x * y, y * x, state),
    "gradients known": lambda x, y, state: (x * 0.3, jnp.asarray(KNOWN), state),
    "first moments": scaled("mu"),
    "second moments": scaled("nu"),
    "scores": scaled("score"),
}


def start(optimizer: MagmaTransformation) -> tuple[Any, MagmaState]:
    """After two steps, so that the state says something."""
    params, state = {"w": jnp.asarray(X)}, optimizer.init({"w": jnp.asarray(X)})
    for i in range(2):
        params, state = jax.jit(optimizer.step)(params, {"w": jnp.asarray(Y * (i + 1))}, state)
    return params["w"], state


@pytest.mark.parametrize("state_is", ["traced", "known"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", BEFORE)
def test_bits_are_those_of_separate_programs(name: str, base: str, state_is: str) -> None:
    optimizer = by_rule(0.1, damping(), base, kernels=False)
    x, state = start(optimizer)
    if name == "second moments" and state.nu is None:
        pytest.skip("this base has none")
    y = jnp.asarray(Y)

    def together(x: Any, y: Any, state: MagmaState) -> Any:
        x, y, state = BEFORE[name](x, y, state)
        return optimizer.step({"w": x}, {"w": y}, state)

    a, b, changed = BEFORE[name](x, y, state)  # eagerly: each operation is a program of its own
    expected = jax.jit(optimizer.step)({"w": a}, {"w": b}, changed)
    actual = (
        jax.jit(together)(x, y, state) if state_is == "traced" else jax.jit(lambda x, y: together(x, y, state))(x, y)
    )
    for mine, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_bits_equal(np.asarray(mine), np.asarray(theirs))
