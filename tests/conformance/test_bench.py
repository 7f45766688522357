"""The benchmark: magma_conformance.bench.run."""

import doctest
import importlib
import inspect
import io
import json
import re
import time
from types import SimpleNamespace

import pytest
from magma_conformance.bench.arrays import Gradients, copy_bandwidth, draw, wait
from magma_conformance.bench.contenders import (
    BASELINES,
    CONTENDERS,
    MAGMA,
    MAGMA_JAX,
    MAGMA_JAX_UPDATES,
    MAGMA_JAX_XLA,
    MAGMA_TORCH,
    Contender,
    Step,
)
from magma_conformance.bench.memory import of_program, of_step
from magma_conformance.bench.race import Race, together
from magma_conformance.bench.run import BenchReport, Timing, render, render_ratios, run_bench
from magma_conformance.bench.workload import WORKLOADS, Workload, llama, stacked, uniform
from magma_conformance.cli import app
from magma_conformance.commands.bench import bench as bench_command
from magma_conformance.implementations.modes import BACKENDS
from rich.console import Console
from typer.testing import CliRunner


def printed(report: BenchReport) -> str:
    console = Console(file=io.StringIO(), width=110)
    render(report, console)
    return console.file.getvalue()


TINY = llama(layers=2, width=8, keys=4, hidden=16, vocabulary=32)


@pytest.fixture(scope="module")
def report() -> BenchReport:
    for library in ("torch", "jax", "optax"):
        pytest.importorskip(library, reason=f"{library} takes part")
    # torch.compile and TensorFlow take part the same way, and half a minute to compile.
    quick = [c for c in CONTENDERS if c.backend != "tensorflow" and c.mode != "compile"]
    return run_bench(uniform(2, 8, 16), repeats=3, contenders=quick, progress=False)


def test_every_contender_is_timed(report):
    assert [(t.backend, t.mode, t.optimizer) for t in report.timings] == [
        ("numpy", "eager", MAGMA),
        ("torch", "eager", MAGMA),
        ("torch", "eager", "AdamW fused"),
        ("torch", "eager", "AdamW foreach"),
        ("torch", "eager", "pytorch_optimizer Magma"),
        ("torch", "eager", "AdamW for-loop"),
        ("torch", "eager", MAGMA_TORCH),
        ("jax", "jit", MAGMA),
        ("jax", "jit", MAGMA_JAX),
        ("jax", "jit", MAGMA_JAX_UPDATES),
        ("jax", "jit", MAGMA_JAX_XLA),
        ("jax", "jit", "optax adamw"),
    ]
    for timing in report.timings:
        assert timing.reason == ""
        assert len(timing.seconds) == 3
        assert all(second > 0 for second in timing.seconds)
    assert set(report.versions) == {"python", "numpy", "torch", "jax", "optax"}
    assert report.workload.parameters == 256
    extra = {t.optimizer: t.extra_bytes for t in report.timings if t.backend == "torch"}
    assert extra["AdamW fused"] < extra["AdamW foreach"]
    assert all(t.extra_bytes >= 0 for t in report.timings if t.backend == "jax" and t.optimizer != MAGMA)
    assert report.copy_bandwidth.keys() == {"torch", "jax"}


def test_ratio_is_to_the_framework_s_own_in_the_same_turns():
    magma = Timing("torch", "eager", MAGMA, (0.03, 0.05, 0.04), beside=(0.02, 0.01, 0.03))
    assert magma.ratio == pytest.approx(2)  # of times in seconds: no bits are promised
    assert Timing("numpy", "eager", MAGMA, (1.0,)).ratio is None
    assert Timing("torch", "eager", "missing", reason="no", beside=(0.1,)).ratio is None


def test_bandwidth_is_of_the_bytes_that_must_be_moved():
    work = uniform(1, 100, 100)
    magma, adamw, jax = (
        Timing("torch", "eager", MAGMA_TORCH, (1e-3, 3e-3, 2e-3)),
        Timing("torch", "eager", "AdamW fused", (1e-3,)),
        Timing("jax", "jit", MAGMA_JAX, (1e-3,)),
    )
    report = BenchReport({}, {}, work, (magma, adamw, jax), {"torch": 560e6}, recount=0.5)
    assert report.bytes(magma) == 10_000 * (20 + 4 + 8)
    assert report.bytes(adamw) == 10_000 * 28
    assert report.bandwidth(magma) == pytest.approx(160e6)  # a quotient of times, as the next: no bits are promised
    assert report.share(adamw) == pytest.approx(0.5)
    assert report.share(jax) is None


def test_json(report):
    written = json.loads(json.dumps(report.to_json()))
    assert written["shapes"] == [{"count": 2, "shape": [8, 16], "block_axes": []}]
    assert (written["tensors"], written["parameters"], written["masked"]) == (2, 256, 256)
    assert written["copy_bytes_per_second"]["torch"] > 0
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
        raise ImportError("torch is not installed: pip install 'magma-optim[torch]'")

    def fails(mode: object, data: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setitem(BACKENDS, "torch", (("eager",), not_there))
    torch = [c for c in CONTENDERS if c.backend == "torch"]
    some = [*torch[:3], Contender("numpy", "eager", MAGMA, fails)]
    report = run_bench(uniform(1, 2, 2), repeats=1, contenders=some, progress=False)
    assert [t.reason for t in report.timings] == ["not installed"] * 3 + ["RuntimeError: no compiler and more"]
    assert report.timings[0].ratio is None
    assert "torch compile, magma_core: not installed" in printed(report)


def test_a_device_that_is_not_there_says_so():
    pytest.importorskip("jax", reason="asked for a device")
    jax = [c for c in CONTENDERS if c.backend == "jax"]
    report = run_bench(uniform(1, 2, 2), repeats=1, contenders=jax, device="nowhere", progress=False)
    assert "no device nowhere" in report.timings[0].reason


def test_a_backend_that_was_named_and_is_not_there_is_refused_before_anything_is_timed(monkeypatch):
    def not_there(device: str) -> None:
        raise ImportError("no torch")

    monkeypatch.setitem(BACKENDS, "torch", (("eager",), not_there))
    monkeypatch.setattr("magma_conformance.bench.run.copy_bandwidth", None)
    result = CliRunner().invoke(app, ["bench", "--backend", "numpy", "--backend", "torch"])
    assert (result.exit_code, result.output.strip()) == (2, "torch: not installed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"recount": 1.5}, "recount must be between 0 and 1, got 1.5"),
        ({"backends": ["mxnet", "numpy"]}, "no backend mxnet; there are numpy, torch, jax, tensorflow"),
    ],
)
def test_run_bench_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        run_bench(**options)


@pytest.mark.parametrize("module", ["bench.run", "bench.workload", "wire.digest", "report.compare"])
def test_examples(module):
    outcome = doctest.testmod(importlib.import_module(f"magma_conformance.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_progress_goes_to_stderr(capsys):
    run_bench(uniform(1, 2, 2), repeats=1, backends=["numpy"])
    assert capsys.readouterr().out == ""


# Several models in one run


@pytest.fixture
def models(monkeypatch):
    """Two that are quick."""
    monkeypatch.setattr("magma_conformance.commands.bench.WORKLOADS", {"tiny": TINY, "one": uniform(1, 2, 2)})
    monkeypatch.setattr("magma_conformance.bench.run.copy_bandwidth", lambda mode: None)


def bench(*arguments: str):
    return CliRunner().invoke(app, ["bench", "--backend", "numpy", "--repeats", "1", *arguments], env={"COLUMNS": "80"})


def test_several_models_have_a_table_and_a_report_each(models, tmp_path):
    result = bench("--model", "tiny", "--model", "one", "--json", str(tmp_path / "bench-{model}.json"))
    assert result.exit_code == 0, result.output
    assert re.findall(r"float32 parameters in (.*)", result.output) == [TINY.title, "1 tensors of 2×2"]
    assert "side by side" in result.output
    written = {file.name: json.loads(file.read_text())["parameters"] for file in tmp_path.iterdir()}
    assert written == {"bench-tiny.json": TINY.parameters, "bench-one.json": 4}


def test_one_model_has_no_table_of_ratios(models, tmp_path):
    result = bench("--model", "one", "--json", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    assert "side by side" not in result.output
    assert json.loads((tmp_path / "report.json").read_text())["parameters"] == 4


def test_models_side_by_side():
    def report(title: str, seconds: float, reason: str = "") -> BenchReport:
        seconds_of = () if reason else (seconds,)
        timings = [
            Timing("torch", "compile", MAGMA_TORCH, seconds_of, reason, beside=(0.01,)),
            Timing("torch", "eager", "pytorch_optimizer Magma", (0.02,), beside=(0.01,)),
        ]
        return BenchReport({}, {}, Workload(title, uniform(1, 2, 2).tensors), tuple(timings))

    console = Console(file=io.StringIO(), width=80)
    render_ratios([report("large ones", 0.015), report("small ones", 0.0, "no memory")], console)
    lines = console.file.getvalue().splitlines()
    assert lines[1].split() == ["mode", "optimizer", "large", "ones", "small", "ones"]
    assert lines[3].split() == ["torch", "compile", "magma_torch", "1.50", "–"]
    assert lines[4].split() == ["torch", "eager", "pytorch_optimizer", "Magma", "2.00", "2.00"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "one", "--model", "gpt3"], "--model: no model 'gpt3'; there are tiny, one"),
        (["--model", "one", "--model", "tiny", "--json", "all.json"], "all.json is one file for 2 models: put {model}"),
    ],
)
def test_models_that_are_refused(models, arguments, said):
    result = bench(*arguments)
    assert (result.exit_code, said in result.output.replace("\n", " ")) == (2, True)


# A billion parameters, and what a step of them must move


def test_models_are_what_the_documentation_says():
    model, gpt2, small, stacks = (WORKLOADS[name] for name in ("llama", "gpt2", "small", "stacked"))
    assert [len(WORKLOADS[name].tensors) for name in ("matrices", "many")] == [32, 2_000]
    assert (len(gpt2.tensors), gpt2.parameters) == (148, 124_439_808)
    assert (model.parameters, len(model.tensors)) == (1_038_682_112, 146)
    assert 0.93 < model.masked / model.parameters < 0.94
    assert (small.parameters, small.masked, len(small.tensors)) == (40_960_000, 40_960_000, 10_000)
    assert (stacks.parameters, stacks.masked, len(stacks.tensors)) == (40_960_000, 40_960_000, 10)
    assert {tensor.shape for tensor in TINY.tensors if tensor.block_axes is None} == {(32, 8), (8,)}


def test_bytes_of_a_step():
    """Of DESIGN.md: 20 for moments, 8 for sums, 16 for what is kept; AdamW 28."""
    work = uniform(1, 1, 1)
    assert work.adamw_bytes() == 28
    assert (work.magma_bytes(recount=1.0), work.magma_bytes()) == (36, 28)
    assert work.magma_bytes(kept=1.0) == 36
    assert TINY.magma_bytes() == TINY.adamw_bytes()  # half of the masked are kept


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_gradients_are_renewed(backend):
    pytest.importorskip(backend, reason=f"{backend} draws them")
    mode = BACKENDS[backend][1]("cpu")[0]
    gradients = Gradients(mode, TINY)
    places = [id(x) for x in gradients.arrays]
    before = [mode.get(x).copy() for x in gradients.arrays]
    gradients.renew()
    for old, new, tensor in zip(before, map(mode.get, gradients.arrays), TINY.tensors, strict=True):
        assert new.shape == old.shape == tensor.shape
        assert new.dtype == "float32"
        assert not (new == old).any()
        assert 1e-4 < abs(new).mean() < 2e-3
    if backend == "torch":  # a program that was captured reads them where they were
        assert [id(x) for x in gradients.arrays] == places


def test_renewing_is_over_before_a_step_is_timed(monkeypatch):
    """JAX computes gradients while the host goes on: the step would be charged for it."""
    jax = pytest.importorskip("jax", reason="jax draws them")
    gradients, waited = Gradients(BACKENDS["jax"][1]("cpu")[0], TINY), []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    gradients.renew()
    assert len(waited) == 1
    assert [id(x) for x in waited[0]] == [id(x) for x in gradients.arrays]


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_every_tensor_has_values_of_its_own(backend):
    pytest.importorskip(backend, reason=f"{backend} draws them")
    mode = BACKENDS[backend][1]("cpu")[0]
    one, again = (draw(mode, uniform(2, 4, 4), 0.02, 1) for _ in range(2))
    assert (mode.get(one[0]) != mode.get(one[1])).any()
    assert (mode.get(one[0]) == mode.get(again[0])).all()


def test_masks_are_as_the_model_says(monkeypatch):
    """Of a model with tensors that are not masked, in every one of our optimizers."""
    for library in ("torch", "jax", "optax"):
        pytest.importorskip(library, reason=f"{library} takes part")
    import magma_torch

    ours = [c for c in CONTENDERS if c.backend in ("torch", "jax") and c.mode != "compile"]
    report = run_bench(TINY, repeats=1, contenders=ours, progress=False)
    assert [timing.reason for timing in report.timings] == [""] * len(ours)
    mode = BACKENDS["torch"][1]("cpu")[0]
    found = {}

    class Seen(magma_torch.Magma):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            found["optimizer"] = self

    monkeypatch.setattr("magma_torch.Magma", Seen)
    step = next(c for c in ours if c.optimizer == MAGMA_TORCH).prepare(mode, TINY)
    step.run()

    def seen(*arguments, block_axes, **options):
        found["axes"] = {tensor.name: block_axes(tensor.name, None) for tensor in TINY.tensors}
        return magma(*arguments, block_axes=block_axes, **options)

    magma = importlib.import_module("magma_jax").magma
    monkeypatch.setattr("magma_jax.magma", seen)
    next(c for c in ours if c.optimizer == MAGMA_JAX).prepare(BACKENDS["jax"][1]("cpu")[0], TINY)
    assert found["axes"] == {tensor.name: tensor.block_axes for tensor in TINY.tensors}
    assert sorted(found["optimizer"].alignment()) == sorted(
        tensor.name for tensor in TINY.tensors if tensor.block_axes is not None
    )


def test_stacks_have_a_block_for_each_layer():
    for library in ("torch", "jax", "optax"):
        pytest.importorskip(library, reason=f"{library} takes part")
    work = stacked(2, 3, 4, 4)
    ours = [c for c in CONTENDERS if c.backend in ("torch", "jax") and c.mode != "compile"]
    report = run_bench(work, repeats=1, contenders=ours, progress=False)
    assert [timing.reason for timing in report.timings] == [""] * len(ours)
    assert report.to_json()["shapes"] == [{"count": 2, "shape": [3, 4, 4], "block_axes": [0]}]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_copy_bandwidth(monkeypatch, backend):
    """A copy of 4 · 1000 bytes reads and writes them: 8,000 bytes per second where it takes one."""
    pytest.importorskip(backend, reason=f"{backend} copies")
    monkeypatch.setattr("magma_conformance.bench.arrays.perf_counter", iter(range(10**6)).__next__)
    assert copy_bandwidth(BACKENDS[backend][1]("cpu")[0], repeats=3, elements=1000) == 8000
    assert copy_bandwidth(BACKENDS["numpy"][1]("cpu")[0], elements=4) is None


def test_memory_of_a_program_of_jax():
    jax = pytest.importorskip("jax", reason="jax plans it")
    x = jax.numpy.ones((256, 256))
    assert of_program(jax.jit(lambda x: x + 1), x) == 0
    assert of_program(jax.jit(lambda x: (x @ x) @ (x @ x.T)), x) >= x.nbytes


# Turns


class Tape:
    """Contenders that write down what happens to them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.holding: set[str] = set()
        self.most = 0

    def contender(self, backend: str, name: str, fails: bool = False) -> Contender:
        def prepare(mode: object, workload: object) -> Step:
            if fails:
                raise RuntimeError("out of memory")
            tape, self_name = self, name

            class Held:
                def __init__(self) -> None:
                    tape.holding.add(self_name)
                    tape.most = max(tape.most, len(tape.holding))

                def __call__(self) -> None:
                    tape.events.append(self_name)

                def __del__(self) -> None:
                    tape.holding.discard(self_name)

            return Step(Held(), lambda: None, lambda: tape.events.append("renew"), lambda: 7)

        return Contender(backend, "eager", name, prepare)


def test_on_a_device_each_takes_turns_with_the_framework_s_own():
    tape = Tape()
    names = ("first", BASELINES["torch"], "second", "third")
    contenders = [tape.contender("torch", name, fails=name == "second") for name in names]
    contenders.append(tape.contender("jax", "alone"))
    groups = together(contenders, "cuda:0")
    assert [[c.optimizer for c in group] for group in groups] == [
        ["AdamW fused", "first"],
        ["AdamW fused", "second"],
        ["AdamW fused", "third"],
        ["alone"],
    ]
    assert together(contenders, "cpu") == [contenders]
    race = Race({"torch": {"eager": None}, "jax": {"eager": None}}, TINY, 3, None)
    for group in groups:
        race.run(group)
    assert tape.most == 2
    timings = {c.optimizer: race.timing(c) for c in contenders}
    assert [len(timings[name].seconds) for name in names] == [3, 9, 0, 3]
    assert len(timings["first"].beside) == len(timings["third"].beside) == 3
    assert timings["second"].reason == "RuntimeError: out of memory"
    assert (timings["alone"].ratio, timings["first"].extra_bytes) == (None, 7)
    assert timings["AdamW fused"].ratio == 1
    # two steps to warm up, one by one; then three turns, each with other gradients
    own, first = ["renew", "AdamW fused"], ["renew", "first"]
    assert tape.events[:20] == own * 2 + first * 2 + (own + first) * 3


def test_what_is_done_is_kept():
    tape, kept = Tape(), []
    contenders = [tape.contender("numpy", name) for name in ("one", "two")]
    run_bench(TINY, repeats=1, contenders=contenders, keep=kept.append, progress=False)
    assert [len(timing.seconds) for timing in kept[0].timings] == [1, 1]


def test_when_the_time_is_over_no_contender_is_begun_and_few_turns_are_taken(monkeypatch):
    tape = Tape()
    contenders = [tape.contender("torch", name) for name in ("first", BASELINES["torch"])]
    race = Race({"torch": {"eager": None}}, TINY, 1, 0.0)
    race.run(contenders)
    assert [race.timing(c).reason for c in contenders] == ["left out, the time was over"] * 2
    assert tape.events == []
    ends = Race({"torch": {"eager": None}}, TINY, 100, time.monotonic() + 3600)
    monkeypatch.setattr("magma_conformance.bench.race.time.monotonic", iter([0.0, 0.0, *[1e12] * 9]).__next__)
    ends.run(contenders)
    assert [len(ends.timing(c).seconds) for c in contenders] == [3, 3]


def test_pairs_of_real_contenders(monkeypatch):
    """As on a device: torch and JAX, each beside its own AdamW."""
    for library in ("torch", "jax", "optax"):
        pytest.importorskip(library, reason=f"{library} takes part")
    monkeypatch.setattr("magma_conformance.bench.run.together", lambda contenders, device: together(contenders, "cuda"))
    names = {MAGMA_TORCH, MAGMA_JAX, *BASELINES.values()}
    some = [c for c in CONTENDERS if c.backend in ("torch", "jax") and c.optimizer in names and c.mode != "compile"]
    report = run_bench(TINY, repeats=2, contenders=some, progress=False)
    assert [(t.reason, len(t.seconds), len(t.beside)) for t in report.timings] == [("", 2, 2)] * 4
    assert all(timing.ratio > 0 for timing in report.timings)


class Cuda:
    """What torch.cuda tells of a step that allocates 100 bytes, keeps 40 of them, and is at 160 at most."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        def call() -> int:
            self.calls.append(name)
            return {"memory_allocated": 1000, "max_memory_allocated": 1160}.get(name, 0)

        return call


def test_memory_and_waiting_on_cuda(monkeypatch):
    cuda = Cuda()
    torch = SimpleNamespace(cuda=cuda)
    mode = SimpleNamespace(backend="torch", hardware="H100", framework=torch)
    monkeypatch.setattr("magma_conformance.bench.memory.import_module", lambda name: torch)
    assert of_step(mode, lambda: cuda.calls.append("the step"))() == 160
    assert cuda.calls == [
        "synchronize",
        "reset_peak_memory_stats",
        "memory_allocated",
        "the step",
        "synchronize",
        "max_memory_allocated",
    ]
    cuda.calls.clear()
    wait(mode, [])
    assert cuda.calls == ["synchronize"]
    wait(SimpleNamespace(backend="torch", hardware="", framework=torch), [])
    assert cuda.calls == ["synchronize"]


def test_the_share_of_a_copy_is_not_flattered():
    """Bytes that are read again for the sums count only where somebody says so."""
    defaults = [inspect.signature(function).parameters["recount"].default for function in (run_bench, bench_command)]
    assert defaults == [0.0, 0.0]
