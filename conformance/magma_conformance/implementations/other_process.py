"""Implementations in their own processes, for settings that a framework fixes at import."""

import functools
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from magma_conformance.processes.worker import Lost, Worker
from magma_conformance.task import Implementation, Record, Task


class OtherProcess:
    """An implementation in another process, which starts with the first task.

    There is no time limit while the process works. If it dies or is stuck, `run` raises
    `magma_conformance.processes.worker.Lost`, and the next task starts another process.

    Args:
        name: of the implementation.
        module: has ``local(*arguments)``, which makes it.
        arguments: small and plain.
        environment: variables set in the process before any import.
    """

    def __init__(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._start, self._environment = (module, arguments), environment
        self._worker: Worker | None = None

    def refuses(self, task: Task) -> str | None:
        """The implementation's own reason."""
        return self._ask("refuses", task)

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        return self._ask("run", task)

    def _ask(self, method: str, task: Task) -> Any:
        if self._worker is None or not self._worker.alive:  # the process may have been ended with all others
            self._worker = Worker(self._environment)
        try:
            return self._worker.call(_answer, *self._start, method, task)
        except Lost:
            self._worker.end()
            self._worker = None
            raise


@functools.cache
def _implementation(module: str, arguments: tuple[str, ...]) -> Implementation:
    """Made by the first task, not at process start, so that exceptions become answers."""
    return import_module(module).local(*arguments)


def _answer(module: str, arguments: tuple[str, ...], method: str, task: Task) -> Any:
    return getattr(_implementation(module, arguments), method)(task)
