"""Implementations in processes of their own: some things about a framework are settled when it is imported."""

import functools
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from magma_conformance.processes.worker import Lost, Worker
from magma_conformance.task import Implementation, Record, Task


class OtherProcess:
    """An implementation in another process, which starts with the first task.

    There is no time limit: a process that works is waited for. Where it dies or is stuck,
    `magma_conformance.processes.worker.Lost` is raised, and the next task starts another.

    Args:
        name: of the implementation.
        module: where ``local(*arguments)`` makes it.
        arguments: small and plain.
        environment: variables that are set before anything is imported there.
    """

    def __init__(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._start, self._environment = (module, arguments), environment
        self._worker: Worker | None = None

    def refuses(self, task: Task) -> str | None:
        """What the implementation says."""
        return self._ask("refuses", task)

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        return self._ask("run", task)

    def _ask(self, method: str, task: Task) -> Any:
        if self._worker is None or not self._worker.alive:  # ended, with all others, by whoever had done with them
            self._worker = Worker(self._environment)
        try:
            return self._worker.call(_answer, *self._start, method, task)
        except Lost:
            self._worker.end()
            self._worker = None
            raise


@functools.cache
def _implementation(module: str, arguments: tuple[str, ...]) -> Implementation:
    """Made by the first task, not when the process starts: its exceptions are answers."""
    return import_module(module).local(*arguments)


def _answer(module: str, arguments: tuple[str, ...], method: str, task: Task) -> Any:
    return getattr(_implementation(module, arguments), method)(task)
