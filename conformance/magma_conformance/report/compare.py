"""Compares machines: the digests of one report with those of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rich.console import Console
from rich.text import Text

from magma_conformance.cases.real_text import COLUMN
from magma_conformance.report.report import in_order
from magma_conformance.terminal.tables import Cell, print_table
from magma_conformance.wire.untrusted import shown

Json: TypeAlias = Mapping[str, Any]

OWN_INPUTS = (COLUMN,)
"""Cases whose inputs each machine makes itself; digests of different inputs prove nothing."""

_SHOWN = 10
_NUMBERS = ("suite_version", "spec_version", "vectors_version")


@dataclass(frozen=True)
class Row:
    """One mode of a report compared with the reference.

    Attributes:
        mode: backend and mode.
        report: the number of its report, from 0.
        equal: cases with the reference's digest.
        different: cases with another digest, or with none because they failed.
        other_inputs: cases with other inputs, which cannot be compared.
        unknown: cases that the reference lacks.
        not_run: the number of cases that did not run.
    """

    mode: str
    report: int
    equal: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    other_inputs: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    not_run: int = 0

    @property
    def verdict(self) -> str:
        """Equal if every case that must be comparable is equal, and at least one is."""
        if self.different:
            return "different"
        return "not proven" if set(self.other_inputs) - set(OWN_INPUTS) or not self.equal else "equal"

    def to_json(self) -> dict[str, Any]:
        """The row as JSON types."""
        return {**vars(self), "verdict": self.verdict}


def compare_reports(reference: Json, reports: Sequence[Json]) -> list[Row]:
    """Compare every mode of ``reports`` with ``reference``. A mode that ran nothing has no row.

    Args:
        reference: from `magma_conformance.report.read.read_report`; its modes must agree on each case.
        reports: from `read_report`.

    Raises:
        ValueError: if one has another suite version or no digests, or if the reference contradicts itself.

    Example:
        >>> from magma_conformance.report.report import RunReport
        >>> from magma_conformance.runner.result import Result
        >>> one, other = (RunReport([Result("m", "c", "sgd", "equal", 0.0, digest=x)]).to_json() for x in "ab")
        >>> [row.verdict for row in compare_reports(one, [one, other])]
        ['equal', 'different']
    """
    for name in _NUMBERS:
        numbers = [report.get(name) for report in (reference, *reports)]
        if len(set(numbers)) > 1:
            raise ValueError(f"{name}: {', '.join(map(str, numbers))}; reports of different suites cannot be compared")
    if reference["suite_version"] < 3:
        raise ValueError(f"suite_version: {reference['suite_version']} has no digests; run it anew")
    for report in (reference, *reports):
        if report.get("inputs") is None or any(result.get("digest") is None for result in report["results"]):
            raise ValueError("a report has results without a digest, or no digests of its inputs; run it anew")
    digests = _digests(reference)
    return [row for i, report in enumerate(reports) for row in _rows(i, report, digests, reference["inputs"])]


def _digests(reference: Json) -> dict[str, str]:
    digests: dict[str, str] = {}
    for result in reference["results"]:
        if result["status"] != "equal":
            continue
        if digests.setdefault(result["case"], result["digest"]) != result["digest"]:
            raise ValueError(f"the reference has two digests of {shown(result['case'])}, both of modes that are equal")
    if not digests:
        raise ValueError("nothing in the reference is equal, so nothing can be compared with it")
    return digests


def _rows(number: int, report: Json, digests: Mapping[str, str], inputs: Mapping[str, str]) -> list[Row]:
    rows = {mode: Row(mode, number) for mode in in_order(result["mode"] for result in report["results"])}
    not_run: dict[str, int] = dict.fromkeys(rows, 0)
    for result in report["results"]:
        case, row = result["case"], rows[result["mode"]]
        if result["status"] == "not run":
            not_run[row.mode] += 1
        elif case not in digests:
            row.unknown.append(case)
        elif report["inputs"].get(case) != inputs.get(case):
            row.other_inputs.append(case)
        else:
            same = result["status"] == "equal" and result["digest"] == digests[case]
            (row.equal if same else row.different).append(case)
    made = [Row(**{**vars(row), "not_run": not_run[row.mode]}) for row in rows.values()]
    return [row for row in made if row.equal or row.different or row.other_inputs or row.unknown]


def render(rows: Sequence[Row], names: Sequence[str], console: Console) -> None:
    """Print the table, and everything that is not equal.

    Args:
        rows: from `compare_reports`.
        names: of the reference, then of each report.
        console: where to print.
    """
    table: list[list[Cell]] = []
    for row in rows:
        counts = (len(part) for part in (row.equal, row.different, row.other_inputs, row.unknown))
        colour = {"equal": "green", "different": "red"}.get(row.verdict, "yellow")
        verdict = Text(row.verdict, style=colour)
        table.append([shown(names[1 + row.report]), shown(row.mode), verdict, *map(str, counts), str(row.not_run)])
    headings = ["report", "mode", "verdict", "equal", "different", "other inputs", "no reference", "not run"]
    print_table(console, headings, table, title=f"digests beside those of {shown(names[0])}", left=3, lead=3)
    for row in rows:
        mode = shown(row.mode)
        for what, cases in (("different", row.different), ("other inputs", row.other_inputs)):
            for case in cases[:_SHOWN]:
                own = " (its text and gradients are each machine's own)" if case in OWN_INPUTS else ""
                console.print(f"{mode}: {what}: {shown(case)}{own}", highlight=False, markup=False)
            if len(cases) > _SHOWN:
                console.print(
                    f"{mode}: {what}: {len(cases) - _SHOWN} more; --json has all", highlight=False, markup=False
                )
