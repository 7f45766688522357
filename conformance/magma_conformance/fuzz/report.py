"""What a hunt found: a table for people, JSON for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from magma_conformance.fuzz.hunt import Tally


def to_json(tallies: Sequence[Tally]) -> list[dict[str, Any]]:
    """Each row with its counts and what differed."""
    return [
        {
            "backend": tally.row.backend,
            "mode": tally.row.mode,
            "configurations": tally.configurations,
            "equal": tally.equal,
            "different": [{"case": case.id, "reason": result.reason} for case, result in tally.different],
            "not_run": dict(tally.not_run),
            "seconds": round(tally.seconds, 1),
        }
        for tally in tallies
    ]


def render(tallies: Sequence[Tally], absent: Mapping[str, str], reference: str, console: Console) -> None:
    """A line for each row, and why cases or rows did not run."""
    table = Table(title=f"random cases, bitwise equal to {reference}", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", no_wrap=True)
    for heading in ("configs", "equal", "different", "not run", "sec"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tally in tallies:
        different = len(tally.different)
        table.add_row(
            tally.row.label,
            str(tally.configurations),
            f"[green]{tally.equal}",
            f"[red]{different}" if different else "0",
            str(tally.not_run.total()),
            f"{tally.seconds:.1f}",
        )
    console.print(table)
    for tally in tallies:
        for reason, count in Counter(tally.not_run).most_common():
            console.print(f"{tally.row.label}: {count} not run: {reason}", highlight=False, markup=False)
    for label, reason in absent.items():
        console.print(f"{label}: not run: {reason}", highlight=False, markup=False)
