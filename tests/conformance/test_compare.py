"""Comparing reports: what counts as equal, and what proves nothing."""

import io
import json
from typing import Any

import pytest
from compared_reports import CASES, B, changed, report
from magma_conformance.commands.compare import compare as command
from magma_conformance.report.compare import compare_reports, render
from magma_conformance.vectors import load
from reports import RESULTS
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner


def test_equal():
    (row,) = compare_reports(report(), [report("jax jit")])
    assert (row.mode, row.report, row.verdict, row.equal) == ("jax jit", 0, "equal", list(CASES))


@pytest.mark.parametrize("case", CASES)
def test_one_other_digest_is_found(case):
    (row,) = compare_reports(report(), [changed(report("jax jit"), case, digest=B)])
    assert (row.verdict, row.different) == ("different", [case])


@pytest.mark.parametrize("status", ["different", "failed"])
def test_what_is_not_equal_there_is_not_equal_here(status):
    """Even with the right digest, which a report that was tampered with could have."""
    (row,) = compare_reports(report(), [changed(report("jax jit"), "sgd/1", status=status)])
    assert (row.verdict, row.different) == ("different", ["sgd/1"])


def test_other_inputs_prove_nothing():
    (row,) = compare_reports(report(), [changed(report("jax jit", **{"sgd/1": B}), "sgd/1", digest=B)])
    assert (row.verdict, row.other_inputs, row.different) == ("not proven", ["sgd/1"], [])


def test_the_text_is_each_machines_own():
    (row,) = compare_reports(report(), [changed(report("jax jit", text=B), "text", digest=B)])
    assert (row.verdict, row.other_inputs) == ("equal", ["text"])


def test_nothing_compared_is_not_equal():
    other = report("jax jit")
    for result in other["results"]:
        result["case"] += "/elsewhere"
    (row,) = compare_reports(report(), [other])
    assert (row.verdict, len(row.unknown)) == ("not proven", len(CASES))


def test_what_was_not_run_is_counted():
    (row,) = compare_reports(report(), [changed(report("jax jit"), "sgd/1", status="not run", digest="")])
    assert (row.verdict, row.not_run, len(row.equal)) == ("equal", 1, len(CASES) - 1)
    assert compare_reports(report(), [report("jax jit", status="not run")]) == []


def test_modes_of_the_reference_must_agree():
    both = report()
    both["results"] += changed(report("torch eager"), "adamw/2", digest=B)["results"]
    with pytest.raises(ValueError, match="two digests of adamw/2"):
        compare_reports(both, [report()])


def test_what_differs_is_no_reference():
    with pytest.raises(ValueError, match="nothing in the reference is equal"):
        compare_reports(report(status="different"), [report()])


@pytest.mark.parametrize("name", ["suite_version", "spec_version", "vectors_version"])
def test_other_suites_cannot_be_compared(name):
    other = report()
    other[name] += 1
    with pytest.raises(ValueError, match=f"{name}: .*different suites"):
        compare_reports(report(), [other])


def test_old_reports_have_no_digests():
    old = report() | {"suite_version": 2}
    with pytest.raises(ValueError, match="2 has no digests"):
        compare_reports(old, [old])


def test_table_says_what_is_not_equal():
    console = Console(file=io.StringIO(), width=120)
    other = changed(report("jax jit", text=B), "sgd/1", digest=B)
    render(compare_reports(report(), [other]), ["cpu", "h100"], console)
    text = " ".join(console.file.getvalue().split())
    for said in ("beside those of cpu", "h100 jax jit different 2 1 1 0 0", "jax jit: different: sgd/1"):
        assert said in text
    assert "jax jit: other inputs: text (its text and gradients are each machine's own)" in text


@pytest.fixture
def compare(tmp_path):
    """The command, over reports that are written to files."""
    app = Typer()
    app.command()(command)

    def run(*reports: Any, arguments: tuple[str, ...] = ()) -> Any:
        files = []
        for i, one in enumerate(reports):
            files.append(str(tmp_path / f"{i}.json"))
            (tmp_path / f"{i}.json").write_text(json.dumps(one))
        return CliRunner().invoke(app, [*files, *arguments], env={"COLUMNS": "200"})

    return run


def test_command(compare, tmp_path):
    out = tmp_path / "out.json"
    assert compare(report(), report("jax jit"), arguments=("--json", str(out))).exit_code == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["mode"], row["verdict"], row["equal"]) == ("jax jit", "equal", list(CASES))
    assert compare(report(), report("jax jit"), report("torch eager", digest=B)).exit_code == 1
    assert compare(report(), report("jax jit", status="not run")).exit_code == 1
    refused = compare(report(), {"suite": "another"})
    assert refused.exit_code == 2
    assert "not a report" in refused.output


def test_committed_digests_are_whole():
    """What devices are compared with: all cases, every result equal, and the modes agree."""
    committed = json.loads((RESULTS / "cpu-digests.json").read_text())
    rows = compare_reports(committed, [committed])
    assert {"numpy eager", "torch eager", "jax jit", "jax scan"} <= {row.mode for row in rows}
    assert all(row.verdict == "equal" and not row.unknown for row in rows)
    assert {"recorded", "text"} <= committed["inputs"].keys()
    refused = {v.name for v in load() if "refused" in v.expected}
    for result in committed["results"]:
        assert bool(result["digest"]) == (result["status"] == "equal" and result["case"] not in refused)
