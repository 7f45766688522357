"""The matrix rows of `magma_keras` run, and detect faults."""

from dataclasses import replace

import keras
import pytest
from fence_tasks import task
from magma_conformance.cases.pairwise import Case, pairwise
from magma_conformance.implementations import keras_adapter
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.runner.jobs import open_implementation, run_case
from magma_conformance.runner.result import compare
from magma_keras import MaskedOptimizer

from magma_core import AdamW
from magma_core.state_file.config import base_to_plain

CASE = Case("adamw", "magma", "matrix", "rows", "float32", "s0=0.5", "after", "none", "default")
MODES = [mode for mode in ADAPTERS["magma_keras"].modes if mode.startswith(keras.backend.backend())]


@pytest.mark.parametrize("mode", MODES)
def test_mode_is_equal_to_the_reference(mode):
    implementation = keras_adapter.local(mode.partition("-")[2], "cpu")
    for case in (CASE, next(case for case in pairwise() if case.rule == "magma" and case.format == "bfloat16")):
        result = run_case(implementation, case)
        assert (result.mode, result.status, result.steps) == (f"magma_keras {mode}", "equal", 12), result.reason


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "torch-compile"])  # slow, and contracts nothing
def test_a_factor_that_is_1(mode):
    """1 − β₂ is 1, so that nothing stands between g² and the sum but fences."""
    what = replace(task(), base=base_to_plain(AdamW(beta2=1e-8)))
    expected = open_implementation("numpy", "eager", "cpu").run(what)
    assert compare(keras_adapter.local(mode.partition("-")[2], "cpu").run(what), expected) is None


def test_the_row_runs_in_a_process_of_its_own():
    result = run_case(open_implementation("magma_keras", MODES[0], "cpu"), CASE)
    assert (result.status, result.steps) == ("equal", 12), result.reason


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_optimizer_is_found(monkeypatch, mode):
    """One that forgets its rate by a unit in the last place."""
    right = MaskedOptimizer._step

    def wrong(self, grads, variables, learning_rate):
        return right(self, grads, variables, keras.ops.convert_to_tensor(learning_rate) * (1 + 2.0**-22))

    monkeypatch.setattr(MaskedOptimizer, "_step", wrong)
    result = run_case(keras_adapter.local(mode.partition("-")[2], "cpu"), CASE)
    assert (result.status, result.mismatch.array) == ("different", "w/param")


def test_a_backend_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("magma_conformance.implementations.adapters.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="keras is not installed"):
        ADAPTERS["magma_keras"].open(MODES[0], "cpu")


@pytest.mark.parametrize("mode", MODES)
def test_any_name_will_do(mode):
    """Though Keras takes no "/" in names, nor an empty one."""
    names = ["", "/", "a/b.c", "variable", "p1", "a:0", "𝛉", "a" * 3000, "\x00", "^.*$"]
    if mode == "torch-compile":
        names = names[:2]  # it compiles for each
    task = replace(CASE.task(), gradients=CASE.task().gradients[:2], learning_rates=CASE.task().learning_rates[:2])
    task = replace(
        task,
        key=f"{len(names)} odd names",
        params={name: task.params["w"][i] for i, name in enumerate(names)},
        gradients=[{name: step["w"][i] for i, name in enumerate(names)} for step in task.gradients],
        block_axes={name: (0,) if i % 3 else () for i, name in enumerate(names)},
    )
    implementation = keras_adapter.local(mode.partition("-")[2], "cpu")
    assert implementation.refuses(task) is None
    assert compare(implementation.run(task), open_implementation("numpy", "eager", "cpu").run(task)) is None


def test_steps_that_keras_cannot_count_are_refused():
    """`iterations` is an int64 on TensorFlow, elsewhere an int32."""
    implementation = keras_adapter.local("eager", "cpu")
    last = 2**63 - 1 if keras.backend.backend() == "tensorflow" else 2**31 - 1
    task = CASE.task()
    fits = replace(task, first_step=last - len(task.gradients) + 1)
    assert implementation.refuses(fits) is None
    assert "counts steps in int" in implementation.refuses(replace(fits, first_step=fits.first_step + 1))


@pytest.mark.backends("torch")
def test_the_step_is_one_graph_for_the_compiler():
    """A part that Dynamo does not understand would have the rest compiled in pieces, again and again."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    implementation = keras_adapter.local("compile", "cpu")
    if reason := implementation.refuses(CASE.task()):
        pytest.skip(reason)
    torch._dynamo.utils.counters.clear()
    assert run_case(implementation, CASE).status == "equal"
    counters = torch._dynamo.utils.counters
    assert (counters["stats"]["unique_graphs"], dict(counters["graph_break"])) == (1, {})
