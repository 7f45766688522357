"""A page for people, made from the reports of one or several runs: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from magma_conformance.report import loss_curve
from magma_conformance.report.page_view import SHOWN, Run, Tally
from magma_conformance.report.read import check_report


def render_page(reports: Sequence[Mapping[str, Any]]) -> str:
    """The page as text, the same for the same reports.

    Args:
        reports: as `RunReport.to_json` or `read_report` return them; what older ones lack is unknown.

    Raises:
        ValueError: if there is no report, or one of them is not what it should be.

    Example:
        >>> from magma_conformance.report.report import RunReport
        >>> render_page([RunReport().to_json()]).splitlines()[0]
        '<!doctype html>'
    """
    if not reports:
        raise ValueError("a page needs at least one report")
    for report in reports:
        check_report(report)
    runs = [Run(report, f"run-{i}") for i, report in enumerate(reports, 1)]
    total = Tally(result for run in runs for result in run.results)
    failures = sum(len(run.failures) for run in runs)
    return _TEMPLATES.get_template("page.html.jinja").render(
        runs=runs, total=total, failures=failures, shown=SHOWN, picture=loss_curve
    )


def write_page(reports: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the page, and the folders that lead to it.

    Args:
        reports: see `render_page`.
        file: is replaced.

    Raises:
        ValueError: see `render_page`; nothing is written then.
        OSError: if the file cannot be written.
    """
    page = render_page(reports)
    file.parent.mkdir(parents=True, exist_ok=True)
    # JSON can hold halves of characters that UTF-8 cannot
    file.write_text(page, encoding="utf-8", errors="replace", newline="\n")


_TEMPLATES = Environment(
    loader=PackageLoader("magma_conformance.report"),
    autoescape=True,  # names, reasons and versions come from files that anybody may have written
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
