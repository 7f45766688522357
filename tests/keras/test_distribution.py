"""Under `keras.distribution` on JAX, a step has the bits of a step on one device.

keras_distribution_scenarios.py makes the results, in a process with eight virtual devices.
"""

from collections.abc import Callable, Iterator

import keras_distribution_scenarios as scenarios
import numpy as np
import pytest
from keras_distribution_scenarios import PROBLEMS, RATE, STEPS, Record, Run
from magma_conformance.bits import assert_bits_equal
from magma_conformance.processes.worker import Worker
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.task import Task

from magma_core.config import SEED
from magma_core.state_file.config import base_to_plain, rule_to_plain

pytestmark = pytest.mark.backends("jax")

every_scenario = pytest.mark.parametrize("name", scenarios.SCENARIOS)


@pytest.fixture(scope="module")
def process() -> Iterator[Worker]:
    """Where scenarios run: devices are settled when JAX is imported."""
    worker = Worker(scenarios.ENVIRONMENT)
    yield worker
    worker.end()


@pytest.fixture
def run(once: Callable[..., Run], process: Worker, name: str) -> Run:
    """What the scenario ``name`` saw."""
    return once(f"distribution {name}", lambda: process.call(scenarios.solve, name))


def reference(problem_name: str, fitted: bool) -> list[Record]:
    """What magma_core on NumPy sees at every step, of the variables that there are in the scenario."""
    problem = PROBLEMS[problem_name]
    make = scenarios.fitted_gradients if fitted else scenarios.gradients
    grads = [make(problem, step) for step in range(1, STEPS + 1)]
    params = {name: value for name, value in scenarios.start(problem).items() if name in grads[0]}
    axes = {name: problem.of(name) for name in params}
    plain = base_to_plain(problem.base), rule_to_plain(problem.rule)
    task = Task(f"{problem_name} {fitted}", params, grads, [RATE] * STEPS, *plain, axes, SEED)
    with np.errstate(all="ignore"):
        return open_implementation("numpy", "eager", "cpu").run(task)


@every_scenario
def test_every_step_has_the_bits_of_numpy(run: Run, name: str) -> None:
    expected = reference(run.problem, run.fitted)
    assert len(run.steps) == len(expected) == STEPS
    for step, (seen, record) in enumerate(zip(run.steps, expected, strict=True), start=1):
        kept = {label for label in record if label.rpartition("/")[2] in ("param", "mu", "nu", "score")}
        assert seen.keys() == kept
        for label in kept:
            assert_bits_equal(seen[label], record[label], f"step {step}, {label}")


@every_scenario
def test_moments_lie_like_parameters_and_scores_like_blocks(run: Run, name: str) -> None:
    """Also where a pattern of the layout map is found in the names of the optimizer's variables."""
    assert run.misplaced == []


@every_scenario
def test_the_state_is_spread(run: Run, name: str) -> None:
    """Otherwise nothing would have been tested; with parallel data all have everything."""
    assert (run.spread > 0) == (" data " not in name)


@pytest.mark.parametrize("name", [name for name in scenarios.SCENARIOS if name.startswith("jit")])
def test_a_step_is_compiled_once(run: Run, name: str) -> None:
    """State that came back lying elsewhere would be compiled for anew."""
    assert run.made_again == 1
