"""Runs tasks through implementations and compares every array after every step with the reference.

The reference is magma_core on NumPy. Each pair of a mode and a case is a job of its own, so that jobs can run in
several processes.
"""

import functools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from magma_conformance.external.plugin import KINDS, open_plugged
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.implementations.core import implementation
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.processes.worker import Lost
from magma_conformance.runner.judge_vectors import judge_vectors
from magma_conformance.runner.lanes import AnyJob, End, deal, run_lanes
from magma_conformance.runner.result import Mismatch, Result, Status, compare
from magma_conformance.task import Implementation, Record, Task
from magma_conformance.vectors import Vector
from magma_conformance.wire.digest import digest


class Case(Protocol):
    """A task with a name."""

    def __hash__(self) -> int:
        """The reference's records are kept by it."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def column(self) -> str:
        """Where it stands in the matrix."""

    def task(self) -> Task:
        """The task, the same on every machine."""


def judge(
    candidate: Implementation,
    task: Task,
    follow: Callable[[], tuple[Mismatch | None, str]],
    *,
    case: str,
    column: str,
    steps: int,
) -> Result:
    """A verdict in any event.

    Args:
        candidate: the implementation under test.
        task: what it may refuse.
        follow: runs the candidate and compares; gives what differs and the digest of what was computed, and an
            exception is a verdict too.
        case: the name of the case.
        column: where it stands in the matrix.
        steps: how many steps ``follow`` compares.
    """
    started = time.perf_counter()

    def result(status: Status, reason: str = "", mismatch: Mismatch | None = None, digest: str = "") -> Result:
        seconds = time.perf_counter() - started
        return Result(candidate.name, case, column, status, seconds, steps, reason, mismatch, digest=digest)

    try:
        if reason := candidate.refuses(task):
            return result("not run", reason)
        mismatch, found = follow()
    except NotImplementedError as error:
        return result("not run", str(error) or "not implemented")
    except Lost as error:
        return result("failed", str(error))
    except Exception as error:  # whatever an implementation raises, the run goes on
        return result("failed", f"{type(error).__name__}: {error}")
    return result("equal" if mismatch is None else "different", str(mismatch or ""), mismatch, found)


def run_case(candidate: Implementation, case: Case) -> Result:
    """One case through one implementation, compared with magma_core on NumPy."""
    return run_task(candidate, case, case.task(), lambda: reference_records(case))


def run_task(candidate: Implementation, case: Case, task: Task, expected: Callable[[], Sequence[Record]]) -> Result:
    """A task of a case through one implementation.

    Args:
        candidate: the implementation under test.
        case: what the verdict is about.
        task: the case's own, or one that was made of it.
        expected: what it is compared with.
    """

    def follow() -> tuple[Mismatch | None, str]:
        records = candidate.run(task)
        return compare(records, expected(), task.first_step), digest(records)

    return judge(candidate, task, follow, case=case.id, column=case.column, steps=len(task.gradients))


@dataclass(frozen=True)
class Job:
    """One case in one mode, small enough to be sent to another process."""

    backend: str
    mode: str
    device: str
    case: Case
    size = 1

    def run(self) -> list[Result]:
        """The verdict, computed in this process."""
        return [run_case(open_implementation(self.backend, self.mode, self.device), self.case)]

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        """The verdict where it was not computed."""
        return [Result(f"{self.backend} {self.mode}", self.case.id, self.case.column, status, 0.0, reason=reason)]


@dataclass(frozen=True)
class VectorJob:
    """Some vectors in one mode: those that go into one request, where the implementation is a program."""

    backend: str
    mode: str
    device: str
    vectors: tuple[Vector, ...]

    @property
    def size(self) -> int:
        """How many verdicts there will be."""
        return len(self.vectors)

    def run(self) -> list[Result]:
        """The verdicts, computed in this process."""
        return list(judge_vectors(open_implementation(self.backend, self.mode, self.device), self.vectors))

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        """The verdicts where they were not computed."""
        mode = f"{self.backend} {self.mode}"
        return [
            Result(mode, vector.name, vector.column, status, 0.0, reason=reason, flags=vector.flags)
            for vector in self.vectors
        ]


def run_jobs(
    jobs: Sequence[AnyJob],
    processes: int,
    seconds: float | None = None,
    working: Callable[[Sequence[AnyJob]], Any] = lambda at_hand: None,
) -> Generator[Result, None, None]:
    """All jobs, as their results come in; in this process if ``processes`` is 1.

    Args:
        jobs: in the order in which each mode is to take them.
        processes: how many at a time.
        seconds: after so many no job is begun, and those that are left are reported as not run; in other processes a
            minute later nobody waits any more for one that was, and it is not run either. None for no limit.
        working: told of the jobs that are being done, whenever one is begun.
    """
    end = None if seconds is None else End(time.monotonic() + seconds, seconds)
    lanes = deal(jobs, processes)
    if len(lanes) > 1:
        yield from run_lanes(lanes, end, working)
        return
    for job in jobs:
        if end is not None and time.monotonic() > end.time:
            yield from job.unanswered("not run", end.reason)
        else:
            working([job])
            yield from job.run()


@functools.cache
def open_implementation(backend: str, name: str, device: str) -> Implementation:
    """magma_core in one mode of a backend, one of our adapters in one of its modes, or what was plugged in."""
    if backend in KINDS:
        return open_plugged(backend, name)
    if backend in ADAPTERS:
        return ADAPTERS[backend].open(name, device)
    return implementation(open_mode(backend, name, device))


@functools.cache
def open_mode(backend: str, name: str, device: str) -> Mode:
    """One mode of a backend; ImportError if it is not installed, LookupError if it has no such device."""
    return next(mode for mode in BACKENDS[backend][1](device) if mode.name == name)


@functools.cache
def reference_records(case: Case) -> list[Record]:
    """What NumPy computes for ``case``."""
    return open_implementation("numpy", "eager", "cpu").run(case.task())
