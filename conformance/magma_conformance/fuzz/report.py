"""The findings of a search: a table for people, JSON for programs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from magma_conformance.fuzz.hunt import Tally
from magma_conformance.machine import environment
from magma_conformance.terminal.tables import Cell, print_table
from magma_conformance.versions import SPEC_VERSION, SUITE_VERSION


@dataclass
class Findings:
    """All findings of a search.

    Attributes:
        seed: of its cases.
        first: the number of the first configuration.
        device: where the frameworks ran.
        reference: the implementation that all were compared with.
        tallies: one per row that ran.
        absent: why each other row did not run, by label.
        date: when it began, in UTC.
    """

    seed: int
    first: int
    device: str
    reference: str
    tallies: list[Tally] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON types."""
        return {
            "suite": "magma-conformance fuzz",
            "suite_version": SUITE_VERSION,
            "spec_version": SPEC_VERSION,
            "date": self.date,
            "environment": environment(),
            "seed": self.seed,
            "first": self.first,
            "device": self.device,
            "reference": self.reference,
            "rows": [_row(tally) for tally in self.tallies],
            "absent": self.absent,
        }

    def render(self, console: Console) -> None:
        """Print a line per row, and why cases or rows did not run."""
        headings = ["row", "configurations", "equal", "different", "not run", "seconds"]
        table: list[list[Cell]] = [
            [
                tally.row.label,
                str(tally.configurations),
                Text(str(tally.equal), style="green"),
                Text(str(len(tally.different)), style="red" if tally.different else ""),
                str(tally.not_run.total()),
                f"{tally.seconds:.1f}",
            ]
            for tally in self.tallies
        ]
        print_table(console, headings, table, title=f"random cases, bitwise equal to {self.reference}")
        for tally in self.tallies:
            for reason, count in tally.not_run.most_common():
                console.print(f"{tally.row.label}: {count} not run: {reason}", highlight=False, markup=False)
        for label, reason in self.absent.items():
            console.print(f"{label}: not run: {reason}", highlight=False, markup=False)


def _row(tally: Tally) -> dict[str, Any]:
    return {
        "backend": tally.row.backend,
        "mode": tally.row.mode,
        "configurations": tally.configurations,
        "equal": tally.equal,
        "different": [{"case": case.id, "reason": result.reason} for case, result in tally.different],
        "not_run": dict(tally.not_run),
        "seconds": round(tally.seconds, 1),
    }
