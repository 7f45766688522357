"""The probe's results as a table: expressions × modes."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from magma_conformance.probe.probe import Probe
from magma_conformance.probe.report import ModeReport, ProbeReport, Result

_CELL = 8  # the longest text, "flushed", and a space between columns
_SHORT = {"tensorflow": "tf"}


def render(report: ProbeReport, console: Console, /) -> None:
    """Print the report. Modes that do not fit side by side go into further tables.

    Args:
        report: from `magma_conformance.probe.run.run_probe`.
        console: where to print.
    """
    measured = [mode for mode in report.modes if mode.status == "measured"]
    console.print(
        f"Share of elements whose bits differ from the correctly rounded result, {escape(report.device)}. "
        "Rows in the frameworks' own words explain mismatches elsewhere; "
        "fenced rows are magma_core's operators and must be 0."
    )
    for mode in report.modes:
        if mode.status != "measured":
            console.print(Text(f"{mode.backend} {mode.mode}: {mode.status}. {mode.reason}", style="bold yellow"))
    label = max(len(probe.label) for probe in report.probes)
    beside = max(1, (console.width - label) // _CELL)
    for start in range(0, len(measured), beside):
        console.print(_table(report.probes, measured[start : start + beside], label))
    for mode in measured:
        for error in dict.fromkeys(result.error for result in mode.results.values() if result.error):
            console.print(Text(f"{mode.backend} {mode.mode}: {error}", style="red"))
    for mode, probe, result in report.broken_fences():
        if result.first is not None:
            console.print(Text(f"{mode.backend} {mode.mode}, {probe.label}: {result.first}", style="bold red"))


def _table(probes: Sequence[Probe], modes: Sequence[ModeReport], label: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("expression", width=label, no_wrap=True)
    for mode in modes:
        table.add_column(f"{_SHORT.get(mode.backend, mode.backend)}\n{mode.mode}", justify="right", width=_CELL - 1)
    for before, probe in zip((None, *probes), probes, strict=False):
        if before is not None and before.topic != probe.topic:
            table.add_section()
        cells = [_cell(probe, mode.results[probe.id]) if probe.id in mode.results else Text("–") for mode in modes]
        table.add_row(Text(probe.label), *cells)
    return table


def _cell(probe: Probe, result: Result) -> Text:
    if result.status == "not applicable":
        style = "dim"
    elif result.status == "measured" and result.differing == 0:
        style = ""
    else:
        style = "bold red" if probe.fenced or result.status == "error" else "yellow"
    return Text(result.text(probe), style=style)
