"""Shared by the tests of the relay."""

import pytest
from magma_conformance.relay import run
from magma_conformance.relay.plan import RelayPlan

ABSENT = run.missing()
needs_torch = pytest.mark.skipif(any("torch" in line for line in ABSENT), reason="torch is not installed")
needs_jax = pytest.mark.skipif(any("jax" in line for line in ABSENT), reason="jax or optax is not installed")
TINY = RelayPlan(steps=2, width=16, layers=1, heads=2, batch=2, length=12)


def nothing(*step: object) -> None:
    """Who does not care what is going on."""
