"""The benchmark: magma_conformance.bench."""

import io
import json

import pytest
from magma_conformance.bench import BenchReport, Timing, render, run_bench
from magma_conformance.bench_contenders import CONTENDERS, MAGMA, MAGMA_JAX, MAGMA_JAX_UPDATES, MAGMA_TORCH, Contender
from magma_conformance.modes import BACKENDS
from rich.console import Console


def printed(report: BenchReport) -> str:
    console = Console(file=io.StringIO(), width=110)
    render(report, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def report() -> BenchReport:
    for library in ("torch", "jax", "optax"):
        pytest.importorskip(library, reason=f"{library} takes part")
    # torch.compile and TensorFlow take part the same way, and half a minute to compile.
    quick = [c for c in CONTENDERS if c.backend != "tensorflow" and c.mode != "compile"]
    return run_bench(tensors=2, rows=8, columns=16, repeats=3, contenders=quick, progress=False)


def test_every_contender_is_timed(report):
    assert [(t.backend, t.mode, t.optimizer) for t in report.timings] == [
        ("numpy", "eager", MAGMA),
        ("torch", "eager", MAGMA),
        ("torch", "eager", MAGMA_TORCH),
        ("torch", "eager", "AdamW fused"),
        ("torch", "eager", "AdamW foreach"),
        ("torch", "eager", "AdamW for-loop"),
        ("torch", "eager", "pytorch_optimizer Magma"),
        ("jax", "jit", MAGMA),
        ("jax", "jit", MAGMA_JAX),
        ("jax", "jit", MAGMA_JAX_UPDATES),
        ("jax", "jit", "optax adamw"),
    ]
    for timing in report.timings:
        assert timing.reason == ""
        assert len(timing.seconds) == 3
        assert all(second > 0 for second in timing.seconds)
    assert set(report.versions) == {"python", "numpy", "torch", "jax", "optax"}
    assert report.parameters == 256
    extra = {t.optimizer: t.extra_bytes for t in report.timings if t.backend == "torch"}
    assert extra["AdamW fused"] < extra["AdamW foreach"]
    assert all(t.extra_bytes is None for t in report.timings if t.backend != "torch")


def test_ratio_is_to_the_fastest_own():
    magma = Timing("torch", "eager", MAGMA, (0.03, 0.05, 0.04))
    slow, fast = Timing("torch", "eager", "slow", (0.08,)), Timing("torch", "eager", "fast", (0.01, 0.02, 0.03))
    missing, other = Timing("torch", "eager", "missing", reason="no"), Timing("jax", "jit", "other", (0.001,))
    alone = Timing("numpy", "eager", MAGMA, (1.0,))
    report = BenchReport({}, {}, 1, (1, 1), (magma, slow, fast, missing, other, alone))
    assert report.own(magma) == [slow, fast, missing]
    assert report.ratio(magma) == pytest.approx(2)  # of times in seconds: no bits are promised
    assert report.ratio(alone) is None
    assert report.ratio(missing) is None


def test_json(report):
    written = json.loads(json.dumps(report.to_json()))
    assert written["shape"] == [8, 16]
    assert written["machine"]["device"] == "cpu"
    assert written["machine"]["cores"] >= 1
    first = written["timings"][0]
    assert (first["backend"], first["optimizer"], first["ratio"]) == ("numpy", MAGMA, None)
    assert first["median_ms"] == pytest.approx(sorted(first["ms"])[1])
    assert written["timings"][1]["ratio"] > 0


def test_table(report):
    text = printed(report)
    for word in ("numpy eager", "torch eager", "jax jit", "AdamW fused", "optax adamw", "2 tensors of 8×16"):
        assert word in text
    assert report.versions["torch"] in text
    assert report.machine["processor"].split()[0] in text


def test_what_is_missing_says_so(monkeypatch):
    def not_there(device: str) -> None:
        raise ImportError("torch is not installed: pip install 'magma-core[torch]'")

    def fails(mode: object, data: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setitem(BACKENDS, "torch", (("eager",), not_there))
    torch = [c for c in CONTENDERS if c.backend == "torch"]
    some = [*torch[:3], Contender("numpy", "eager", MAGMA, fails)]
    report = run_bench(tensors=1, rows=2, columns=2, repeats=1, contenders=some, progress=False)
    assert [t.reason for t in report.timings] == ["not installed"] * 3 + ["RuntimeError: no compiler and more"]
    assert report.ratio(report.timings[0]) is None
    assert "torch compile, magma_core: not installed" in printed(report)


def test_a_device_that_is_not_there_says_so():
    pytest.importorskip("jax", reason="asked for a device")
    report = run_bench(tensors=1, rows=2, columns=2, repeats=1, backends=["jax"], device="nowhere", progress=False)
    assert "no device nowhere" in report.timings[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"tensors": -1}, "tensors must be at least 1"),
        ({"backends": ["mxnet", "numpy"]}, "no backend mxnet; there are numpy, torch, jax, tensorflow"),
    ],
)
def test_run_bench_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        run_bench(**options)


def test_progress_goes_to_stderr(capsys):
    run_bench(tensors=1, rows=2, columns=2, repeats=1, backends=["numpy"])
    assert capsys.readouterr().out == ""
