"""The table of backends that the tests run over."""

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""The parameter formats of the contract."""


@dataclass(frozen=True)
class Backend:
    """One row of the table: a namespace, and the way in and out of it for NumPy arrays, bit for bit."""

    name: str
    xp: ModuleType
    convert: Callable[[np.ndarray], Any]
    to_numpy: Callable[[Any], np.ndarray]

    def from_numpy(self, x: Any) -> Any:
        """A copy, so that a test sees whether the original was written to."""
        with self.xp.scope():  # JAX has 64-bit integers and floats only there
            return self.convert(np.array(x))

    @property
    def formats(self) -> list[str]:
        """The parameter formats that this namespace has; the standard itself has no half precision."""
        return [kind for kind in NUMPY_DTYPES if getattr(self.xp, kind, None) is not None]

    def numpy_dtype(self, kind: str) -> np.dtype:
        """NumPy's dtype for a parameter format."""
        return NUMPY_DTYPES[kind]

    def __repr__(self) -> str:
        return self.name


def _numpy() -> Backend:
    return Backend("numpy", importlib.import_module("magma_numpy.namespace"), np.asarray, np.asarray)


def _strict() -> Backend:
    xp = importlib.import_module("magma_conformance.implementations.strict")
    return Backend("strict", xp, xp.asarray, np.asarray)


def _torch() -> Backend:
    xp = importlib.import_module("magma_torch.namespace")
    torch = importlib.import_module("torch")

    # torch and NumPy do not know each other's bfloat16, so the bits travel as integers
    def convert(x: np.ndarray) -> Any:
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    def to_numpy(x: Any) -> np.ndarray:
        if x.dtype == torch.bfloat16:
            return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()

    return Backend("torch", xp, convert, to_numpy)


def _jax() -> Backend:
    xp = importlib.import_module("magma_jax.namespace")
    return Backend("jax", xp, importlib.import_module("jax.numpy").array, np.asarray)


def _tensorflow() -> Backend:
    with suppress(ModuleNotFoundError):
        importlib.import_module("torch")  # the two live in one process only if torch comes first
    xp = importlib.import_module("magma_tensorflow.namespace")
    tf = importlib.import_module("tensorflow")
    return Backend("tensorflow", xp, tf.convert_to_tensor, lambda x: x.numpy())


BACKENDS = {"numpy": _numpy, "strict": _strict, "torch": _torch, "jax": _jax, "tensorflow": _tensorflow}


def load_backend(name: str) -> Backend:
    """A row of the table; skips the test where the framework is not installed."""
    try:
        return BACKENDS[name]()
    except ImportError as error:
        pytest.skip(str(error))
