"""``magma-conformance compare``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from magma_conformance.commands.common import JsonFile, check_writable, refuse, write
from magma_conformance.report.compare import compare_reports, render
from magma_conformance.report.read import read_report


def compare(
    reference: Annotated[Path, typer.Argument(help="A report of `run --json`, such as docs/results/cpu-digests.json.")],
    reports: Annotated[list[Path], typer.Argument(help="Reports of other machines, devices or versions.")],
    json_file: JsonFile = None,
) -> None:
    """Compare the digests of reports: did two machines compute the same bits?

    Exit status: 0 if every mode of the reports has the reference's digests, 1 if one differs or cannot be compared,
    2 if a report cannot be read or belongs to another suite.
    """
    check_writable("--json", json_file)
    try:
        rows = compare_reports(read_report(reference), [read_report(report) for report in reports])
    except ValueError as error:
        refuse(str(error))
    names = [file.stem for file in (reference, *reports)]
    render(rows, names, Console())
    write(
        {"reference": str(reference), "reports": list(map(str, reports)), "rows": [r.to_json() for r in rows]},
        json_file,
    )
    if not rows or any(row.verdict != "equal" for row in rows):
        raise typer.Exit(1)
