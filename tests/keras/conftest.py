"""Settings that must precede the import of Keras. KERAS_BACKEND selects the backend.

`make test-keras` runs the folder once per backend.
"""

import os
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with suppress(ModuleNotFoundError):
    import_module("torch")  # it and TensorFlow live in one process only if it comes first

keras = pytest.importorskip("keras", reason="Keras is not installed")


@pytest.fixture(autouse=True)
def _a_session_of_its_own() -> None:
    """Names of layers are counted from the start in every test, and chance is not chance."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    """Inductor imports what torch has deprecated, and Keras's variables have an ``__array__`` of before NumPy 2."""
    config.addinivalue_line("filterwarnings", "ignore:.*script_method:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning")


def pytest_report_header() -> str:
    """Which of the three runs this is."""
    return f"Keras {keras.__version__} on {keras.backend.backend()}"


def pytest_collection_modifyitems(items: Any) -> None:
    """``@pytest.mark.backends("jax", …)`` is for tests of what the other backends do not have."""
    own = keras.backend.backend()
    for item in items:
        for mark in item.iter_markers("backends"):
            if own not in mark.args:
                item.add_marker(pytest.mark.skip(reason=f"of the backend {', '.join(mark.args)} alone, not of {own}"))
