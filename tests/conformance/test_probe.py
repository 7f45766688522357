"""The probe: NumPy is clean, planted faults are found, fences hold, and they are still needed."""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from magma_conformance.cli import app
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.probe import run as probe_module
from magma_conformance.probe.expressions import PROBES
from magma_conformance.probe.probe import NUMPY, Probe
from magma_conformance.probe.run import ProbeReport, Result, measure, render, run_probe
from rich.console import Console
from typer.testing import CliRunner

MEASURED = [backend for backend in BACKENDS if backend != "strict"]
BY_ID = {probe.id: probe for probe in PROBES}
FENCED = [probe for probe in PROBES if probe.fenced]
CLEAN = {"0", "kept", "+0", "same", "exact", "n/a"}

# torch.compile is left to the probe itself: one C++ compilation takes longer than all the rest.
MODES = [
    ("torch", "eager"),
    ("jax", "eager"),
    ("jax", "jit"),
    ("jax", "scan"),
    ("tensorflow", "eager"),
    ("tensorflow", "graph"),
    ("tensorflow", "xla"),
]


def probes(*ids: str) -> list[Probe]:
    return [BY_ID[id] for id in ids]


def fake(**changes: Any) -> Mode:
    """NumPy, with something wrong."""
    mode = Mode("numpy", "fake", np.__version__, "", NUMPY.framework, NUMPY.xp, np.asarray)
    return replace(mode, **changes)


def installed(framework: str, name: str) -> Mode:
    try:
        modes = BACKENDS[framework][1]("cpu")
    except ImportError as error:
        pytest.skip(str(error))
    return next(mode for mode in modes if mode.name == name)


def printed(report: ProbeReport, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    render(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def numpy_report() -> ProbeReport:
    return run_probe(["numpy"])


def test_numpy_is_clean(numpy_report: ProbeReport) -> None:
    (mode,) = numpy_report.modes
    assert {probe.id: mode.results[probe.id].text(probe) for probe in PROBES if probe.only is None} == {
        probe.id: "0" if probe.words is None else probe.words[0] for probe in PROBES if probe.only is None
    }
    assert all(mode.results[probe.id].status == "not applicable" for probe in PROBES if probe.only == "torch")
    assert numpy_report.broken_fences() == []


def test_report_is_json(numpy_report: ProbeReport) -> None:
    report = json.loads(json.dumps(numpy_report.to_json(), allow_nan=False))
    assert report["environment"]["versions"]["numpy"] == np.__version__
    assert report["fences_hold"] is True
    (mode,) = report["modes"]
    assert mode["hardware"]
    assert list(mode["results"]) == [probe["id"] for probe in report["probes"]]
    assert mode["results"]["add"] == {
        "status": "measured",
        "text": "0",
        "differing": 0,
        "total": 65536,
        "percent": 0.0,
        "first_difference": None,
    }


def test_table_of_expressions() -> None:
    assert len(BY_ID) == len(PROBES)
    for probe in PROBES:
        assert probe.topic
        assert all(np.array_equal(a, b) for a, b in zip(probe.operands(), probe.operands(), strict=True))


def one_ulp(x: np.ndarray) -> np.ndarray:
    x = np.array(x)
    x[7] = np.nextafter(x[7], np.inf, dtype=np.float32)
    return x


def test_one_planted_ulp_is_found() -> None:
    report = measure(fake(get=one_ulp), probes("multiply"))
    result = report.results["multiply"]
    assert (result.differing, result.total, result.text(BY_ID["multiply"])) == (1, 65536, "<0.1 %")
    assert result.first is not None
    assert (result.first.index, result.first.ulp) == ((7,), 1)


def flushed(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return np.where(np.abs(x) < 2.0**-126, np.float32(0), x) if x.dtype == np.float32 else x


def widened(x: Any) -> np.ndarray:
    return x.astype(np.float64) if x.dtype == np.float32 else x


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"put": widened, "get": lambda x: x.astype(np.float32)},
            {"two_products": "%", "by_root": "%", "multiply": "0", "sqrt": "0", "subnormal_result": "kept"},
            id="excess-precision",
        ),
        pytest.param(
            {"put": flushed, "get": flushed},
            {
                "subnormal_operand": "flushed",
                "subnormal_result": "flushed",
                "subnormal_compared": "flushed",
                "add": "0",
            },
            id="flush-to-zero",
        ),
        pytest.param(
            {"get": lambda x: np.where(x == 0, np.float32(-0.0), x)},
            {"zeros_added": "−0", "zero_constant": "−0", "divide": "0"},
            id="sign-of-zero",
        ),
        pytest.param({"get": widened}, {"add": "100.0 %", "rint": "100.0 %"}, id="dtype"),
        pytest.param({"get": lambda x: np.asarray(x)[1:]}, {"add": "100.0 %"}, id="shape"),
        pytest.param({"get": lambda x: x[::-1]}, {"sum_int64": "error", "add": "%"}, id="order"),
    ],
)
def test_planted_faults_are_found(changes: dict[str, Any], expected: dict[str, str]) -> None:
    report = measure(fake(**changes), probes(*expected))
    for id, text in expected.items():
        found = report.results[id].text(BY_ID[id])
        assert found.endswith("%") if text == "%" else found == text, id


def test_broken_fence_is_printed() -> None:
    chosen = tuple(probes("sqrt", "fenced_sqrt"))
    full = ProbeReport({}, "cpu", (measure(fake(get=one_ulp), chosen),), chosen)
    assert "numpy fake, fenced √x: [7] " in printed(full, 120)


@pytest.mark.parametrize("whole", [False, True])
def test_failure_is_a_finding(whole: bool) -> None:
    def refuse(program: Callable[..., Any]) -> Callable[..., Any]:
        raise RuntimeError("no compiler\n  at all\nTraceback")

    report = measure(fake(compile=refuse, whole=whole), probes("add", "fenced_sqrt", "torch_add"))
    assert report.results["add"] == Result("error", error="RuntimeError: no compiler at all")
    assert report.results["torch_add"].status == "not applicable"
    full = ProbeReport({}, "cpu", (report,), tuple(probes("add", "fenced_sqrt", "torch_add")))
    assert [entry[1].id for entry in full.broken_fences()] == ["fenced_sqrt"]
    assert full.to_json()["fences_hold"] is False
    assert printed(full, 120).count("numpy fake: RuntimeError: no compiler at all") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(ImportError("pip install it"), "not installed"), (LookupError("no device cuda"), "no device")],
)
def test_missing_backend_is_shown(monkeypatch: pytest.MonkeyPatch, error: Exception, status: str) -> None:
    def opens(device: str) -> Iterable[Mode]:
        raise error

    numpy = probe_module.BACKENDS["numpy"]
    monkeypatch.setattr(probe_module, "BACKENDS", {"numpy": numpy, "torch": (("eager", "compile"), opens)})
    report = run_probe()
    assert report.modes[0].status == "measured"
    assert [(mode.mode, mode.status, mode.results) for mode in report.modes[1:]] == [
        ("eager", status, {}),
        ("compile", status, {}),
    ]
    assert f"torch eager: {status}. {error}" in printed(report, 120)
    assert json.loads(json.dumps(report.to_json()))["modes"][1]["status"] == status


def test_what_was_asked_for_and_is_not_there_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opens(device: str) -> Iterable[Mode]:
        raise LookupError("no driver")

    monkeypatch.setattr(probe_module, "measure", None)
    monkeypatch.setitem(probe_module.BACKENDS, "torch", (("eager",), opens))
    with pytest.raises(LookupError, match=r"^torch: no device: no driver$"):
        run_probe(["numpy", "torch"])
    for named in (["numpy"], None):
        numpy = probe_module.BACKENDS["numpy"]
        monkeypatch.setattr(probe_module, "BACKENDS", {"numpy": numpy})
        with pytest.raises(LookupError, match=r"has a device cuda$"):
            run_probe(named, "cuda")
    result = CliRunner().invoke(app, ["probe", "--backend", "numpy", "--device", "cuda"])
    assert (result.exit_code, "no backend of these has a device cuda" in result.output) == (2, True)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="no backend mxnet"):
        run_probe(["numpy", "mxnet"])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits(numpy_report: ProbeReport, width: int) -> None:
    (mode,) = numpy_report.modes
    modes = [replace(mode, backend=backend, mode=name) for backend in MEASURED for name in BACKENDS[backend][0]]
    text = printed(replace(numpy_report, modes=tuple(modes)), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("fenced √x") == {60: 3, 80: 2, 120: 1}[width]
    assert text.count("kept") == len(modes) * sum(probe.words == ("kept", "flushed") for probe in PROBES)
    assert "…" not in text


@pytest.mark.parametrize(("framework", "name"), MODES)
def test_fences_hold(framework: str, name: str) -> None:
    report = measure(installed(framework, name), FENCED)
    broken = ProbeReport({}, "cpu", (report,)).broken_fences()
    assert [f"{probe.label}: {result.error or result.first}" for _, probe, result in broken] == []
    assert len(report.results) == len(FENCED)


@pytest.mark.parametrize(
    ("framework", "name", "ids"),
    [
        ("jax", "jit", ["average", "two_products", "by_constant", "by_root", "product_chain"]),
        ("jax", "scan", ["two_products"]),
        ("tensorflow", "graph", ["reciprocal", "by_root", "product_chain"]),
        ("tensorflow", "xla", ["two_products"]),
    ],
)
def test_fences_are_still_needed(framework: str, name: str, ids: list[str]) -> None:
    """A framework that leaves these alone has changed: measure again, then update docs/numerics.md."""
    report = measure(installed(framework, name), probes(*ids))
    assert {id: report.results[id].percent > 10 for id in ids} == dict.fromkeys(ids, True)


@pytest.mark.parametrize("framework", list(BACKENDS))
def test_mode_names_agree(framework: str) -> None:
    """A backend that is not installed is listed with the modes that it would have had."""
    names, opens = BACKENDS[framework]
    installed(framework, names[0])
    assert [mode.name for mode in opens("cpu")] == list(names)


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_device_that_does_not_exist(framework: str) -> None:
    names, opens = BACKENDS[framework]
    installed(framework, names[0])
    with pytest.raises(LookupError, match=f"{framework} has no device cuda:99"):
        opens("cuda:99")
