"""``magma-conformance page``."""

from pathlib import Path
from typing import Annotated

import typer

from magma_conformance.commands.common import refuse
from magma_conformance.report.page import write_page
from magma_conformance.report.read import read_report


def page(
    reports: Annotated[list[Path], typer.Argument(help="Reports that `run --json` wrote, in the order of the page.")],
    html: Annotated[Path, typer.Option("--html", help="Write the page to this file.")],
) -> None:
    """Render the reports of one or several runs as a page of the matrix.

    Exit status: 0; 2 if a report cannot be read or is invalid, or the page cannot be written.
    """
    try:
        read = [read_report(report) for report in reports]
        if html.exists() and any(html.samefile(report) for report in reports):
            refuse(f"--html: {html} is one of the reports, and would be overwritten; name another file")
        write_page(read, html)
    except ValueError as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"--html: {html} cannot be written: {error.strerror or error}; name a file in a folder of yours")
