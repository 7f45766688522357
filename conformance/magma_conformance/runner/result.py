"""The result of comparing records: equal, or the first difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from magma_conformance.bits import Difference, first_difference
from magma_conformance.task import Record

Status = Literal["equal", "different", "failed", "not run"]


@dataclass(frozen=True)
class Mismatch:
    """An implementation's first difference from the reference."""

    step: int  # 0 for a part of a step
    array: str  # "name/field"
    difference: Difference

    def __str__(self) -> str:
        array = self.array if self.array.isprintable() else repr(self.array)  # names may have any characters
        return f"{f'step {self.step}, ' if self.step else ''}{array}: {self.difference}"


@dataclass(frozen=True)
class Result:
    """The result of one case or vector in one mode."""

    mode: str
    case: str
    column: str  # of the matrix: the base optimizer, "text", or that of a vector
    status: Status
    seconds: float
    steps: int = 0
    reason: str = ""
    mismatch: Mismatch | None = None
    flags: tuple[str, ...] = ()  # of a vector
    digest: str = ""  # of the results, see `magma_conformance.wire.digest`; empty without results


def compare(records: Sequence[Record], reference: Sequence[Record], first_step: int = 1) -> Mismatch | None:
    """The first array that differs, in order of steps and then of computation.

    Args:
        records: one per step, from the implementation under test.
        reference: one per step, from the reference.
        first_step: the number of the first step.

    Raises:
        ValueError: if the records do not hold the same arrays for the same steps.
    """
    if len(records) != len(reference):
        raise ValueError(f"{len(records)} records for {len(reference)} steps")
    for step, (record, expected) in enumerate(zip(records, reference, strict=True), first_step):
        if missing := expected.keys() - record.keys():
            raise ValueError(f"step {step}: {min(missing)!r} is missing")
        if more := record.keys() - expected.keys():
            raise ValueError(f"step {step}: {min(more)!r} was not asked for")
        # parameters last, as they are computed last: the arrays that they come from say more
        for name, array in sorted(expected.items(), key=lambda entry: entry[0].endswith("/param")):
            if (difference := first_difference(record[name], array)) is not None:
                return Mismatch(step, name, difference)
    return None
