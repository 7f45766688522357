"""Runs random cases through an implementation and compares every step with a reference."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from magma_conformance.fuzz.case import FuzzCase
from magma_conformance.runner.jobs import Case, run_task
from magma_conformance.runner.result import Result
from magma_conformance.task import Implementation

MOST_DIFFERENT = 5
"""Differing cases after which a row is given up: more would say the same."""

_MOST_REFUSED = 100  # configurations to try past the deadline until one is not refused


@dataclass(frozen=True)
class Row:
    """An implementation to test.

    Attributes:
        backend: its name in `magma-conformance run`.
        mode: its name in `magma-conformance run`.
        open: makes it; raises ImportError or LookupError if it cannot run.
        values: cases per configuration; one if nothing is compiled.
        vary: whether hyper-parameters are inputs of the compiled program.
        device: where it runs.
    """

    backend: str
    mode: str
    open: Callable[[], Implementation]
    values: int = 1
    vary: bool = False
    device: str = "cpu"

    @property
    def label(self) -> str:
        """Its name in the table."""
        return f"{self.backend} {self.mode}"


@dataclass
class Tally:
    """The results of one row."""

    row: Row
    configurations: int = 0  # with at least one case that ran
    equal: int = 0
    different: list[tuple[Case, Result]] = field(default_factory=list)
    not_run: Counter[str] = field(default_factory=Counter)  # by reason
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """How many cases were compared."""
        return self.equal + len(self.different)


def configurations(row: Row, /, *, seed: int, first: int = 0, most: int | None = None) -> Iterator[Sequence[Case]]:
    """The cases of each configuration.

    Args:
        row: the row that runs them.
        seed: of all cases.
        first: the number of the first configuration.
        most: how many; None for no limit.
    """
    for number in islice(count(first), most):
        yield [FuzzCase(seed, number, values, row.vary) for values in range(row.values)]


def hunt(
    row: Row,
    candidate: Implementation,
    reference: Implementation,
    cases_of: Iterable[Sequence[Case]],
    /,
    *,
    end: float = float("inf"),
) -> Iterator[Tally]:
    """Yield a row's tally after each case.

    Args:
        row: the row.
        candidate: its implementation.
        reference: the implementation to compare with.
        cases_of: the cases of each configuration.
        end: deadline on `time.monotonic`. No configuration starts after it, except to find one that is not refused.
    """
    tally, started = Tally(row), time.monotonic()
    for tried, cases in enumerate(cases_of):
        first = not tally.configurations
        if time.monotonic() > end and not (first and tried < _MOST_REFUSED):
            return
        compared = False
        for case in cases:
            result = check(candidate, reference, case)
            if result.status == "not run":
                tally.not_run[result.reason] += 1
            else:
                tally.configurations += not compared
                compared = True
                if result.status == "equal":
                    tally.equal += 1
                else:
                    tally.different.append((case, result))
            tally.seconds = time.monotonic() - started
            yield tally
            if len(tally.different) >= MOST_DIFFERENT:
                return
            if not first and time.monotonic() > end:
                return


def check(candidate: Implementation, reference: Implementation, case: Case) -> Result:
    """One case; not run if the candidate or the reference refuses it."""
    task = case.task()
    if reason := reference.refuses(task):
        return Result(candidate.name, case.id, case.column, "not run", 0.0, reason=f"{reference.name}: {reason}")
    return run_task(candidate, case, task, lambda: reference.run(task))
