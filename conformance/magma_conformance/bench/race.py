"""Runs contenders in turns: groups that share memory, and the time of each step."""

import time
from collections.abc import Mapping, Sequence

from magma_conformance.bench.arrays import free
from magma_conformance.bench.contenders import Contender, Step
from magma_conformance.bench.report import Timing
from magma_conformance.bench.workload import Workload
from magma_conformance.implementations.modes import Mode

_WARM_UPS = 2  # the first step compiles; the second takes the first one's outputs
_FEWEST = 3  # turns, even after the deadline


class Race:
    """Prepares, times and dismisses contenders.

    Args:
        modes: each backend's modes by name, or why it has none.
        workload: the parameters.
        repeats: timed steps of each contender in each group.
        end: deadline on the monotonic clock; no contender starts after it.
    """

    def __init__(
        self, modes: Mapping[str, dict[str, Mode] | str], workload: Workload, repeats: int, end: float | None
    ) -> None:
        self._modes, self._workload, self._repeats, self._end = modes, workload, repeats, end
        self._steps: dict[Contender, Step] = {}
        self._reasons: dict[Contender, str] = {}
        self._seconds: dict[Contender, list[float]] = {}
        self._beside: dict[Contender, list[float]] = {}
        self._extra: dict[Contender, int | None] = {}

    def run(self, group: Sequence[Contender]) -> None:
        """Time the group in turns, after dismissing contenders that are no longer in it."""
        for contender in [c for c in self._steps if c not in group]:
            del self._steps[contender]
        free()
        for contender in group:
            if contender not in self._steps and contender not in self._reasons:
                self._prepare(contender)
        racing = [contender for contender in group if contender in self._steps]
        found = _take_turns({contender: self._steps[contender] for contender in racing}, self._repeats, self._end)
        for contender in racing:
            self._seconds.setdefault(contender, []).extend(found[contender])
            own = next((c for c in racing if c.baseline and c.backend == contender.backend), None)
            self._beside.setdefault(contender, []).extend(found[own] if own else ())
            if contender not in self._extra:
                self._extra[contender] = self._steps[contender].extra_bytes()

    def timing(self, c: Contender) -> Timing:
        """The result for one contender."""
        return Timing(
            c.backend,
            c.mode,
            c.optimizer,
            tuple(self._seconds.get(c, ())),
            self._reasons.get(c, ""),
            self._extra.get(c),
            tuple(self._beside.get(c, ())),
        )

    def _prepare(self, contender: Contender) -> None:
        modes = self._modes[contender.backend]
        if isinstance(modes, str):
            self._reasons[contender] = modes
            return
        if self._end is not None and time.monotonic() > self._end:
            self._reasons[contender] = "left out, the time was over"
            return
        try:
            step = contender.prepare(modes[contender.mode], self._workload)
            for _ in range(_WARM_UPS):
                step.renew()
                step.run()
                step.wait()
        except Exception as error:  # frameworks refuse in many ways: a finding, not the end
            self._reasons[contender] = reason(error)
        else:
            self._steps[contender] = step


def together(contenders: Sequence[Contender], device: str) -> list[list[Contender]]:
    """Contenders that share memory: all on the CPU; on a device each one with its framework's baseline."""
    if device == "cpu":
        return [list(contenders)]
    groups = []
    for backend in dict.fromkeys(contender.backend for contender in contenders):
        own = [contender for contender in contenders if contender.backend == backend]
        baseline = [contender for contender in own if contender.baseline]
        groups += [[*baseline, contender] for contender in own if not contender.baseline] or [baseline]
    return groups


def _take_turns(steps: Mapping[Contender, Step], repeats: int, end: float | None) -> dict[Contender, list[float]]:
    seconds: dict[Contender, list[float]] = {contender: [] for contender in steps}
    for turn in range(repeats):
        if end is not None and turn >= _FEWEST and time.monotonic() > end:
            break
        for contender, step in steps.items():
            step.renew()
            step.wait()
            started = time.perf_counter()
            step.run()
            step.wait()
            seconds[contender].append(time.perf_counter() - started)
    return seconds


def reason(error: Exception) -> str:
    """Why nothing was timed, in one line."""
    if isinstance(error, ImportError):
        return "not installed"
    # torch's first line says that a compiler failed, the second why
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return text if isinstance(error, LookupError) else f"{type(error).__name__}: {text}"
