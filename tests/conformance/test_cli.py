"""The command line: exit statuses, output, and the JSON report."""

import io
import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import magma_conformance.cli as cli
import pytest
from magma_conformance.bits import first_difference
from magma_conformance.cases import real_text
from magma_conformance.commands.run import _idle
from magma_conformance.implementations import adapters
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.report.report import RunReport, render
from magma_conformance.runner import jobs
from magma_conformance.runner.result import Mismatch, Result
from magma_conformance.vectors import FOLDER
from magma_conformance.vectors.generator import write as generator
from magma_conformance.versions import SPEC_VERSION, SUITE_VERSION, VECTORS_VERSION
from rich.console import Console
from typer.testing import CliRunner

import magma_core

CASE = "adamw/*/matrix/*"


@pytest.fixture
def magma_conformance():
    def run(*arguments: str):
        return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})

    return run


def test_run_equal_exits_0_and_writes_the_report(magma_conformance, tmp_path):
    file = tmp_path / "report.json"
    result = magma_conformance(
        "run", "--backend", "numpy", "--backend", "strict", "--case", "adam*", "--jobs", "1", "--json", str(file)
    )
    assert result.exit_code == 0, result.output
    assert "numpy eager" in result.output
    report = json.loads(file.read_text())
    assert report["suite"] == "magma-conformance"
    assert report["counts"].keys() <= {"equal", "not run"}
    assert {r["mode"] for r in report["results"]} == {"numpy eager", "strict eager"}
    assert report["inputs"].keys() == {r["case"] for r in report["results"]}
    # half precision is outside the standard, and says so
    assert all("no " in r["reason"] for r in report["results"] if r["status"] == "not run")


def test_run_mismatch_exits_1_and_shows_it(magma_conformance, monkeypatch):
    difference = first_difference([1.0], [2.0])
    monkeypatch.setattr(jobs, "compare", lambda records, reference, first_step: Mismatch(3, "w/mu", difference))
    result = magma_conformance("run", "--backend", "numpy", "--case", CASE, "--jobs", "1")
    assert result.exit_code == 1
    assert "step 3, w/mu: [0] 1.0 0x3ff0000000000000, expected 2.0 0x4000000000000000" in result.output


def test_run_real_text_on_numpy(magma_conformance):
    pytest.importorskip("torch", reason="torch is not installed")
    result = magma_conformance("run", "--backend", "numpy", "--case", "text", "--steps", "12", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "real text: loss 5." in result.output


def test_run_loss_that_does_not_fall_is_a_failure(magma_conformance, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    record = real_text.record
    monkeypatch.setattr(real_text, "record", lambda *arguments: (record(*arguments)[0], [1.0, 2.0]))
    result = magma_conformance("run", "--backend", "numpy", "--case", "text", "--steps", "2", "--jobs", "1")
    assert result.exit_code == 1
    assert "did not fall" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "theano"], "no backend 'theano'"),
        (["--backend", "numpy", "--case", "adam/*/nonsense"], "no case matches"),
        (["--backend", "numpy", "--mode", "jit"], "no mode 'jit' of numpy; there are eager"),
    ],
)
def test_run_what_does_not_exist_exits_2(magma_conformance, arguments, said):
    result = magma_conformance("run", *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_run_backend_asked_for_but_not_installed_exits_2(magma_conformance, monkeypatch):
    def absent(device: str):
        raise ImportError("jax is not installed: pip install 'magma-optim[jax]'")

    monkeypatch.setitem(BACKENDS, "jax", (("eager", "jit"), absent))
    jobs.open_mode.cache_clear()
    result = magma_conformance("run", "--backend", "jax", "--backend", "numpy", "--case", CASE, "--jobs", "1")
    assert result.exit_code == 2
    assert "not installed" in result.output
    assert "magma-optim[jax]" in result.output
    assert "numpy eager" not in result.output  # nothing was computed


@pytest.mark.parametrize(("adapter", "mode", "absent"), [("torch", "eager", "torch"), ("jax", "jit", "optax")])
def test_an_adapter_without_its_framework_says_what_to_install(adapter, mode, absent):
    code = f"""
import sys
sys.modules["{absent}"] = None  # what is not there
from magma_conformance.implementations.adapters import ADAPTERS
try:
    ADAPTERS["magma_{adapter}"].open("{mode}", "cpu")
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{absent} is not installed: pip install 'magma-optim[{adapter}]'\n"


def test_magma_keras_without_a_backend_says_what_to_install(monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras is not installed: pip install 'magma-optim\[keras\]'"):
        adapters.ADAPTERS["magma_keras"].open("torch-eager", "cpu")


def test_run_device_that_is_not_there_exits_2(magma_conformance):
    pytest.importorskip("torch", reason="torch is not installed")
    result = magma_conformance("run", "--backend", "torch", "--device", "cuda:7", "--case", CASE, "--jobs", "1")
    assert result.exit_code == 2
    assert "no device cuda:7" in result.output


@pytest.mark.parametrize("given", [["--backend", "numpy"], ["--impl", "numpy:dtype"], []])
def test_run_device_that_nothing_here_is_for_is_refused_first(magma_conformance, monkeypatch, given):
    monkeypatch.setattr("magma_conformance.commands.run.run_jobs", None)
    monkeypatch.setattr("magma_conformance.commands.run._open_plugged", lambda plugged: dict.fromkeys(plugged, ""))
    result = magma_conformance("run", *given, "--device", "cuda:7")
    assert result.exit_code == 2
    assert "has a device cuda:7" in result.output


def test_module_is_the_command(magma_conformance, capsys, monkeypatch):
    import runpy

    monkeypatch.setattr(sys, "argv", ["magma_conformance", "run", "--help"])
    monkeypatch.delitem(sys.modules, "magma_conformance.__main__", raising=False)  # another test may have imported it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("magma_conformance", run_name="__main__")
    assert ended.value.code == 0
    assert "--backend" in capsys.readouterr().out


def test_report_shows_what_is_absent():
    equal = Result("numpy eager", "c", "adamw", "equal", 0.1)
    report = RunReport(results=[equal], absent={"jax jit": "not installed"})
    console = Console(width=200, record=True, file=io.StringIO())
    render(report, ["numpy eager", "jax jit"], console)
    text = console.export_text()
    assert "not installed" in text
    assert "equal" in text


def test_run_device_that_no_backend_has_exits_2(magma_conformance):
    """Also when no backend is named, and NumPy, which stays on the CPU, is equal to itself."""
    result = magma_conformance("run", "--device", "cuda:7", "--case", CASE, "--jobs", "1")
    assert result.exit_code == 2
    assert "no backend here has a device cuda:7" in result.output


def test_run_backend_that_refuses_every_case_exits_2(magma_conformance):
    result = magma_conformance("run", "--backend", "strict", "--case", "*/bfloat16/*", "--jobs", "1")
    assert result.exit_code == 2
    assert "could not run: strict eager" in result.output


def test_run_one_mode_of_a_backend(magma_conformance, tmp_path):
    pytest.importorskip("jax", reason="jax is not installed")
    file = tmp_path / "report.json"
    arguments = ("--backend", "jax", "--backend", "numpy", "--mode", "jit", "--case", "sgd/dense/scalar/*")
    result = magma_conformance("run", *arguments, "--jobs", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert {r["mode"] for r in json.loads(file.read_text())["results"]} == {"jax jit"}


def test_run_says_what_there_was_no_time_for(magma_conformance, monkeypatch):
    clock = SimpleNamespace(monotonic=iter(range(0, 10**6, 10)).__next__, perf_counter=time.perf_counter)
    monkeypatch.setattr(jobs, "time", clock)
    result = magma_conformance("run", "--backend", "numpy", "--case", "adamw/*", "--jobs", "1", "--seconds", "15")
    assert result.exit_code == 0, result.output
    assert "5 cases not run: 15 seconds were over" in result.output


def test_run_writes_a_page(magma_conformance, tmp_path):
    file = tmp_path / "matrix.html"
    result = magma_conformance(
        "run", "--backend", "numpy", "--case", "vectors/sums/*", "--jobs", "1", "--html", str(file)
    )
    assert result.exit_code == 0, result.output
    assert "numpy eager" in file.read_text(encoding="utf-8")


def test_run_page_that_cannot_be_written_exits_2(magma_conformance, tmp_path):
    (tmp_path / "file").write_text("")
    where = str(tmp_path / "file" / "matrix.html")
    result = magma_conformance("run", "--backend", "numpy", "--case", CASE, "--jobs", "1", "--html", where)
    assert result.exit_code == 2
    assert "--html" in result.output


def test_run_report_of_an_adapter_names_its_framework(magma_conformance, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    file = tmp_path / "report.json"
    case = ("--mode", "eager", "--case", "sgd/dense/scalar/*")
    magma_conformance("run", "--backend", "magma_torch", *case, "--json", str(file))
    environment = json.loads(file.read_text())["environment"]
    assert environment["versions"]["magma_torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert environment["devices"]["magma_torch"] == environment["drivers"]["magma_torch"] == ""


def test_vectors_are_checked_and_written(magma_conformance, monkeypatch, tmp_path):
    """That the generator writes what is there is tested in test_vectors.py."""
    monkeypatch.setattr(generator, "write", lambda folder, say: shutil.copytree(FOLDER, folder, dirs_exist_ok=True))
    result = magma_conformance("vectors")
    assert result.exit_code == 0, result.output
    assert "vectors, no mistakes" in result.output
    result = magma_conformance("vectors", "--write", str(tmp_path), "--check", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "written to" in result.output
    (tmp_path / "sgd.json").write_text(
        (tmp_path / "adam.json").read_text(encoding="utf-8").replace('"id": 2,', '"id": 3,')
    )
    result = magma_conformance("vectors", "--check", str(tmp_path))
    assert result.exit_code == 1
    assert "sgd.json: ids must count from 1" in result.output


@pytest.mark.parametrize(("option", "said"), [("--check", "No such file"), ("--write", "exists")])
def test_vectors_folder_that_is_none_exits_2(magma_conformance, tmp_path, option, said):
    where = tmp_path / "nowhere"
    if option == "--write":
        where.write_text("")
    result = magma_conformance("vectors", option, str(where))
    assert result.exit_code == 2
    assert said in result.output


def test_version(magma_conformance):
    result = magma_conformance("--version")
    assert result.exit_code == 0
    numbers = f"suite {SUITE_VERSION}, vectors {VECTORS_VERSION}, spec {SPEC_VERSION}"
    assert result.output == f"magma-optim {magma_core.__version__} ({numbers})\n"


def test_every_command_is_there(magma_conformance):
    result = magma_conformance("--help")
    assert all(name in result.output for name in ("run", "compare", "relay", "vectors", "page", "probe", "bench"))


def test_a_mode_that_is_for_other_devices_is_missed_only_if_it_was_asked_for():
    modes = {("torch", "eager"): "", ("torch", "graph"): "no device cpu", ("jax", "jit"): "not installed"}
    ran = {"torch eager"}
    assert _idle(modes, ran, by_mode=False) == ["jax jit"]
    assert _idle(modes, ran, by_mode=True) == ["torch graph", "jax jit"]
    assert _idle(modes, set(), by_mode=False) == ["torch eager", "torch graph", "jax jit"]
