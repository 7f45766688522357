"""Random cases through an implementation, each compared with a reference after every step."""

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
"""Cases of a row that may differ before it is given up: more would say the same again."""

_MOST_REFUSED = 100  # configurations that are refused, when time is over, before there is one that is not


@dataclass(frozen=True)
class Row:
    """An implementation to be tested.

    Attributes:
        backend: as `magma-conformance run` names it.
        mode: likewise.
        open: makes it; ImportError or LookupError where it cannot run.
        values: how many cases each configuration serves: one where nothing is compiled.
        vary: whether hyper-parameters are inputs of what is compiled.
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
    """What came of the cases of one row."""

    row: Row
    configurations: int = 0  # with at least one case that ran
    equal: int = 0
    different: list[tuple[Case, Result]] = field(default_factory=list)
    not_run: Counter[str] = field(default_factory=Counter)  # by reason
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """How many were compared."""
        return self.equal + len(self.different)


def configurations(row: Row, /, *, seed: int, first: int = 0, most: int | None = None) -> Iterator[Sequence[Case]]:
    """The cases of each configuration.

    Args:
        row: what they are for.
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
    """The tally of a row after each of its cases.

    Args:
        row: what is tested.
        candidate: what the row opens.
        reference: what it is compared with.
        cases_of: the cases of each configuration.
        end: no configuration is begun after this time of `time.monotonic`, but the first that is not refused.
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
    """One case; not run where the candidate or the reference refuses it."""
    task = case.task()
    if reason := reference.refuses(task):
        return Result(candidate.name, case.id, case.column, "not run", 0.0, reason=f"{reference.name}: {reason}")
    return run_task(candidate, case, task, lambda: reference.run(task))
