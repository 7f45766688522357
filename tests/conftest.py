"""The table of backends that the tests run over, and Hypothesis without chance."""

import importlib.util
from collections import Counter
from typing import Any

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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests ran on each backend: a backend that is not installed must not go unnoticed."""
    counts = {outcome: Counter[str]() for outcome in ("passed", "failed", "skipped")}
    for outcome, counter in counts.items():
        for report in terminalreporter.stats.get(outcome, []):
            parameters = report.nodeid.partition("[")[2].rstrip("]").split("-")
            counter.update(name for name in BACKENDS if name in parameters)
    for name in BACKENDS:
        line = ", ".join(f"{counter[name]} {outcome}" for outcome, counter in counts.items() if counter[name])
        if line:
            terminalreporter.write_line(f"{name:>10}: {line}")
