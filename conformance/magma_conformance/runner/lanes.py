"""Runs jobs in several processes: modes are dealt to lanes, and each lane runs one process at a time."""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from magma_conformance.external.plugin import KINDS
from magma_conformance.machine import cores
from magma_conformance.processes.worker import STUCK, Lost, Worker, end_all, look_after
from magma_conformance.runner.result import Result, Status

_COST = {
    "torch compile": 24,
    "magma_keras torch-compile": 16,
    "magma_torch compile": 3,
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
    "magma_native numpy": 3,
    "magma_jax native": 2,
    "magma_jax native-apply": 2,
}
"""Rough relative cost of a mode's cases; nearly all of it is compilation."""

_WHOLE = ("magma_torch", *KINDS)
"""Modes that stay whole: their cases share compiled programs, or nothing is known about them."""

GRACE = 60.0
"""Seconds that a running job gets after the end."""


class AnyJob(Protocol):
    """A job that another process can run."""

    @property
    def backend(self) -> str:
        """The framework."""

    @property
    def mode(self) -> str:
        """Its mode."""

    @property
    def size(self) -> int:
        """The number of verdicts."""

    def run(self) -> list[Result]:
        """The verdicts."""

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        """The verdicts when they were not computed."""


class End(NamedTuple):
    """The deadline for starting jobs."""

    time: float  # by time.monotonic
    seconds: float  # the limit that was given

    @property
    def reason(self) -> str:
        """For jobs that were not started."""
        return f"{self.seconds:g} seconds were over"

    @property
    def too_slow(self) -> str:
        """For jobs that were started and given up."""
        return f"too slow: begun, but not done when {self.seconds:g} + {GRACE:g} seconds were over"


def deal(jobs: Sequence[AnyJob], processes: int) -> list[list[AnyJob]]:
    """Deal the modes to processes, the slowest first, each to the least loaded process.

    A mode's jobs stay in one process, so that compiled programs serve later cases. Most modes compile a program per
    case anyway, and are divided if there are enough processes.
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


def run_lanes(
    lanes: Sequence[Sequence[AnyJob]], end: End | None, working: Callable[[Sequence[AnyJob]], Any]
) -> Generator[Result, None, None]:
    """Yield results as they come in. A process that dies or is stuck fails one job; another takes over the rest."""
    threads = str(max(1, cores() // len(lanes)))  # more would wait for each other
    running = [_Lane(jobs, threads) for jobs in lanes]
    try:
        while True:
            over = end is not None and time.monotonic() > end.time
            for lane in running:
                if lane.job is None and over and end is not None:
                    yield from lane.left_out(end.reason)
                elif lane.job is None and lane.waiting:
                    lane.begin()
                    working([each.job for each in running if each.job is not None])
            busy = [lane for lane in running if lane.job is not None]
            if not busy:
                return
            if end is not None and time.monotonic() > end.time + GRACE:
                for lane in busy:
                    yield from lane.give_up(end.too_slow)
                continue
            look_after([lane.worker for lane in busy], math.inf if end is None else _until(end))
            for lane in busy:
                if lane.worker.answered or lane.worker.stuck:
                    yield from lane.finish()
    finally:
        end_all([lane.worker for lane in running])


def _until(end: End) -> float:
    """Seconds until action is due even if nothing happens."""
    now = time.monotonic()
    return max(0.0, (end.time if now <= end.time else end.time + GRACE) - now) + 0.01


class _Lane:
    """Waiting jobs, the current one, and the process that runs it."""

    def __init__(self, jobs: Sequence[AnyJob], threads: str) -> None:
        self.waiting = deque(jobs)
        self.job: AnyJob | None = None
        self._environment = {"OMP_NUM_THREADS": threads}
        self.worker = Worker(self._environment)

    def begin(self) -> None:
        """Start the next job."""
        if not self.worker.alive:
            self.worker = Worker(self._environment)
        self.job = self.waiting.popleft()
        self.worker.begin(_run, self.job)

    def finish(self) -> list[Result]:
        """The verdicts on the finished job, or on one whose process is gone."""
        if self.worker.stuck:
            return self._without_answer("failed", STUCK)
        try:
            results: list[Result] = self.worker.result()
        except Lost as error:
            return self._without_answer("failed", str(error))
        self.job = None
        return results

    def give_up(self, reason: str) -> list[Result]:
        """The verdicts on a job that took too long."""
        return self._without_answer("not run", reason)

    def left_out(self, reason: str) -> list[Result]:
        """The verdicts on all jobs that were not started."""
        left = [result for job in self.waiting for result in job.unanswered("not run", reason)]
        self.waiting.clear()
        return left

    def _without_answer(self, status: Status, reason: str) -> list[Result]:
        self.worker.end()
        job, self.job = self.job, None
        return [] if job is None else job.unanswered(status, reason)


def _run(job: AnyJob) -> list[Result]:
    return job.run()
