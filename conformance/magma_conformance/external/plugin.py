"""Opens external implementations: a factory in Python, or a program."""

import importlib
import os
import shlex
import shutil
import sys
from typing import Any

from magma_conformance.external.program import Program
from magma_conformance.task import Arrays, Implementation, Record, Task, WithParts

KINDS = ("impl", "exec")
"""The options that name them: ``--impl pkg.mod:factory``, ``--exec ./my-port``."""


class Plugged:
    """An external implementation under the name that the user gave."""

    def __init__(self, name: str, implementation: Implementation) -> None:
        self.name, self._own = name, implementation

    def refuses(self, task: Task) -> str | None:
        """The implementation's own reason."""
        return self._own.refuses(task)

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        return self._own.run(task)

    def part(self, kind: str, inputs: Arrays) -> Arrays:
        """One part of a step, if it has parts."""
        if not isinstance(self._own, WithParts):
            raise NotImplementedError("no parts of a step")
        return self._own.part(kind, inputs)


def open_plugged(kind: str, target: str, /) -> Implementation:
    """The implementation that ``--impl`` or ``--exec`` names.

    Args:
        kind: one of `KINDS`.
        target: ``pkg.mod:factory``, also searched in the working directory; or a command line.

    Raises:
        LookupError: if the module, factory or program does not exist.
        TypeError: if the factory's result lacks a member of `magma_conformance.task.Implementation`.
    """
    return _factory(target) if kind == "impl" else _program(target)


def _factory(target: str) -> Plugged:
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise LookupError(f"--impl: must be pkg.mod:factory, got {target!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory: Any = importlib.import_module(module)
    except (ModuleNotFoundError, TypeError) as error:  # TypeError: a relative name
        raise LookupError(f"--impl {target}: {error}; it must be installed, or lie in the working directory") from error
    for part in attribute.split("."):
        if not hasattr(factory, part):
            raise LookupError(f"--impl: {module} has no {attribute}")
        factory = getattr(factory, part)
    made = factory()
    if missing := [member for member in ("name", "refuses", "run") if not hasattr(made, member)]:
        raise TypeError(f"--impl: what {target} makes has no {missing[0]}: see magma_conformance.task.Implementation")
    return Plugged(f"impl {target}", made)


def _program(target: str) -> Program:
    if os.name != "posix":
        raise LookupError(f"--exec: {target!r} would need process groups, which {os.name} has not; use WSL")
    try:
        command = shlex.split(target)
    except ValueError as error:
        raise LookupError(f"--exec: {target!r} is no command line: {error}") from None
    if not command or shutil.which(command[0]) is None:
        word = command[0] if command else ""
        remedy = "give its path, as in ./my-port"
        if os.path.isfile(word):
            remedy = f"say ./{word}" if os.sep not in word and os.access(word, os.X_OK) else f"say chmod +x {word}"
        raise LookupError(f"--exec: no program {word!r} that can be executed: {remedy}, or 'node my-port.js'")
    return Program(command, f"exec {target}")
