"""Foreign files: whatever one is and holds, a command reports it in one line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from compared_reports import B, changed, report
from magma_conformance.cli import app
from magma_conformance.runner.repro import FORMAT
from magma_conformance.vectors import FOLDER
from magma_conformance.wire.untrusted import shown
from reports import mixed
from typer.testing import CliRunner

DEPTHS = (100, 890, 900, 980, 990, 1_500, 5_000, 10_000, 100_000)


@pytest.fixture(params=["compare", "page", "compare-with", "run"])
def command(request, tmp_path, monkeypatch):
    """A command that reads ``bad.json`` in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(json.dumps(report()))
    arguments = {
        "compare": ["compare", "bad.json", "good.json"],
        "compare-with": ["compare", "good.json", "bad.json"],
        "page": ["page", "good.json", "bad.json", "--html", "page.html"],
        "run": ["run", "--backend", "numpy", "--repro", "bad.json"],
    }[request.param]

    def run() -> str:
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "10000"})
        assert result.exit_code == 2, (result.exception, result.output)
        assert result.output.count("\n") == 1
        return result.output

    return run


def write_sparse() -> None:
    with open("bad.json", "wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Path("bad.json").mkdir(), "not a regular file"),
        (lambda: os.mkfifo("bad.json"), "not a regular file"),
        (lambda: Path("bad.json").symlink_to("/dev/zero"), "not a regular file"),
        (lambda: Path("bad.json").symlink_to("bad.json"), "symbolic links"),
        (write_sparse, "more than 268,435,456 bytes"),
        (lambda: Path("bad.json").write_bytes(b'{"suite": "\xff"}'), "can't decode byte 0xff"),
        (lambda: Path("bad.json").write_bytes(b"\xff\xfe{\0}\0"), "can't decode byte 0xff"),
        (lambda: Path("bad.json").write_text('{"suite_version": ' + "1" * 5_000 + "}"), "4300"),
    ],
    ids=["folder", "pipe", "device", "loop", "sparse", "latin-1", "utf-16", "digits"],
)
def test_files_that_are_no_reports(command, make, said):
    make()
    assert said in command()


def test_a_link_to_a_report_is_one(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    (tmp_path / "link.json").symlink_to("report.json")
    file = str(tmp_path / "link.json")
    assert CliRunner().invoke(app, ["compare", file, file]).exit_code == 0


@pytest.mark.parametrize("where", ["suite_version", "failures"])
def test_nesting_of_any_depth(command, where):
    """What can still be read may be too deep to be shown."""
    for depth in DEPTHS:
        deep = "[" * depth + "]" * depth
        Path("bad.json").write_text(json.dumps(mixed() | {where: 0}).replace(f'"{where}": 0', f'"{where}": {deep}'))
        assert "bad.json" in command()


@pytest.mark.parametrize("command", ["compare", "page"], indirect=True)
def test_keys_are_shown_in_one_line(command):
    Path("bad.json").write_text(json.dumps(mixed() | {"absent": {"a\x1b[2J\nb" + "z" * 5_000: 0}}))
    assert r"absent['a\x1b[2J\nbzzz" in command()


@pytest.mark.parametrize(
    "content",
    [[], {}, {"format": FORMAT}, {"format": FORMAT, "task": []}, {"format": FORMAT, "task": {"base": {}}}],
    ids=str,
)
def test_cases_that_are_none(tmp_path, content):
    (tmp_path / "bad.json").write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["run", "--backend", "numpy", "--repro", str(tmp_path / "bad.json")])
    assert result.exit_code == 2, result.exception
    assert "bad.json is no repro file" in " ".join(result.output.split())


@pytest.mark.parametrize("part", ["inputs", "digest"])
def test_reports_that_lack_digests_are_not_compared(tmp_path, part):
    lacking: dict[str, Any] = report()
    for entry in [lacking, *lacking["results"]]:
        entry.pop(part, None)
    (tmp_path / "good.json").write_text(json.dumps(report()))
    (tmp_path / "bad.json").write_text(json.dumps(lacking))
    files = [str(tmp_path / name) for name in ("good.json", "bad.json")]
    for order in (files, files[::-1]):
        result = CliRunner().invoke(app, ["compare", *order])
        assert result.exit_code == 2, result.exception
        assert f"{part!r} is a required property; make one with: magma-conformance run" in " ".join(
            result.output.split()
        )


def test_names_in_a_comparison_are_no_markup(tmp_path):
    hostile = "[/red]\x1b[2J\ud800 [bold]x"
    other = changed(report(hostile), "sgd/1", digest=B)
    (tmp_path / "[red].json").write_text(json.dumps(report()))
    (tmp_path / "other.json").write_text(json.dumps(other))
    files = [str(tmp_path / name) for name in ("[red].json", "other.json")]
    result = CliRunner().invoke(app, ["compare", *files], env={"COLUMNS": "200"})
    assert result.exit_code == 1, result.exception
    assert "[red]" in result.output
    assert rf"{shown(hostile)}: different: sgd/1" in result.output
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("make", "said", "status"),
    [
        (lambda file: file.mkdir(), "not a regular file", 2),
        (os.mkfifo, "not a regular file", 2),
        (lambda file: file.symlink_to("/dev/zero"), "not a regular file", 2),
        (lambda file: file.write_text("[" * 100_000), "", 1),
        (lambda file: file.write_bytes(b"\xff"), "can't decode", 1),
    ],
    ids=["folder", "pipe", "device", "deep", "latin-1"],
)
@pytest.mark.parametrize("name", ["adamw.json", "threefry.txt"])
def test_files_that_are_no_vectors(tmp_path, name, make, said, status):
    folder = tmp_path / "vectors"
    shutil.copytree(FOLDER, folder)
    (folder / name).unlink()
    make(folder / name)
    result = CliRunner().invoke(app, ["vectors", "--check", str(folder)], env={"COLUMNS": "10000"})
    assert result.exit_code == status, result.exception
    assert said in result.output
    assert result.output.count("\n") == 1
