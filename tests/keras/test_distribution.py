"""Under `keras.distribution`, on JAX, a step has the bits that it has on one device.

keras_distribution_worker.py makes what is compared here, in one process with eight virtual devices.
"""

import fcntl
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import keras_distribution_worker as worker
import numpy as np
import pytest
from keras_distribution_worker import PROBLEMS, RATE, STEPS, Record, Run
from magma_conformance.bits import assert_bits_equal
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.task import Task

from magma_core.config import SEED
from magma_core.state_file.config import base_to_plain, rule_to_plain

pytestmark = pytest.mark.backends("jax")

PATIENCE = 600  # seconds for the process

every_scenario = pytest.mark.parametrize("name", worker.SCENARIOS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run | str]:
    """What every scenario saw, or how it failed."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all of pytest's processes: the first starts what the others wait for
    seen, log = base / "keras_distribution.pickle", base / "keras_distribution.log"
    with (base / "keras_distribution.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            _start(seen, log)
    if not seen.exists():
        pytest.fail("the process failed:\n" + log.read_text()[-6000:])
    found = pickle.loads(seen.read_bytes())
    return {name: one if isinstance(one, str) else Run(**one) for name, one in found.items()}


def _start(seen: Path, log: Path) -> None:
    with log.open("w") as output:
        command = [sys.executable, "-W", "error", worker.__file__, str(seen)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            output.write(f"\nnot done in {PATIENCE} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def run(runs: dict[str, Run | str], name: str) -> Run:
    """That of the scenario ``name``."""
    one = runs[name]
    return pytest.fail(one) if isinstance(one, str) else one


def reference(problem_name: str, fitted: bool) -> list[Record]:
    """What magma_core on NumPy sees at every step, of the variables that there are in the scenario."""
    problem = PROBLEMS[problem_name]
    make = worker.fitted_gradients if fitted else worker.gradients
    grads = [make(problem, step) for step in range(1, STEPS + 1)]
    params = {name: value for name, value in worker.start(problem).items() if name in grads[0]}
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


@pytest.mark.parametrize("name", [name for name in worker.SCENARIOS if name.startswith("jit")])
def test_a_step_is_compiled_once(run: Run, name: str) -> None:
    """State that came back lying elsewhere would be compiled for anew."""
    assert run.made_again == 1
