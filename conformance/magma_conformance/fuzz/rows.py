"""The rows of a search: those of `magma-conformance run`, the oracle, the C port, and hyper-parameters as inputs."""

from functools import partial
from pathlib import Path

from magma_conformance.fuzz.hunt import Row
from magma_conformance.fuzz.independent import Oracle, c_port
from magma_conformance.fuzz.numbers_as_inputs import numbers_as_inputs
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.runner.jobs import open_implementation, open_mode
from magma_conformance.task import Implementation

VALUES = 12
"""Cases per compiled program."""

_NUMBERS = "-numbers"
_WITH_NUMBERS = {"torch": ["compile"], "jax": ["jit"], "tensorflow": ["graph", "xla"]}
_AT_ONCE = ("eager", "ddp", "fsdp2", "tensorflow-eager", "torch-eager")
"""Modes that compile nothing. Eager JAX compiles every operation for every shape."""


def rows(device: str, folder: Path, /) -> list[Row]:
    """All rows, those that compile nothing first.

    Args:
        device: of the frameworks.
        folder: where the C port is built.
    """
    found = [Row("c", "port", partial(c_port, folder)), Row("oracle", "scalar", Oracle)]
    modes = {name: names for name, (names, _) in BACKENDS.items()} | {name: x.modes for name, x in ADAPTERS.items()}
    for backend, names in modes.items():
        where = "cpu" if backend in ("numpy", "strict") else device
        for mode in names:
            values = 1 if mode in _AT_ONCE and backend != "jax" else VALUES
            open = partial(open_implementation, backend, mode, where)
            found.append(Row(backend, mode, open, values, device=where))
        for mode in _WITH_NUMBERS.get(backend, ()):
            numbers = partial(_open_numbers, backend, mode, where)
            found.append(Row(backend, mode + _NUMBERS, numbers, VALUES, vary=True, device=where))
    return sorted(found, key=lambda row: row.values)


def foreign(kind: str, target: str, /) -> Row:
    """The row of ``--impl`` or ``--exec``."""
    return Row(kind, target, partial(open_implementation, kind, target, "cpu"))


def _open_numbers(backend: str, mode: str, device: str) -> Implementation:
    return numbers_as_inputs(open_mode(backend, mode, device))
