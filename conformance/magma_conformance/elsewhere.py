"""Implementations in processes of their own: some things about a framework are settled when it is imported."""

import functools
import os
from collections.abc import Mapping
from importlib import import_module
from multiprocessing import TimeoutError, get_context
from typing import Any

from magma_conformance.task import Implementation, Record, Task

_TIMEOUT = 600.0  # seconds for one task: a pool does not notice when its process is gone


class Elsewhere:
    """An implementation in another process, which starts with the first task.

    Args:
        name: of the implementation.
        module: where ``local(*arguments)`` makes it.
        arguments: small and plain.
        environment: variables that are set before anything is imported there.
    """

    def __init__(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._start = module, arguments, dict(environment or {})
        self._pool: Any = None

    def refuses(self, task: Task) -> str | None:
        """What the implementation says."""
        return self._ask(_refuses, task)

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        return self._ask(_run, task)

    def _ask(self, question: Any, task: Task) -> Any:
        if self._pool is None:
            # not a ProcessPoolExecutor: where this process is a worker of one, it would wait for its own worker to end
            self._pool = get_context("spawn").Pool(1, _prepare, self._start[2:])
        try:
            return self._pool.apply_async(question, (*self._start[:2], task)).get(_TIMEOUT)
        except TimeoutError:
            self._pool.terminate()  # else the next task would wait behind this one
            self._pool = None
            raise TimeoutError(f"{self.name}: no answer in {_TIMEOUT:.0f} s") from None


def _prepare(environment: Mapping[str, str]) -> None:
    os.environ.update(environment)


@functools.cache
def _implementation(module: str, arguments: tuple[str, ...]) -> Implementation:
    """Made by the first task, not when the process starts: its exceptions are answers."""
    return import_module(module).local(*arguments)


def _refuses(module: str, arguments: tuple[str, ...], task: Task) -> str | None:
    return _implementation(module, arguments).refuses(task)


def _run(module: str, arguments: tuple[str, ...], task: Task) -> list[Record]:
    return _implementation(module, arguments).run(task)
