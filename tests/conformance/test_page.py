"""The page as text: its content, and how it handles unexpected input."""

import copy
import doctest
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
import typer
from magma_conformance.bits import first_difference
from magma_conformance.commands.page import page as command
from magma_conformance.report.page import render_page, write_page
from magma_conformance.report.page_view import SHOWN
from magma_conformance.report.read import read_report
from magma_conformance.report.report import RunReport
from magma_conformance.runner.result import Mismatch, Result
from magma_conformance.versions import SUITE_VERSION
from paths import HELPERS
from typer.testing import CliRunner


class Structure(HTMLParser):
    """Elements with the names of their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] != [("style",)]:
            self.text += data


def test_hostile_names_do_not_become_elements():
    clean, hostile = reports.mixed(), reports.spoilt(reports.mixed())
    # backends are the first words of modes: where they are named by themselves, they must still be theirs
    for names in (clean["environment"]["versions"], clean["environment"]["devices"], clean["environment"]["drivers"]):
        for name in list(names):
            names[f"{name}-"] = names.pop(name)
    hostile_page = Structure(render_page([hostile]))
    assert Counter(hostile_page.elements)[("script",)] == 0
    assert hostile_page.elements == Structure(render_page([clean])).elements
    assert hostile_page.text.count("<script>alert(1)</script>") > 50
    assert "49" not in hostile_page.text


def test_hostile_characters_are_written(tmp_path):
    write_page([reports.spoilt(reports.mixed())], tmp_path / "page.html")
    assert "driver 570.86" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [None, *reports.COMMITTED], ids=lambda file: file.stem if file else "mixed")
def test_counts_are_those_of_the_report(file):
    report = read_report(file) if file else reports.mixed()
    page = render_page([report])
    said = re.findall(r'aria-label="([^"]+), (\S+): (\d+) of (\d+) equal, (\d+) not run"', page)
    found: dict[tuple[str, str], Counter[str]] = {}
    for result in report["results"]:
        found.setdefault((result["mode"], result["column"]), Counter())[result["status"]] += 1
    assert {(mode, column): tuple(map(int, numbers)) for mode, column, *numbers in said} == {
        cell: (count["equal"], count.total() - count["not run"], count["not run"]) for cell, count in found.items()
    }
    tally = dict(re.findall(r"<b>(\d+)</b> (equal|different|failed|not run)</li>", page)[i][::-1] for i in range(4))
    assert {status: int(count) for status, count in tally.items() if int(count)} == report["counts"]


def test_several_reports_are_counted_together():
    page = Structure(render_page([reports.mixed(), reports.equal()]))
    assert "✗ 4 of 23 cases that ran are not equal." in " ".join(page.text.split())
    assert page.elements.count(("section", "class", "id", "aria-labelledby")) == 2


def test_nothing_run_proves_nothing():
    text = Structure(render_page([RunReport(absent={"jax jit": "not installed"}).to_json()])).text
    assert "nothing is proven" in text
    assert "not run: not installed" in text


def test_what_was_not_run_is_not_green():
    page = render_page(
        [RunReport([Result("mine eager", "sgd/1", "sgd", "not run", 0.0, reason="no float16")]).to_json()]
    )
    assert "nothing is proven" in page
    assert 'class="idle"><a' in page
    assert 'class="verdict idle"' in page
    assert not re.search(r'<td class="[^"]*equal', page)


def test_old_reports_lack_what_is_new():
    page = render_page([read_report(reports.RESULTS / "cpu-amd-epyc.json")])
    report = json.loads((reports.RESULTS / "cpu-amd-epyc.json").read_text())
    for name in ("vectors_version", "spec_version", "date", "modes"):
        report.pop(name, None)
    report["environment"].pop("drivers", None)
    report["environment"]["versions"].pop("torch", None)
    old = Structure(render_page([report | {"suite_version": 1}]))
    assert old.text.count("unknown") == 4
    assert "Unknown is what this report, of suite version 1, does not say." in old.text
    assert len(old.elements) > 500
    assert len(page) > 10_000


def test_new_reports_lack_nothing():
    assert "unknown" not in Structure(render_page([reports.mixed()])).text.lower()


def test_what_is_absent_has_a_reason():
    text = " ".join(Structure(render_page([reports.mixed()])).text.split())
    for said in (
        "their jit – not run: no device cuda",
        "text: torch is not installed",
        "their: found no driver",
        "mine eager: 1 case: no bfloat16",
        "✗ the loss did not fall",
    ):
        assert said in text


def test_differences_say_everything():
    text = " ".join(Structure(render_page([reports.mixed()])).text.split())
    value = "array w/second_moment index [1, 0] distance 1 ulp elements that differ 1"
    assert (
        f"✗ different adamw/15 step 3 of 12 {value} actual 3.0 0x40400000 expected 3.000000238418579 0x40400001" in text
    )
    assert "differs in shape" in text
    assert "actual (2,) expected (3,)" in text
    assert "actual float32 expected float64" in text
    assert "✗ failed adamw/18 ValueError: no" in text


def test_losses_are_drawn_as_they_are():
    page = render_page([reports.mixed()])
    lines = re.findall(r'<polyline points="([^"]+)"', page)
    assert [len(line.split()) for line in lines] == [2, 2]  # the third loss is not finite
    heights = [float(point.split(",")[1]) for line in lines for point in line.split()]
    assert heights == sorted(heights)  # the loss falls, and the picture's y grows downwards
    assert "loss 5.500 → 2.500 nats per byte in 5 steps, 1 of them not finite" in page


@pytest.mark.parametrize("losses", [[], [1.0], [None, None]], ids=str)
def test_no_curve_without_losses(losses):
    assert "<svg" not in render_page([reports.equal() | {"losses": losses}])


@pytest.mark.parametrize(
    "losses", [[2.0, 2.0], [0.0, 0.0], [-1e99, 1e99], [0.0, 5e-324], [1e20, 1e20 + 16384]], ids=str
)
def test_curve_of_odd_losses(losses):
    page = render_page([reports.equal() | {"losses": losses}])
    for x, y in re.findall(r"([-\d.]+),([-\d.]+)", re.findall(r'points="([^"]+)"', page)[0]):
        assert 0 <= float(x) <= 340
        assert 0 <= float(y) <= 170


def test_long_lists_are_cut():
    count = SHOWN + 30
    results = [Result("mine eager", f"sgd/{i}", "sgd", "equal", 0.0) for i in range(count)]
    results += [Result("mine eager", f"adam/{i}", "adam", "failed", 0.0, reason="no") for i in range(count)]
    text = Structure(render_page([RunReport(results).to_json()])).text
    assert "and 30 more, in the JSON" in text
    assert "and 30 more that are not equal, in the JSON" in text
    assert f"sgd/{SHOWN - 1}" in text
    assert f"sgd/{SHOWN}" not in text


def test_page_needs_nothing_else():
    page = render_page([reports.mixed()])
    assert set(re.findall(r'(?:href|src)="([^"#]*)', page)) == {"", "data:,"}
    assert "url(" not in page
    assert "@import" not in page


def test_page_is_the_same_each_time():
    code = (
        "import reports; from magma_conformance.report.page import render_page; print(render_page([reports.mixed()]))"
    )
    pages = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONUTF8": "1", "PYTHONPATH": str(HELPERS)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert pages == {(render_page([reports.mixed()]) + "\n").encode()}


def test_committed_page_is_of_the_committed_reports():
    made = render_page([read_report(file) for file in reports.COMMITTED])
    assert (reports.RESULTS / "matrix.html").read_text(encoding="utf-8") == made, (
        "make it anew: magma-conformance page docs/results/cpu-amd-epyc.json docs/results/cpu-amd-epyc-*.json "
        "--html docs/results/matrix.html"
    )


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The command, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(command)

    def run(*arguments: str):
        return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})

    return run


def test_command_writes_the_page(page):
    Path("report.json").write_text(json.dumps(reports.mixed()))
    result = page("report.json", "report.json", "--html", "new/page.html")
    assert result.exit_code == 0, result.output
    assert Path("new/page.html").read_text(encoding="utf-8") == render_page([reports.mixed(), reports.mixed()])


def _without(*path: str | int) -> dict[str, Any]:
    report = copy.deepcopy(reports.mixed())
    part: Any = report
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    return report


def _with(value: Any, *path: str | int) -> dict[str, Any]:
    report = reports.mixed()
    part: Any = report
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return report


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"suite": NaN}', "not JSON: NaN"),
        (b"\xff", "not JSON"),
        ([], "not a report"),
        ({"suite": "pytest"}, "not a report"),
        (_without("suite_version"), "'suite_version' is a required property"),
        (_with(SUITE_VERSION + 1, "suite_version"), f"suite_version: {SUITE_VERSION + 1} is newer"),
        (_with(True, "suite_version"), "suite_version: True"),
        (_without("results"), "'results' is a required property"),
        (_without("results", 0, "mode"), "results[0]: 'mode' is a required property"),
        (_with("great", "results", 3, "status"), "results[3].status: 'great'"),
        (_with(None, "results", 3, "seconds"), "results[3].seconds: None"),
        (_with(10**400, "results", 3, "seconds"), "results[3].seconds: 1000"),
        (_with(True, "results", 3, "steps"), "results[3].steps: True"),
        (_with({}, "results", 15, "mismatch"), "results[15].mismatch: 'step' is a required property"),
        (_with("5.5", "losses", 0), "losses[0]: '5.5'"),
        (_with([], "absent"), "absent: [] is not of type 'object'"),
        (_with({}, "failures"), "failures: {} is not of type 'array'"),
        (_with(1, "environment", "versions", "mine"), "environment.versions.mine: 1"),
    ],
    ids=lambda value: value if isinstance(value, str) and 0 < len(value) < 60 else "",
)
def test_command_refuses_what_is_no_report(page, content, said):
    Path("good.json").write_text(json.dumps(reports.mixed()))
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    Path("bad.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    result = page("good.json", "bad.json", "--html", "page.html")
    assert result.exit_code == 2
    shown = " ".join(result.output.split())
    assert shown.startswith("bad.json: ")
    assert f": {said}" in shown
    assert "make one with: magma-conformance run --json FILE" in shown or "update magma-optim" in shown
    assert not Path("page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.json", "--html", "page.html"), "nowhere.json: cannot be read: No such file"),
        (("good.json", "--html", "good.json"), "good.json is one of the reports"),
        (("good.json", "--html", "folder"), "folder cannot be written: Is a directory"),
        (("good.json", "--html", "good.json/page.html"), "good.json/page.html cannot be written"),
    ],
    ids=["no-report", "over-a-report", "a-folder", "under-a-file"],
)
def test_command_refuses_files_that_it_cannot_use(page, arguments, said):
    Path("good.json").write_text(json.dumps(reports.mixed()))
    Path("folder").mkdir()
    result = page(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert json.loads(Path("good.json").read_text()) == reports.mixed()
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "good.json"]


def test_a_page_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one report"):
        render_page([])


@pytest.mark.parametrize("module", ["report.report", "report.read", "report.page", "report.loss_curve", "machine"])
def test_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"magma_conformance.{module}"), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 0


def test_what_failed_vectors_have_in_common_is_said():
    """With the flag's note; of a report without flags nothing."""
    mismatch = Mismatch(1, "w/mu", first_difference(np.float32([1]), np.float32([2])))
    vectors = [Result("m", f"vectors/sgd/{i}", "steps", "different", 0.1, 1, "", mismatch, ("Flush",)) for i in (1, 2)]
    report = RunReport(results=vectors).to_json()
    assert list(report["modes"]["m"]["suspects"]) == ["Flush"]
    said = "<li>Flush (in 2 of 2 failed vectors; it changes 2): Values below"
    assert said in render_page([report])
    report["suite_version"] = 1
    for result in report["results"]:
        del result["flags"]
    assert said not in render_page([report])


def test_what_was_plugged_in_is_no_framework():
    text = render_page(
        [RunReport(results=[Result("exec ./my-port", "vectors/sgd/1", "steps", "equal", 0.1)]).to_json()]
    )
    assert "exec ./my-port on" in text
    assert '<th scope="row">exec</th>' not in text
