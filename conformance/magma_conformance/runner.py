"""Runs tasks through implementations and compares every array after every step with the reference.

The reference is magma_core on NumPy. Each pair of a mode and a case is a job of its own, so that jobs can run in
several processes.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

from magma_conformance.adapters import ADAPTERS
from magma_conformance.cases import Case
from magma_conformance.core import implementation
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
    "jax jit": 6,
    "jax scan": 5,
    "tensorflow xla": 5,
    "magma_keras tensorflow-xla": 5,
    "magma_keras jax-eager": 5,
    "tensorflow graph": 4,
    "tensorflow eager": 3,
}
"""How long the cases of a mode take, roughly and in relation; compiling is nearly all of it."""


def judge(
    candidate: Implementation, task: Task, follow: Callable[[], Mismatch | None], *, case: str, column: str, steps: int
) -> Result:
    """A verdict in any event.

    Args:
        candidate: the implementation under test.
        task: what it may refuse.
        follow: runs the candidate and compares; an exception is a verdict too.
        case: the name of the case.
        column: where it stands in the matrix.
        steps: how many steps ``follow`` compares.
    """
    started = time.perf_counter()

    def result(status: Status, reason: str = "", mismatch: Mismatch | None = None) -> Result:
        seconds = time.perf_counter() - started
        return Result(candidate.name, case, column, status, seconds, steps, reason, mismatch)

    try:
        if reason := candidate.refuses(task):
            return result("not run", reason)
        mismatch = follow()
    except NotImplementedError as error:
        return result("not run", str(error) or "not implemented")
    except Exception as error:  # whatever an implementation raises, the run goes on
        return result("failed", f"{type(error).__name__}: {error}")
    return result("equal") if mismatch is None else result("different", str(mismatch), mismatch)


def run_case(candidate: Implementation, case: Case) -> Result:
    """One synthetic case through one implementation."""
    task = case.task()
    return judge(
        candidate,
        task,
        lambda: compare(candidate.run(task), reference_records(case)),
        case=case.id,
        column=case.base,
        steps=len(task.gradients),
    )


@dataclass(frozen=True)
class Job:
    """One synthetic case in one mode, small enough to be sent to another process."""

    backend: str
    mode: str
    device: str
    case: Case
    size = 1

    def run(self) -> list[Result]:
        """The verdict, computed in this process."""
        return [run_case(open_implementation(self.backend, self.mode, self.device), self.case)]


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


def run_jobs(jobs: Sequence[AnyJob], processes: int) -> Iterator[Result]:
    """All jobs, as their results come in; in this process if ``processes`` is 1.

    The jobs of a mode stay in one process, so that what it compiled once serves its later cases.
    """
    lanes = _lanes(jobs, processes)
    if len(lanes) <= 1:
        for job in jobs:
            yield from job.run()
        return
    setting = _limit_threads, (max(1, cores() // len(lanes)),)  # more threads would wait for each other
    with ExitStack() as stack:
        futures = []
        for lane in lanes:
            pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), *setting))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            futures += [pool.submit(_run, job) for job in lane]
        for future in as_completed(futures):
            yield from future.result()


def _lanes(jobs: Sequence[AnyJob], processes: int) -> list[list[AnyJob]]:
    """The modes dealt to processes, the slowest first, each to the process that has least to do."""
    by_mode: dict[str, list[AnyJob]] = {}
    for job in jobs:
        by_mode.setdefault(f"{job.backend} {job.mode}", []).append(job)
    lanes: list[list[AnyJob]] = [[] for _ in range(processes)]
    load = [0] * processes
    for mode in sorted(by_mode, key=lambda name: -_COST.get(name, 1)):
        least = load.index(min(load))
        lanes[least] += by_mode[mode]
        load[least] += _COST.get(mode, 1)
    return [lane for lane in lanes if lane]


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _run(job: AnyJob) -> list[Result]:
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
