"""Tables never cut a cell, however narrow the console, and show each mode's verdict at a glance."""

import io
import re
from collections.abc import Callable

import pytest
from magma_conformance import relay
from magma_conformance.bench import report as bench_report
from magma_conformance.bench.contenders import CONTENDERS
from magma_conformance.bench.report import BenchReport, Timing
from magma_conformance.bench.workload import uniform
from magma_conformance.cases.pairwise import BASES
from magma_conformance.commands.common import ROWS
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.probe import table
from magma_conformance.probe.report import ModeReport, ProbeReport
from magma_conformance.probe.report import Result as Probed
from magma_conformance.relay.plan import LEGS, RelayPlan
from magma_conformance.relay.report import LegReport, RelayReport
from magma_conformance.report import compare
from magma_conformance.report import report as run_report
from magma_conformance.report.compare import Row
from magma_conformance.runner.result import Result
from magma_conformance.terminal.tables import print_table
from magma_conformance.vectors import load
from rich.console import Console
from rich.text import Text

MODES = [f"{backend} {name}" for backend, names in ROWS.items() for name in names]
LONG = "exec ./ports/a-port-with-a-long-name --option [and brackets] " + "x" * 60


def printed(render: Callable[[Console], object], width: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is seen in so many columns, or in a file."""
    monkeypatch.delenv("COLUMNS", raising=False)
    file = io.StringIO()
    render(Console(file=file, width=width, force_terminal=width is not None, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("count", [1, 12, 13500])
@pytest.mark.parametrize("width", [None, 60, 80, 200])
def test_matrix(monkeypatch, width, count):
    """All rows that there can be, all columns, and every verdict."""
    columns = [*dict.fromkeys(vector.column for vector in load()), *BASES, "text"]
    verdicts = ["equal", "different", "failed", "not run"]
    results = [
        Result(mode, f"{'vectors/' if i < len(columns) - 6 else ''}{column}/{k}", column, verdicts[number % 4], 1234.5)
        for number, mode in enumerate([*MODES, LONG])
        for i, column in enumerate(columns)
        for k in range(min(count, 12))
    ]
    if count > 12:  # as --full: so many that the columns cannot stand side by side
        monkeypatch.setattr(run_report, "_cell", lambda run: Text(f"{count}/{count}"))
    whole = run_report.RunReport(results, absent={"torch gone": "not installed"})
    modes = [*MODES, LONG, "torch gone"]
    text = printed(lambda console: run_report.render(whole, modes, console), width, monkeypatch)
    assert "…" not in text
    assert "torch gone: not run: not installed" in text
    lines = text.splitlines()
    for number, mode in enumerate(modes):
        verdict = "not run" if mode == "torch gone" else verdicts[number % 4]
        said = [line for line in lines if re.match(rf"{re.escape(mode)} +{verdict}\b", line)]
        assert len(said) == 2 - (mode in whole.absent)  # of the vectors and of the cases
    if count < 100:
        for column in columns:
            assert text.count(column) >= 1
        assert f"{count}/{count}" in text
    if width in (None, 80) and count < 100:
        matrix = [line for line in lines if line.startswith(("numpy", "magma_keras tensorflow-eager"))]
        assert all(len(line) <= 80 for line in matrix)


def test_a_row_of_the_default_run_is_one_line_of_80_columns(monkeypatch):
    counts = {"sgd": 6, "rmsprop": 12, "adam": 6, "adamw": 6, "laprop": 6, "text": 2}
    results = [
        Result(mode, f"{column}/{k}", column, "different" if k else "equal", 160.0)
        for mode in MODES
        for column, count in counts.items()
        for k in range(count)
    ]
    text = printed(lambda console: run_report.render(run_report.RunReport(results), MODES, console), 80, monkeypatch)
    line = next(line for line in text.splitlines() if line.startswith("magma_keras tensorflow-eager"))
    assert " ".join(line.split()[1:]) == "tensorflow-eager different 1/6 1/12 1/6 1/6 1/6 1/2 6080.0"
    assert len(line) == 80


@pytest.mark.parametrize("width", [None, 40, 60, 80, 200])
def test_comparison(monkeypatch, width):
    rows = [Row(mode, 0, equal=["a"] * 100, different=["b"] if i % 2 else []) for i, mode in enumerate([*MODES, LONG])]
    names = ["cpu", "a-machine-with-a-long-name-2026"]
    text = printed(lambda console: compare.render(rows, names, console), width, monkeypatch)
    assert "…" not in text
    for row in rows:
        named = rf"{names[1]} +{re.escape(row.mode)} +{row.verdict}"
        assert any(re.match(named, line) for line in text.splitlines())
    assert "no reference" in text


@pytest.mark.parametrize("width", [None, 40, 60, 80, 200])
def test_bench(monkeypatch, width):
    timings = [
        Timing(c.backend, c.mode, c.optimizer, (12.3456, 23.4567), extra_bytes=2**33, beside=(1.0,)) for c in CONTENDERS
    ]
    machine = {"processor": "p", "cores": 2, "device": "cpu"}
    whole = BenchReport(machine, {"torch": "2"}, uniform(32, 512, 1024), tuple(timings), {"torch": 1e10})
    text = printed(lambda console: bench_report.render(whole, console), width, monkeypatch)
    assert "…" not in text
    assert all(timing.optimizer in text and f"{timing.backend} {timing.mode}" in text for timing in timings)
    assert text.count("17901.2 (12345.6)") == len(timings)


@pytest.mark.parametrize("width", [None, 40, 60, 80, 200])
def test_relay(monkeypatch, width):
    losses = [2.5, 2.0]
    legs = [
        LegReport(name, {name: "2.13.0", "other": "3.15.0"}, (1, 2), None, 36, None, losses, losses, losses, 1e-7, 9.9)
        for name in LEGS
    ]
    whole = RelayReport(RelayPlan(steps=2), 10**6, legs, 1.0)
    text = printed(lambda console: relay.report.render(whole, console), width, monkeypatch)
    assert "…" not in text
    assert text.count("bit-identical") == text.count("36 equal") == len(legs)
    assert all(f"{leg.label}" in text for leg in legs)
    assert text.count("1.0e-07") == len(legs)


@pytest.mark.parametrize("width", [None, 40, 60, 80, 200])
def test_probe(monkeypatch, width):
    modes = [ModeReport(backend, name, "measured") for backend, (names, _) in BACKENDS.items() for name in names]
    whole = ProbeReport({}, "cpu", ())
    for mode in modes:
        mode.results.update({probe.id: Probed("measured", 999, 1000) for probe in whole.probes})
    whole = ProbeReport({}, "cpu", tuple(modes))
    text = printed(lambda console: table.render(whole, console), width, monkeypatch)
    assert "…" not in text
    assert all(text.count(probe.label) >= 1 for probe in whole.probes)
    assert text.count("99.9 %") + text.count("error") >= len(modes)


def test_markup_is_text(monkeypatch):
    text = printed(lambda console: print_table(console, ["a", "b"], [["[red]x[/]", "[1]"]]), 80, monkeypatch)
    assert text.splitlines()[-2:] == ["[red]x[/]  [1]", ""]


def test_wide_characters_take_two_columns(monkeypatch):
    text = printed(lambda console: print_table(console, ["名前", "b"], [["字", "1"], ["abcd", "2"]]), 80, monkeypatch)
    assert text.splitlines()[2:] == ["字    1", "abcd  2", ""]


def test_what_is_longer_than_the_console_is_whole(monkeypatch):
    row = ["n" * 100, "v" * 100, "w" * 10]
    text = printed(lambda console: print_table(console, ["name", "value", "word"], [row]), 30, monkeypatch)
    assert text.splitlines() == [row[0], f"    value {row[1]}", f"    word {row[2]}", ""]
