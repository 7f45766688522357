"""The matrix rows of `magma_jax` run, and detect faults."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from magma_conformance.cases.pairwise import Case, pairwise
from magma_conformance.implementations import jax_adapter
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.runner.jobs import open_implementation, run_case

CASE = Case("adamw", "magma", "matrix", "rows", "float32", "s0=0.5", "after", "none", "default")
MODES = [mode for mode in ADAPTERS["magma_jax"].modes if mode != "kernels"]  # of CUDA alone


@pytest.mark.parametrize("mode", MODES)
def test_mode_is_equal_to_the_reference(mode):
    implementation = open_implementation("magma_jax", mode, "cpu")
    cases = (case for case in pairwise() if case.rule == "magma" and not implementation.refuses(case.task()))
    result = run_case(implementation, next(cases))
    assert (result.status, result.steps) == ("equal", 12), result.reason


@pytest.mark.parametrize("mode", ["jit", "apply", "scan", "sharded"])
def test_steps_that_optax_cannot_count_are_refused(mode):
    implementation, task = open_implementation("magma_jax", mode, "cpu"), CASE.task()
    fits = replace(task, params={"w": np.ones((12, 20), np.float32)}, first_step=2**31 - len(task.gradients))
    assert implementation.refuses(fits) is None
    assert "int32" in implementation.refuses(replace(fits, first_step=fits.first_step + 1))


@pytest.mark.parametrize("mode", ["jit", "scan"])
def test_a_wrong_optimizer_is_found(monkeypatch, mode):
    """The smallest step that is not the rule's: one parameter off by one unit in the last place."""
    right = jax_adapter.by_rule

    def wrong(*arguments, **options):
        optimizer = right(*arguments, **options)
        step = optimizer.step

        def off(params, grads, state):
            params, state = step(params, grads, state)
            bits = jax.lax.bitcast_convert_type(params["w"], np.int32).at[0, 0].add(1)
            return {"w": jax.lax.bitcast_convert_type(bits, np.float32)}, state

        optimizer.step = off
        return optimizer

    monkeypatch.setattr(jax_adapter, "by_rule", wrong)
    result = run_case(open_implementation("magma_jax", mode, "cpu"), CASE)
    assert (result.status, result.mismatch.step, result.mismatch.array) == ("different", 1, "w/param")


def test_what_no_addition_can_give_is_not_asked_of_one():
    cases = {reason: case for case in pairwise() if (reason := jax_adapter.Applied("", None).refuses(case.task()))}
    assert set(cases) == {
        "dense decay is not an update to add",
        "subnormal parameters are lost in an addition",
    }


def test_sharded_is_for_the_cpu():
    with pytest.raises(LookupError, match="virtual devices"):
        ADAPTERS["magma_jax"].open("sharded", "cuda")
