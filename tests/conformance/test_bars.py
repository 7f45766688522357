"""Progress without a terminal: a line from time to time."""

import re
import time
from contextlib import suppress

import pytest
from magma_conformance.terminal import bars
from magma_conformance.terminal.bars import Bars


def test_without_a_terminal_there_are_lines(monkeypatch, capsys):
    monkeypatch.setattr(bars, "EVERY", 0.01)
    said = ""
    with Bars() as progress:
        progress.add_task("all of it done", total=1, completed=1)
        progress.add_task("later", start=False)
        task = progress.add_task("[red]torch[/] compile", total=37)
        progress.advance(task, 4)
        progress.add_task("making", total=None)
        end = time.monotonic() + 60
        while said.count("making") < 2 and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert re.match(r"0:00:\d\d torch compile 4/37\n0:00:\d\d making\n", said)
    assert "later" not in said
    assert "all of it" not in said


def test_nothing_is_said_of_what_is_soon_over(capsys):
    with Bars() as progress:
        progress.add_task("quick", total=2)
    assert capsys.readouterr().err == ""


def test_who_is_quiet_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(bars, "EVERY", 0.01)
    with Bars(quiet=True) as progress:
        progress.add_task("quiet", total=2)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_lines_end_with_an_exception(monkeypatch, capsys):
    monkeypatch.setattr(bars, "EVERY", 0.01)
    with suppress(KeyError), Bars() as progress:
        progress.add_task("broken off", total=2)
        raise KeyError
    time.sleep(0.1)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [40])
def test_a_line_is_not_cut(monkeypatch, capsys, width):
    monkeypatch.setattr(bars, "EVERY", 0.01)
    monkeypatch.setenv("COLUMNS", str(width))
    said, name = "", "exec ./my-port " + "x" * 100
    with Bars() as progress:
        progress.add_task(name, total=2)
        end = time.monotonic() + 60
        while not said and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert said.splitlines()[0].endswith(f"{name} 0/2")
