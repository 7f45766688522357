"""The report of a run: a matrix for people, JSON for programs."""

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from magma_conformance.machine import processor
from magma_conformance.runner import Result

SUITE_VERSION = 1
"""Of the cases and of the JSON layout; any change to either is a new version."""


@dataclass
class Report:
    """Everything that a run found.

    Attributes:
        results: one for each case and mode.
        absent: for each mode, and for the real text, that could not be run at all, why.
        absent_details: for each such backend, what it said.
        failures: what else went wrong.
        versions: of the frameworks, by backend.
        devices: what the devices call themselves, by backend; empty for the processor.
        losses: of the real-gradient run, one for each step.
    """

    results: list[Result] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    absent_details: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    @property
    def mismatches(self) -> list[Result]:
        """Results that are neither equal nor, with a reason, not run."""
        return [result for result in self.results if result.status in ("different", "failed")]

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        counts = Counter(result.status for result in self.results)
        return {
            "suite": "magma-conformance",
            "suite_version": SUITE_VERSION,
            "environment": {
                "python": platform.python_version(),
                "system": platform.system(),
                "machine": platform.machine(),
                "processor": processor(),
                "versions": self.versions,
                "devices": self.devices,
            },
            "counts": dict(counts),
            "absent": self.absent,
            "absent_details": self.absent_details,
            "failures": self.failures,
            "losses": self.losses,
            "results": [asdict(result) for result in self.results],
        }


def render(report: Report, modes: Sequence[str], console: Console) -> None:
    """The matrix of modes × columns, what was not run and why, and every mismatch."""
    columns = list(dict.fromkeys(result.column for result in report.results))
    table = Table(
        title="bitwise equal to magma_core on NumPy, cases equal / cases run",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("mode", no_wrap=True)
    for heading in (*columns, "verdict", "run", "sec"):
        table.add_column(heading, justify="right", no_wrap=True)
    for mode in modes:
        if mode in report.absent:
            table.add_row(mode, *[""] * len(columns), f"[yellow]{report.absent[mode]}", "0", "")
            continue
        results = [result for result in report.results if result.mode == mode]
        run = [result for result in results if result.status != "not run"]
        table.add_row(
            mode,
            *(_cell([result for result in run if result.column == column]) for column in columns),
            _verdict(run),
            str(len(run)),
            f"{sum(result.seconds for result in results):.1f}",
        )
    console.print(table)
    reasons = Counter((result.mode, result.reason) for result in report.results if result.status == "not run")
    for (mode, reason), count in reasons.items():
        console.print(f"{mode}: {count} cases not run: {reason}", highlight=False, markup=False)
    for what, reason in report.absent.items():
        if what not in modes:
            console.print(f"{what}: not run: {reason}", highlight=False, markup=False)
    for backend, reason in report.absent_details.items():
        console.print(f"{backend}: {reason}", highlight=False, markup=False)
    for result in report.mismatches:
        console.print(f"[red]{result.mode}[/] {result.case}", highlight=False)
        console.print(f"    {result.reason}", highlight=False, markup=False)


def _cell(run: Sequence[Result]) -> str:
    equal = sum(result.status == "equal" for result in run)
    if not run:
        return "–"
    return f"[green]{equal}/{len(run)}" if equal == len(run) else f"[red]{equal}/{len(run)}"


def _verdict(run: Sequence[Result]) -> str:
    if not run:
        return "[yellow]nothing run"
    return "[green]equal" if all(result.status == "equal" for result in run) else "[red]different"
