"""The table of backends, shared results, and derandomised Hypothesis."""

import fcntl
import importlib.util
import os
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its threads would spin on cores that others need

import pytest
from hypothesis import settings

from backends import BACKENDS, Backend, load_backend

# The same examples on every machine: a failure in CI is a failure here. Compilation makes any deadline flaky.
settings.register_profile("magma", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("magma")

# Without a framework there is nothing to test in its optimizers.
collect_ignore_glob = [f"{name}/*" for name in ("torch", "jax") if not importlib.util.find_spec(name)]


@pytest.fixture(scope="session", params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend in turn; ``parametrize("backend", ["jax"], indirect=True)`` asks for one."""
    return load_backend(request.param)


@pytest.fixture(scope="session")
def numpy_backend() -> Backend:
    """The reference."""
    return load_backend("numpy")


@pytest.fixture(scope="session")
def standard() -> Backend:
    """array-api-strict: what the standard says that a function does."""
    return load_backend("strict")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Any]], Any]:
    """``once(name, make)`` is ``make()``, of which one of pytest's processes leaves a pickle for the others."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    folder.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[], Any]) -> Any:
        file = folder / f"{name}.pickle"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                file.write_bytes(pickle.dumps(make()))
        return pickle.loads(file.read_bytes())

    return get


LEFT_OUT = "left out, as make test runs them: tests/keras once per backend, tests/trainers, Triton's interpreter"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many tests ran on each backend, as one that is not installed must not go unnoticed; what did not run."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        terminalreporter.write_line(LEFT_OUT)
    counts = {outcome: Counter[str]() for outcome in ("passed", "failed", "skipped")}
    for outcome, counter in counts.items():
        for report in terminalreporter.stats.get(outcome, []):
            parameters = report.nodeid.partition("[")[2].rstrip("]").split("-")
            counter.update(name for name in BACKENDS if name in parameters)
    for name in BACKENDS:
        line = ", ".join(f"{counter[name]} {outcome}" for outcome, counter in counts.items() if counter[name])
        if line:
            terminalreporter.write_line(f"{name:>10}: {line}")
