"""The GPU kernels without a GPU: their bits in Triton's interpreter, their instructions in PTX for an H100.

`make test` also runs the optimizer's tests with the interpreter, see Makefile.
"""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from by_name import call
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.processes.worker import Worker
from magma_conformance.runner.jobs import open_implementation, run_case
from magma_torch.engine import engine
from magma_torch.gpu import available
from paths import HELPERS

from magma_core import AdamW, magma
from magma_core.numerics import binary32

triton = pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from magma_torch.gpu import launcher, tables, traced  # noqa: E402

CASES = pairwise()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_case_has_the_bits_of_numpy(case):
    result = run_case(open_implementation("magma_torch", "triton", "cpu"), case)
    assert (result.status, result.steps) == ("equal", 12), result.reason or result.mismatch


def test_kernels_have_the_bits_of_eager_steps():
    command = [sys.executable, HELPERS / "kernels_worker.py", "all"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    names = "life", "blocks", "guesses", "tiny", "formats"
    assert finished.stdout == "".join(f"{name}: equal\n" for name in names)


INEXACT = r"\b(?:fma|mad)\.r\w*\.\w*f\d\d|\bfma\.\S+|\S+\.ftz\S*|\S+\.approx\S*|\bdiv\.full\S*|\b(?:mul|add|sub)\.f\d\d"
"""Instructions that round a product and a sum once, or may be merged into one that does (they lack .rn), that flush, or
are off by more than a rounding."""

STEPS = [
    *(({"base": base}, "float32") for base in ("sgd", "rmsprop", "adam", "adamw", "laprop")),
    ({"base": "adamw", "betas": [0.9, 1e-8]}, "float32"),
    ({"base": "adamw"}, "bfloat16"),
    ({"base": "adamw", "rule": {"momentum": "before", "decay": "dense"}}, "float16"),
    ({"base": "sgd", "rule": {"survival": "score", "weight": "one"}}, "float32"),
    ({"base": "rmsprop", "rule": {"weight": "inverse_p"}}, "float32"),
]


@pytest.fixture(scope="module")
def ptx():
    """The inexact instructions of a step, by kernel, from a process that takes the CPU for a GPU."""
    process = Worker()

    def ask(optimizer: dict, options: dict, dtype: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, _, text in process.call(call, "ptx_of_kernels:ptx", optimizer, options, dtype):
            found.setdefault(name, set()).update(re.findall(INEXACT, text))
        return found

    yield ask
    process.end()


@pytest.mark.parametrize(("optimizer", "dtype"), STEPS, ids=str)
def test_every_instruction_is_one_rounding(ptx, optimizer, dtype):
    found = ptx(optimizer, {}, dtype)
    assert found.keys() >= {"begin", "advance", "decide"}
    assert set().union(*found.values()) == set()


def test_without_the_option_kernels_contract(ptx):
    """The control of the test above, and the reason for `kernels.OPTIONS`."""
    found = ptx({"base": "adamw"}, {"enable_fp_fusion": True}, "float32")
    assert all(any(instruction.startswith("fma.rn.f32") for instruction in found[name]) for name in ("advance", "move"))


def test_instructions_that_are_not_exact_are_seen():
    for wrong in (
        "fma.rn.f32",
        "div.full.f32",
        "sqrt.approx.f32",
        "add.ftz.f32",
        "mad.rn.f32",
        "ex2.approx.ftz.f32",
        "mul.f32",
    ):
        assert re.findall(INEXACT, f"\t{wrong} \t%r1, %r2, %r3;") == [wrong]
    for right in ("mad.lo.s64", "mad.wide.s32", "div.rn.f32", "sqrt.rn.f32", "mul.rn.f32", "cvt.rn.f32.s64"):
        assert re.findall(INEXACT, f"\t{right} \t%r1, %r2, %r3;") == []


@pytest.mark.parametrize("rows", [0, 1, 3, 64, 100])
@pytest.mark.parametrize("columns", [0, 1, 5, 16, 63, 64, 65, 200])
def test_stretches_cover_every_element_once(rows, columns):
    shape = tables.Shape.of(rows, columns, [], 64)
    covered = np.zeros((rows, columns), int)
    for tensor, row, column in tables.stretches(7, rows, columns, shape, 2):
        assert tensor == 7
        covered[row : row + shape.rows, column : column + 2 * shape.columns] += 1
    assert (covered == 1).all()
    assert shape.rows * shape.columns <= 64
    assert shape.whole == (columns <= shape.columns)


@pytest.mark.parametrize(
    ("columns", "addresses", "aligned"), [(32, [0, 16], True), (32, [0, 8], False), (24, [0], False), (1, [], False)]
)
def test_vectors_are_read_only_where_every_row_allows_it(columns, addresses, aligned):
    assert tables.Shape.of(4, columns, addresses, 64).aligned == aligned


def test_a_table_is_sent_only_when_it_changes(monkeypatch):
    copies = []
    upload = tables.Upload((2,), np.dtype(np.int64), torch.device("cpu"))
    copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *a, **k: copies.append(1) or copy(self, *a, **k))
    for values in ([0, 0], [1, 2], [1, 2], [1, 3]):
        upload.follow(np.array(values))
        assert upload.table.tolist() == values
    assert len(copies) == 2


@pytest.fixture
def capture(monkeypatch):
    """Tables that believe to be on a device, and a switch between captures and steps outside of them."""
    capturing = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, device, pin_memory: empty(x))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)

    class Table(torch.Tensor):
        device = torch.device("cuda")

    upload = tables.Upload((2,), np.dtype(np.int64), torch.device("cpu"))
    upload.table = upload.table.as_subclass(Table)
    return upload, capturing


def test_a_graph_contains_the_tables_of_its_step(capture):
    """Whether they have changed or not, and whatever comes after it."""
    upload, capturing = capture
    upload.follow(np.array([1, 2]))
    capturing.append(True)
    upload.follow(np.array([1, 2]))
    capturing.clear()
    (source,) = upload._captured
    assert source.tolist() == [1, 2]
    upload.follow(np.array([3, 4]))
    assert source.tolist() == [1, 2]  # a replay will read it again
    upload.table.copy_(source)  # as it does
    upload.follow(np.array([3, 4]))
    assert upload.table.tolist() == [3, 4]


def test_steps_that_are_captured_need_memory_that_was_pinned_before(capture):
    upload, capturing = capture
    upload.follow(np.array([1, 2]))
    capturing.append(True)
    for i in range(tables.STEPS_IN_A_GRAPH):
        upload.follow(np.array([i, i]))
    with pytest.raises(RuntimeError, match="take a step outside of a graph"):
        upload.follow(np.array([9, 9]))
    assert [source.tolist() for source in upload._captured] == [[i, i] for i in range(tables.STEPS_IN_A_GRAPH)]


def test_kernels_are_told_apart_by_the_code_that_is_traced(monkeypatch, tmp_path):
    """Triton keeps kernels on disk by their own source, in which the rule does not stand."""
    core = Path(traced.magma_core.__file__).parent
    for path in core.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(traced.magma_core, "__file__", str(tmp_path / "__init__.py"))
    same = traced.sources.__wrapped__()
    assert same == traced.sources()
    (tmp_path / "bases.py").write_text((tmp_path / "bases.py").read_text() + "\n# another\n")
    assert traced.sources.__wrapped__() != same
    assert traced.sources() in repr(traced.Program(None, None, None, traced.sources()))


def test_state_is_not_made_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"take one step with the same parameters.*before the capture"):
        available.check_not_captured(torch.device("cuda"))
    available.check_not_captured(torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "reason"), [("cpu", "only in Triton's interpreter"), ("mps", "not for mps"), ("cuda", None)]
)
def test_where_kernels_run(kind, reason):
    missing = available.triton_missing(torch.device(kind))
    assert missing is None if reason is None else reason in missing


def test_what_triton_needs_besides_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "a C compiler" in available._compiler_missing()
    monkeypatch.setenv("CC", sys.executable)  # anything that is there
    monkeypatch.setattr(available.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in available._compiler_missing()
    (tmp_path / "Python.h").touch()
    assert available._compiler_missing() is None


def test_the_interpreter_is_not_for_a_device(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in available._missing.__wrapped__("cuda")
    assert available._missing.__wrapped__("cpu") is None


def test_memory_of_graphs_outlives_the_tables_that_are_made_anew():
    """A replay reads and writes through tables that may not become other tensors' memory."""
    captured, other = (type("Stub", (), {"captured": flag})() for flag in (True, False))
    first = engine.Engine()
    first.launchers = [captured, other]
    second = engine.Engine(former=first)
    assert second.captured() == [captured]


def test_a_number_that_replaces_a_rate_on_the_device_is_sent():
    """Whatever it is: the table on the host has nothing that a rate can be in that place."""
    options = SimpleNamespace(base=AdamW(), rule=magma())
    *numbers, on_device = launcher._settings(options, torch.empty((), device="meta"))
    assert on_device < 0
    for rate in (0.0, 0.01):
        assert launcher._settings(options, rate) == [*numbers, binary32(rate)]


def test_there_is_nothing_to_report_before_the_first_step():
    """Also where state and tables were made without one."""
    idle = launcher.Launcher.__new__(launcher.Launcher)
    idle._cut_for, idle.batches = None, None
    idle.report()
