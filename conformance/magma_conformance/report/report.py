"""The report of a run: a matrix for people, JSON for programs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

from rich.console import Console
from rich.text import Text

from magma_conformance.cases.real_text import COLUMN
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.machine import environment
from magma_conformance.report.suspects import suspects
from magma_conformance.runner.repeat import repeat
from magma_conformance.runner.result import Result, Status
from magma_conformance.terminal.tables import Cell, print_table
from magma_conformance.vectors.files import notes
from magma_conformance.versions import SPEC_VERSION, SUITE_VERSION, VECTORS_VERSION

STATUSES: tuple[Status, ...] = get_args(Status)
"""The statuses of a case, in the order of the counts."""

SHOWN = 10
"""Mismatches of a mode to show one by one."""


@dataclass
class RunReport:
    """All findings of a run.

    Attributes:
        results: one per case and mode.
        absent: why a mode, or the real text, could not run at all.
        absent_details: the errors of such backends.
        failures: anything else that went wrong.
        versions: of the frameworks, by backend.
        devices: the devices' own names, by backend; empty for the CPU.
        drivers: of the devices, by backend (`machine.driver`); empty for the CPU.
        losses: of the real-gradient run, one per step.
        inputs: the digest of each case's inputs (`magma_conformance.wire.digest`); those of vectors are pinned.
        date: when the run began, in UTC.
        options: further options of the command, needed to repeat a case.
    """

    results: list[Result] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    absent_details: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    drivers: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    options: tuple[str, ...] = ()

    @property
    def mismatches(self) -> list[Result]:
        """Results that differ or failed."""
        return [result for result in self.results if result.status in ("different", "failed")]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types, as described by report.schema.json.

        Example:
            >>> report = RunReport([Result("mine", "adamw/1", "adamw", "equal", seconds=0.5)])
            >>> report.to_json()["modes"]
            {'mine': {'counts': {'equal': 1}, 'seconds': 0.5, 'first_difference': None, 'suspects': {}}}
        """
        modes = in_order(result.mode for result in self.results)
        return {
            "suite": "magma-conformance",
            "suite_version": SUITE_VERSION,
            "vectors_version": VECTORS_VERSION,
            "spec_version": SPEC_VERSION,
            "date": self.date,
            "environment": {
                **environment(),
                "versions": self.versions,
                "devices": self.devices,
                "drivers": self.drivers,
            },
            "counts": _counts(self.results),
            "modes": {mode: _summary([result for result in self.results if result.mode == mode]) for mode in modes},
            "absent": self.absent,
            "absent_details": self.absent_details,
            "failures": self.failures,
            "losses": [loss if math.isfinite(loss) else None for loss in self.losses],  # JSON has no NaN
            "inputs": self.inputs,
            "results": [asdict(result, dict_factory=_listed) for result in self.results],
        }


def in_order(modes: Iterable[str]) -> list[str]:
    """Unique modes, our own backends and adapters first, in the order of their tables.

    Results come in the order in which processes finish, which means nothing.
    """
    tables = [(name, names) for name, (names, _) in BACKENDS.items()]
    tables += [(name, adapter.modes) for name, adapter in ADAPTERS.items()]
    known = [f"{name} {mode}" for name, names in tables for mode in names]
    given = list(dict.fromkeys(modes))
    return [mode for mode in known if mode in given] + [mode for mode in given if mode not in known]


def columns_in_order(columns: Iterable[str]) -> list[str]:
    """Unique columns in order of appearance; real gradients last, though they are judged first."""
    return sorted(dict.fromkeys(columns), key=lambda column: column == COLUMN)


def explained(results: Iterable[Mapping[str, Any]], /) -> dict[str, str]:
    """What a mode's failed vectors have in common: for each flag, how many carry it, and its note.

    Args:
        results: of the mode, from `RunReport.to_json`.
    """
    found = suspects(results)
    meaning = notes() if found else {}
    return {suspect.flag: f"{suspect}: {meaning.get(suspect.flag, '')}" for suspect in found}


def _listed(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Tuples as lists: JSON has no tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in entries}


def _counts(results: Sequence[Result]) -> dict[str, int]:
    """How often each status occurs, without zeros."""
    counts = Counter(result.status for result in results)
    return {status: counts[status] for status in STATUSES if counts[status]}


def _summary(results: Sequence[Result]) -> dict[str, Any]:
    """The summary of one mode. The first difference is that of the first case to run; failed cases have none."""
    first = next((result for result in results if result.mismatch is not None), None)
    return {
        "counts": _counts(results),
        "seconds": sum(result.seconds for result in results),
        "first_difference": first and {"case": first.case, **asdict(first, dict_factory=_listed)["mismatch"]},
        "suspects": explained(map(asdict, results)),
    }


def render(report: RunReport, modes: Sequence[str], console: Console) -> None:
    """Print the matrices of modes × columns for vectors and cases, what did not run and why, and the mismatches."""
    vectors = [result for result in report.results if result.case.startswith("vectors/")]
    cases = [result for result in report.results if not result.case.startswith("vectors/")]
    if vectors:
        asked = {result.mode for result in vectors}
        title = "vectors: bitwise equal to the pinned answers, equal / run"
        _print_matrix(console, title, report, [mode for mode in modes if mode in asked], vectors)
    if cases or not vectors:
        title = "bitwise equal to magma_core on NumPy, cases equal / cases run"
        _print_matrix(console, title, report, modes, cases, timed=True)
    reasons = Counter((result.mode, result.reason) for result in report.results if result.status == "not run")
    for (mode, reason), count in reasons.items():
        noun = "case" if count == 1 else "cases"
        console.print(f"{mode}: {count} {noun} not run: {reason}", highlight=False, markup=False)
    for what, reason in report.absent.items():
        console.print(f"{what}: not run: {reason}", highlight=False, markup=False)
    for backend, reason in report.absent_details.items():
        console.print(f"{backend}: {reason}", highlight=False, markup=False)
    for mode in modes:
        _render_mismatches(mode, report, console)
        found = explained(asdict(result) for result in report.results if result.mode == mode)
        if found:
            console.print(f"{mode}: what its failed vectors have in common", highlight=False, markup=False)
        for text in found.values():
            console.print(f"    {text}", highlight=False, markup=False)


def _render_mismatches(mode: str, report: RunReport, console: Console) -> None:
    """Print mismatches, grouped by reason, with the commands that repeat them."""
    reasons: dict[str, list[str]] = {}
    for result in report.mismatches:
        if result.mode == mode:
            reasons.setdefault(result.reason, []).append(result.case)
    shown = 0
    for reason, cases in reasons.items():
        if shown < SHOWN:
            console.print(f"{mode}: {reason}", style="red", highlight=False, markup=False)
        for case in cases[: max(0, SHOWN - shown)]:
            again = repeat(mode, "--repro" if case.startswith("repro/") else "--case", case.removeprefix("repro/"))
            console.print(" ".join(["   ", again, *report.options]), highlight=False, markup=False, soft_wrap=True)
        shown += len(cases)
    if shown > SHOWN:
        console.print(f"{mode}: {shown - SHOWN} more; --json and --html have all", style="red", highlight=False)


def _print_matrix(
    console: Console, title: str, report: RunReport, modes: Sequence[str], of: Sequence[Result], *, timed: bool = False
) -> None:
    columns = columns_in_order(result.column for result in of)
    rows: list[list[Cell]] = []
    for mode in modes:
        results = [result for result in of if result.mode == mode]
        run = [result for result in results if result.status != "not run"]
        cells = (_cell([result for result in run if result.column == column]) for column in columns)
        rows.append([mode, _verdict(run), *([Text()] * len(columns) if mode in report.absent else cells)])
        if timed:
            rows[-1].append(f"{sum(result.seconds for result in results):.1f}" if results else "")
    headings = ["mode", "verdict", *columns, *(["sec"] if timed else [])]
    print_table(console, headings, rows, title=title, left=2, lead=2)


def _cell(run: Sequence[Result]) -> Text:
    equal = sum(result.status == "equal" for result in run)
    if not run:
        return Text("–")
    return Text(f"{equal}/{len(run)}", style="green" if equal == len(run) else "red")


def _verdict(run: Sequence[Result]) -> Text:
    if not run:
        return Text("not run", style="yellow")
    statuses = {result.status for result in run}
    verdict = "different" if "different" in statuses else "failed" if "failed" in statuses else "equal"
    return Text(verdict, style="green" if verdict == "equal" else "red")
