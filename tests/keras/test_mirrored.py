"""Under `tf.distribute`, every replica has NumPy's bits for the sum of the replicas' gradients.

mirrored_scenarios.py makes the results, in a process with three logical TensorFlow devices.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_conformance.processes.worker import Worker
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.task import Task

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import mirrored_scenarios as scenarios
from mirrored_scenarios import PROBLEMS, RATE, SHARES, STEPS, Record, Run

from magma_core.config import SEED
from magma_core.state_file.config import base_to_plain, rule_to_plain

pytestmark = pytest.mark.backends("tensorflow")

every_scenario = pytest.mark.parametrize("name", scenarios.SCENARIOS)


@pytest.fixture(scope="module")
def process() -> Iterator[Worker]:
    """Where scenarios run: devices are settled when TensorFlow first looks for them."""
    worker = Worker(scenarios.ENVIRONMENT)
    yield worker
    worker.end()


@pytest.fixture
def run(once: Callable[..., Run], process: Worker, name: str) -> Run:
    """What the scenario ``name`` saw."""
    return once(f"mirrored {name}", lambda: process.call(scenarios.solve, name))


def gradients(run: Run, name: str, step: int) -> Record:
    """What the step is to see."""
    problem = PROBLEMS[run.problem]
    if run.kind == "fitted":
        return scenarios.fitted_gradients(problem, step)
    found = scenarios.whole(problem, step)
    if run.kind == "clipped":  # each replica's own, before they are added
        shares = SHARES[int(name.split()[1])]
        return {label: sum(np.clip(x * np.float32(n), -0.5, 0.5) for n in shares) for label, x in found.items()}
    return found


def reference(run: Run, name: str) -> list[Record]:
    """What magma_core on NumPy sees at every step, of the variables that there are in the scenario."""
    problem = PROBLEMS[run.problem]
    grads = [gradients(run, name, step) for step in range(1, STEPS + 1)]
    params = {label: value for label, value in scenarios.start(problem).items() if label in grads[0]}
    axes = {label: problem.of(label) for label in params}
    plain = base_to_plain(problem.base), rule_to_plain(problem.rule)
    task = Task(name, params, grads, [RATE] * STEPS, *plain, axes, SEED)
    return open_implementation("numpy", "eager", "cpu").run(task)


@every_scenario
def test_every_step_has_the_bits_of_numpy(run: Run, name: str) -> None:
    expected = reference(run, name)
    assert len(run.steps) == len(expected) == STEPS
    for step, (seen, record) in enumerate(zip(run.steps, expected, strict=True), start=1):
        kept = {label for label in record if label.rpartition("/")[2] in ("param", "mu", "nu", "score")}
        assert seen.keys() == kept
        for label in kept:
            assert_bits_equal(seen[label], record[label], f"step {step}, {label}")


@every_scenario
def test_replicas_agree(run: Run, name: str) -> None:
    """On everything that the optimizer keeps, Keras's averages and accumulators too, and there are as many as asked."""
    assert run.apart == []
    places = [
        int(word) if word.isdigit() else 1
        for word in name.split()
        if word.isdigit() or word in ("one", "first", "none")
    ]
    assert run.copies == set(places)


@pytest.mark.parametrize("name", [name for name in scenarios.SCENARIOS if " graph " in name])
def test_a_step_is_traced_once(run: Run, name: str) -> None:
    assert run.traces == 1
