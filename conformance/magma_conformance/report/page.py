"""Renders the reports of one or several runs as a self-contained HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from magma_conformance.report import loss_curve
from magma_conformance.report.page_view import SHOWN, Run, Tally
from magma_conformance.report.read import check_report


def render_page(reports: Sequence[Mapping[str, Any]]) -> str:
    """The page as text, a function of the reports alone.

    Args:
        reports: from `RunReport.to_json` or `read_report`; older reports may lack entries, which show as unknown.

    Raises:
        ValueError: if there is no report, or one is invalid.

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
    """Write the page, and make its folders.

    Args:
        reports: see `render_page`.
        file: overwritten.

    Raises:
        ValueError: see `render_page`; nothing is written then.
        OSError: if the file cannot be written.
    """
    page = render_page(reports)
    file.parent.mkdir(parents=True, exist_ok=True)
    # JSON can hold lone surrogates, which UTF-8 cannot
    file.write_text(page, encoding="utf-8", errors="replace", newline="\n")


_TEMPLATES = Environment(
    loader=PackageLoader("magma_conformance.report"),
    autoescape=True,  # names, reasons and versions come from files that anybody may have written
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
