"""Under `tf.distribute`, every replica has the bits of NumPy, which is given the sum of the replicas' gradients.

mirrored_worker.py makes what is compared here, in one process in which TensorFlow has three logical devices.
"""

import fcntl
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.task import Task

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import mirrored_worker as worker
from mirrored_worker import PROBLEMS, RATE, SHARES, STEPS, Record, Run

from magma_core.config import SEED
from magma_core.state_file.config import base_to_plain, rule_to_plain

pytestmark = pytest.mark.backends("tensorflow")

PATIENCE = 600  # seconds for the process

every_scenario = pytest.mark.parametrize("name", worker.SCENARIOS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run | str]:
    """What every scenario saw, or how it failed."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all of pytest's processes: the first starts what the others wait for
    seen, log = base / "mirrored.pickle", base / "mirrored.log"
    with (base / "mirrored.lock").open("w") as lock:
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


def gradients(run: Run, name: str, step: int) -> Record:
    """What the step is to see."""
    problem = PROBLEMS[run.problem]
    if run.kind == "fitted":
        return worker.fitted_gradients(problem, step)
    found = worker.whole(problem, step)
    if run.kind == "clipped":  # each replica's own, before they are added
        shares = SHARES[int(name.split()[1])]
        return {label: sum(np.clip(x * np.float32(n), -0.5, 0.5) for n in shares) for label, x in found.items()}
    return found


def reference(run: Run, name: str) -> list[Record]:
    """What magma_core on NumPy sees at every step, of the variables that there are in the scenario."""
    problem = PROBLEMS[run.problem]
    grads = [gradients(run, name, step) for step in range(1, STEPS + 1)]
    params = {label: value for label, value in worker.start(problem).items() if label in grads[0]}
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


@pytest.mark.parametrize("name", [name for name in worker.SCENARIOS if " graph " in name])
def test_a_step_is_traced_once(run: Run, name: str) -> None:
    assert run.traces == 1
