"""On JAX, values computed in the program before ``stateless_apply`` are rounded before they enter."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_keras import MaskedOptimizer

from magma_core import damping
from magma_core.config import BASES

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy
pytestmark = pytest.mark.backends("jax")

SHAPE = (24, 20)
STATE_STARTS = 2  # behind iteration and learning rate


def fading(state: list[Any]) -> list[Any]:
    return [x if i < STATE_STARTS else x * 0.37 for i, x in enumerate(state)]


PARTS: dict[str, Callable[..., Any]] = {
    "theta": lambda q, y, state: (q * 0.3, y, state),
    "products": lambda q, y, state: (q * y, y * q, state),
    "gradient": lambda q, y, state: (q, y * 0.7, state),
    "state": lambda q, y, state: (q, y, fading(state)),
    "conversion": lambda q, y, state: (q, (y.astype(jnp.float32) * 0.7).astype(y.dtype), state),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", BASES)
def test_bits_are_those_of_separate_programs(base: str, dtype: str) -> None:
    optimizer = MaskedOptimizer(0.05, damping(), base)
    optimizer.build([keras.Variable(np.zeros(SHAPE), dtype=dtype, name="w")])
    rng = np.random.default_rng(0)
    q, y = (jnp.asarray(rng.standard_normal(SHAPE, dtype=np.float32), dtype) for _ in range(2))

    def step(q: Any, y: Any, state: Any) -> Any:
        return optimizer.stateless_apply(state, [y], [q])

    alone = jax.jit(step)
    _, state = alone(q, y * 0.5, [x.value for x in optimizer.variables])  # so that the state says something
    for name, part in PARTS.items():
        expected = alone(*part(q, y, list(state)))  # eagerly: each operation is a program of its own
        together = jax.jit(lambda q, y, state, part=part: step(*part(q, y, state)))(q, y, list(state))
        for mine, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
            assert_bits_equal(np.asarray(mine), np.asarray(theirs), name)
