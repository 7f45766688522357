"""Runs tasks through implementations and compares every array after every step with the reference.

The reference is magma_core on NumPy. Each pair of a mode and a case is a job of its own, so that jobs can run in
several processes.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from typing import NamedTuple, Protocol

from magma_conformance.adapters import ADAPTERS
from magma_conformance.core import implementation
from magma_conformance.digest import digest
from magma_conformance.judging import judge_vectors
from magma_conformance.machine import cores
from magma_conformance.modes import BACKENDS, Mode
from magma_conformance.plugged import KINDS, open_plugged
from magma_conformance.result import Mismatch, Result, Status, compare
from magma_conformance.task import Implementation, Record, Task
from magma_conformance.vectors import Vector

_COST = {
    "torch compile": 24,
    "magma_keras torch-compile": 16,
    "magma_torch compile": 12,
    "jax eager": 10,
    "magma_jax sharded": 9,
    "magma_jax jit": 7,
    "magma_jax kernels": 7,
    "magma_jax scan": 6,
    "magma_jax apply": 4,
    "jax jit": 6,
    "jax scan": 5,
    "tensorflow xla": 5,
    "magma_keras tensorflow-xla": 5,
    "magma_keras jax-eager": 5,
    "tensorflow graph": 4,
    "tensorflow eager": 3,
}
"""How long the cases of a mode take, roughly and in relation; compiling is nearly all of it."""

_WHOLE = ("magma_torch", *KINDS)
"""Whose modes are not divided: a case finds what others compiled, or nothing is known of them."""

_GRACE = 60  # seconds for a job that was begun in time


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
    except Exception as error:  # whatever an implementation raises, the run goes on
        return result("failed", f"{type(error).__name__}: {error}")
    return result("equal" if mismatch is None else "different", str(mismatch or ""), mismatch, found)


def run_case(candidate: Implementation, case: Case) -> Result:
    """One case through one implementation."""
    task = case.task()

    def follow() -> tuple[Mismatch | None, str]:
        records = candidate.run(task)
        return compare(records, reference_records(case)), digest(records)

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


class AnyJob(Protocol):
    """What can be run in another process."""

    @property
    def backend(self) -> str:
        """The framework."""

    @property
    def mode(self) -> str:
        """Its mode."""

    @property
    def size(self) -> int:
        """How many verdicts there will be."""

    def run(self) -> list[Result]:
        """The verdicts."""

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        """The verdicts where they were not computed."""


def run_jobs(jobs: Sequence[AnyJob], processes: int, seconds: float | None = None) -> Iterator[Result]:
    """All jobs, as their results come in; in this process if ``processes`` is 1.

    Args:
        jobs: in the order in which each mode is to take them.
        processes: how many at a time.
        seconds: after so many no job is begun, and those that are left are reported as not run; a minute later nobody
            waits any more for one that was. None for no limit.
    """
    end = None if seconds is None else _End(time.time() + seconds, f"{seconds:g} seconds were over")
    lanes = _lanes(jobs, processes)
    if len(lanes) <= 1:
        for job in jobs:
            yield from _run(job, end)
        return
    setting = _limit_threads, (max(1, cores() // len(lanes)),)  # more threads would wait for each other
    with ExitStack() as stack:
        waiting: dict[Future[list[Result]], AnyJob] = {}
        for lane in lanes:
            pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), *setting))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            waiting |= {pool.submit(_run, job, end): job for job in lane}
        try:
            for future in as_completed(list(waiting), None if seconds is None else seconds + _GRACE):
                job = waiting.pop(future)
                try:
                    yield from future.result()
                except BrokenProcessPool:  # the other jobs of its lane will say so too
                    yield from job.unanswered("failed", "its process died")
        except TimeoutError:
            for future, job in waiting.items():
                begun = future.running()
                yield from job.unanswered("failed" if begun else "not run", f"no answer in {seconds:g} + {_GRACE} s")
            for child in active_children():
                child.kill()


class _End(NamedTuple):
    """When no job is begun any more: a time of the clock that all processes share, and what is said then."""

    time: float
    reason: str


def _lanes(jobs: Sequence[AnyJob], processes: int) -> list[list[AnyJob]]:
    """The modes dealt to processes, the slowest first, each to the process that has least to do.

    The jobs of a mode stay in one process, so that what it compiled once serves its later cases; but most compile a
    program for each case anyway, and are divided where there are processes enough.
    """
    by_mode: dict[str, list[AnyJob]] = {}
    for job in jobs:
        by_mode.setdefault(f"{job.backend} {job.mode}", []).append(job)
    parts = [(float(_COST.get(mode, 1)), own) for mode, own in by_mode.items()]
    while len(parts) < processes:
        divisible = [part for part in parts if part[0] > 1 and len(part[1]) > 1 and part[1][0].backend not in _WHOLE]
        if not divisible:
            break
        largest = max(divisible, key=lambda part: part[0])
        parts.remove(largest)
        parts += [(largest[0] / 2, largest[1][i::2]) for i in range(2)]
    lanes: list[list[AnyJob]] = [[] for _ in range(processes)]
    load = [0.0] * processes
    for cost, own in sorted(parts, key=lambda part: -part[0]):
        least = load.index(min(load))
        lanes[least] += own
        load[least] += cost
    return [lane for lane in lanes if lane]


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _run(job: AnyJob, end: _End | None) -> list[Result]:
    if end is not None and time.time() > end.time:
        return job.unanswered("not run", end.reason)
    return job.run()


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
