"""Runs tasks through implementations and compares every array after every step with the reference.

The reference is magma_core on NumPy. Each pair of mode and case is its own job, so that jobs can run in several
processes.
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
        """The reference's records are cached by it."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def column(self) -> str:
        """Its column in the matrix."""

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
    """Return a verdict in any event.

    Args:
        candidate: the implementation under test.
        task: the task, which the candidate may refuse.
        follow: runs the candidate and compares; returns the difference, if any, and the digest of the results. An
            exception is a verdict too.
        case: the name of the case.
        column: its column in the matrix.
        steps: number of steps that ``follow`` compares.
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
    """Run one case through one implementation, compared with magma_core on NumPy."""
    return run_task(candidate, case, case.task(), lambda: reference_records(case))


def run_task(candidate: Implementation, case: Case, task: Task, expected: Callable[[], Sequence[Record]]) -> Result:
    """Run a case's task through one implementation.

    Args:
        candidate: the implementation under test.
        case: the case that the verdict names.
        task: the case's own, or one derived from it.
        expected: returns the records to compare with.
    """

    def follow() -> tuple[Mismatch | None, str]:
        records = candidate.run(task)
        return compare(records, expected(), task.first_step), digest(records)

    return judge(candidate, task, follow, case=case.id, column=case.column, steps=len(task.gradients))


@dataclass(frozen=True)
class Job:
    """One case in one mode, small enough to send to another process."""

    backend: str
    mode: str
    device: str
    case: Case
    size = 1

    def run(self) -> list[Result]:
        """The verdict, computed in this process."""
        return [run_case(open_implementation(self.backend, self.mode, self.device), self.case)]

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        """The verdict when it was not computed."""
        return [Result(f"{self.backend} {self.mode}", self.case.id, self.case.column, status, 0.0, reason=reason)]


@dataclass(frozen=True)
class VectorJob:
    """Some vectors in one mode; an external program gets them in one request."""

    backend: str
    mode: str
    device: str
    vectors: tuple[Vector, ...]

    @property
    def size(self) -> int:
        """The number of verdicts."""
        return len(self.vectors)

    def run(self) -> list[Result]:
        """The verdicts, computed in this process."""
        return list(judge_vectors(open_implementation(self.backend, self.mode, self.device), self.vectors))

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        """The verdicts when they were not computed."""
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
    """Run all jobs, in this process if ``processes`` is 1, and yield results as they come in.

    Args:
        jobs: in order, for each mode.
        processes: how many at a time.
        seconds: no job starts after this long; the rest are reported as not run. Jobs that other processes have not
            finished a minute later are not run either. None for no limit.
        working: called with the jobs in progress whenever one starts.
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
    """magma_core or an adapter of ours in one of its modes, or an external implementation."""
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
    """NumPy's records for ``case``."""
    return open_implementation("numpy", "eager", "cpu").run(case.task())
