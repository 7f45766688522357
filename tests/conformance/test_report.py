"""The JSON report of a run: its content and its schema."""

import json
import subprocess
import sys
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jsonschema import Draft202012Validator, ValidationError
from magma_conformance import machine
from magma_conformance.bits import first_difference
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.report.report import RunReport
from magma_conformance.runner.jobs import Job
from magma_conformance.runner.result import Mismatch, Result
from magma_conformance.versions import SPEC_VERSION, SUITE_VERSION, VECTORS_VERSION
from reports import through_json

SCHEMA = json.loads(files("magma_conformance.report").joinpath("report.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)


@pytest.fixture
def report() -> RunReport:
    """Every status, every kind of difference, and modes that come in no good order."""
    value = first_difference(np.float32([1, 2]), np.float32([1, 3]))
    shape = first_difference(np.zeros(2), np.zeros(3))
    dtype = first_difference(np.float32(0), np.float64(0))
    flag = first_difference(np.asarray([True]), np.asarray([False]))
    assert None not in (value, shape, dtype, flag)

    def different(mode: str, case: str, mismatch: Mismatch) -> Result:
        return Result(mode, case, "adamw", "different", 0.5, 12, str(mismatch), mismatch)

    return RunReport(
        results=[
            Result("mine", "adamw/1", "adamw", "equal", 0.5, 12),
            Result("torch eager", "adamw/1", "adamw", "equal", 0.5, 12),
            different("torch eager", "adamw/2", Mismatch(3, "w/mu", value)),
            different("torch eager", "adamw/3", Mismatch(1, "w/mu", shape)),
            different("torch eager", "adamw/4", Mismatch(1, "w/mu", dtype)),
            different("torch eager", "adamw/5", Mismatch(1, "w/keep", flag)),
            Result("jax jit", "adamw/2", "adamw", "failed", 0.25, 12, "ValueError: no"),
            Result("numpy eager", "threefry/1", "threefry", "not run", 0.0, 0, "no vectors"),
        ],
        absent={"jax scan": "not installed", "text": "torch is not installed"},
        absent_details={"jax": "no module"},
        failures=["the loss of the real-gradient run did not fall"],
        versions={"torch": "2.13.0"},
        devices={"torch": "NVIDIA H100"},
        drivers={"torch": "CUDA 12.8, driver 570.86"},
        losses=[5.5, float("inf"), float("nan")],
    )


def test_schema_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["suite_version"]["maximum"] == SUITE_VERSION


def test_schema_describes_every_status_and_difference(report):
    VALIDATOR.validate(through_json(report))


def test_schema_describes_an_empty_report():
    VALIDATOR.validate(through_json(RunReport()))


def test_schema_describes_a_run():
    cases = pairwise()[:6]
    results = [
        result for name in ("numpy", "strict") for case in cases for result in Job(name, "eager", "cpu", case).run()
    ]
    VALIDATOR.validate(through_json(RunReport(results)))


@pytest.mark.parametrize(
    "path",
    [(), ("environment",), ("results", 2), ("results", 2, "mismatch"), ("results", 2, "mismatch", "difference")],
    ids=str,
)
def test_schema_refuses_what_it_does_not_describe(report, path):
    data = through_json(report)
    part = data
    for key in path:
        part = part[key]
    part["surprise"] = 1
    with pytest.raises(ValidationError, match="surprise"):
        VALIDATOR.validate(data)
    del part["surprise"]
    for key in list(part):
        taken = part.pop(key)
        assert not VALIDATOR.is_valid(data), f"without {key}"
        part[key] = taken
    VALIDATOR.validate(data)


@pytest.mark.parametrize(("digest", "right"), [("", True), ("0a" * 32, True), ("0A" * 32, False), ("0a" * 31, False)])
def test_schema_knows_a_digest(report, digest, right):
    data = through_json(report)
    data["results"][0]["digest"] = digest
    assert VALIDATOR.is_valid(data) == right
    data["results"][0]["digest"] = ""
    data["inputs"]["adamw/1"] = digest
    assert VALIDATOR.is_valid(data) == (right and digest != "")


def test_schema_wants_a_difference_where_there_is_one(report):
    data = through_json(report)
    data["results"][2]["mismatch"] = None
    with pytest.raises(ValidationError):
        VALIDATOR.validate(data)


def test_report_says_by_what_it_was_made(report):
    data = through_json(report)
    assert (data["suite_version"], data["vectors_version"], data["spec_version"]) == (
        SUITE_VERSION,
        VECTORS_VERSION,
        SPEC_VERSION,
    )
    assert data["environment"]["drivers"] == {"torch": "CUDA 12.8, driver 570.86"}
    assert datetime.fromisoformat(data["date"]).utcoffset().total_seconds() == 0
    assert report.to_json() == report.to_json()  # the date is that of the run


def test_report_counts_per_mode_as_over_all(report):
    data = through_json(report)
    assert list(data["modes"]) == ["numpy eager", "torch eager", "jax jit", "mine"]
    assert data["modes"]["torch eager"]["counts"] == {"equal": 1, "different": 4}
    assert data["modes"]["torch eager"]["seconds"] == 2.5
    for status, count in data["counts"].items():
        assert sum(mode["counts"].get(status, 0) for mode in data["modes"].values()) == count
    assert sum(data["counts"].values()) == len(data["results"])


def test_report_first_difference_of_each_mode(report):
    modes = through_json(report)["modes"]
    assert modes["torch eager"]["first_difference"] == {
        "case": "adamw/2",
        "step": 3,
        "array": "w/mu",
        "difference": {
            "what": "value",
            "index": [1],
            "expected": "3.0 0x40400000",
            "actual": "2.0 0x40000000",
            "ulp": 4194304,
            "count": 1,
        },
    }
    assert modes["jax jit"]["first_difference"] is None  # it failed, and so compared nothing
    assert modes["mine"]["first_difference"] is None


def test_report_losses_that_json_does_not_know(report):
    assert through_json(report)["losses"] == [5.5, None, None]


def test_driver_of_the_processor_is_nothing():
    assert machine.driver("torch", "cpu") == ""


KERNEL = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


def _jax(said: str) -> SimpleNamespace:
    device = SimpleNamespace(client=SimpleNamespace(platform_version=said))
    return SimpleNamespace(devices=lambda kind: [device])


FRAMEWORKS = {
    "torch": SimpleNamespace(version=SimpleNamespace(cuda="12.8")),
    "jax": _jax("PJRT C API\ncuda 12080"),
    "tensorflow": SimpleNamespace(sysconfig=SimpleNamespace(get_build_info=lambda: {"cuda_version": "12.8"})),
}


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("adapter", ["", "magma_"])
def test_driver_of_cuda(monkeypatch, tmp_path, name, adapter):
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "version")
    (tmp_path / "version").write_text(KERNEL)
    monkeypatch.setitem(sys.modules, name, FRAMEWORKS[name])
    assert machine.driver(adapter + name, "cuda:1") == "CUDA 12.8, driver 570.86.15"


def test_driver_from_its_tool(monkeypatch):
    monkeypatch.setattr(machine, "_NVIDIA", Path("/nowhere"))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="535.161\n535.161\n"))
    assert machine.driver("magma_keras", "cuda") == "driver 535.161"


@pytest.mark.parametrize(
    "framework", [SimpleNamespace(), SimpleNamespace(version=SimpleNamespace(cuda=None)), None], ids=str
)
def test_driver_that_nobody_knows(monkeypatch, framework):
    monkeypatch.setattr(machine, "_NVIDIA", Path("/nowhere"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "torch", framework)
    assert machine.driver("torch", "cuda") == ""


def test_driver_imports_no_framework():
    code = "import sys; from magma_conformance.machine import driver; driver('torch', 'cuda'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "jax", "tensorflow"} & set(done.stdout.split())
