"""Random cases through implementations, each compared with a reference after every step."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from magma_conformance.fuzz.case import FuzzCase
from magma_conformance.result import Mismatch, Result, compare
from magma_conformance.runner import judge
from magma_conformance.task import Implementation, Record, Task


@dataclass(frozen=True)
class Row:
    """An implementation to be tested.

    Attributes:
        backend: as `magma-conformance run` names it.
        mode: likewise.
        open: makes it.
        values: how many cases each configuration serves: one where nothing is compiled.
        vary: whether hyper-parameters are inputs of what is compiled.
    """

    backend: str
    mode: str
    open: Callable[[], Implementation]
    values: int = 1
    vary: bool = False

    @property
    def label(self) -> str:
        """Its name in the table."""
        return f"{self.backend} {self.mode}"


@dataclass
class Tally:
    """What came of the cases of one row."""

    row: Row
    configurations: int = 0  # of which at least one case ran
    equal: int = 0
    different: list[tuple[FuzzCase, Result]] = field(default_factory=list)
    not_run: Counter[str] = field(default_factory=Counter)  # by reason
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """How many were compared."""
        return self.equal + len(self.different)


MOST_DIFFERENT = 5
"""Cases of a row that may differ before it is given up: more would say the same again."""


def hunt(
    row: Row, reference: Implementation, *, seed: int, first: int, configurations: int | None, end: float
) -> Iterator[Tally]:
    """The tally of a row after each of its cases.

    Args:
        row: what is tested.
        reference: what it is compared with.
        seed: of the cases.
        first: the number of the first configuration.
        configurations: how many, at most; None for as many as time allows.
        end: no case is begun after this time of `time.monotonic`, but one configuration is always run whole.
    """
    tally, candidate = Tally(row), row.open()
    started = time.monotonic()
    for number in count(first):
        if (configurations is not None and number >= first + configurations) or (
            tally.configurations and time.monotonic() > end
        ):
            return
        compared = tally.cases
        for values in range(row.values):
            case = FuzzCase(seed, number, values, row.vary)
            result = run_case(candidate, reference, case.task(), case)
            if result.status == "not run":
                tally.not_run[result.reason] += 1
            elif result.status == "equal":
                tally.equal += 1
            else:
                tally.different.append((case, result))
            tally.seconds = time.monotonic() - started
            yield tally
            if len(tally.different) >= MOST_DIFFERENT:
                return
            if tally.configurations and time.monotonic() > end:
                break
        tally.configurations += tally.cases > compared


def run_case(candidate: Implementation, reference: Implementation, task: Task, case: FuzzCase) -> Result:
    """One task through a candidate, compared with the reference; not run where either refuses it."""

    def follow() -> tuple[Mismatch | None, str]:
        return compare(candidate.run(task), expected, task.first_step), ""

    if reason := reference.refuses(task):
        return Result(candidate.name, case.id, case.column, "not run", 0.0, reason=f"{reference.name}: {reason}")
    expected: list[Record] = reference.run(task)
    return judge(candidate, task, follow, case=case.id, column=case.column, steps=len(task.gradients))
