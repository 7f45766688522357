"""The device checks on the CPU: they pass, and find every planted fault."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from magma_conformance.bench.workload import llama
from magma_conformance.bits import assert_bits_equal
from magma_conformance.device import __main__ as command
from magma_conformance.device import division, environment, fences, operands, steps
from magma_conformance.device.finding import Finding
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.runner.result import Mismatch
from magma_conformance.wire.digest import digest
from typer import Typer
from typer.testing import CliRunner

from magma_core.numerics import Real

TINY = llama(layers=1, width=8, keys=4, hidden=16, vocabulary=16)


@pytest.fixture
def torch_mode() -> Any:
    pytest.importorskip("torch", reason="torch steps")
    return BACKENDS["torch"][1]("cpu")[0]


def test_a_check_of_nothing_proves_nothing():
    finding = Finding()
    assert not finding.passed
    finding.expect(True, "one")
    assert finding.passed
    finding.expect(False, "two")
    assert (finding.passed, finding.failures, finding.lines) == (False, ["two"], ["yes: one", "NO: two"])


# Environment


def test_environment():
    found = environment.check("cpu")
    assert found.passed
    assert found.facts["versions"]["numpy"] == np.__version__


def test_a_device_that_nobody_has():
    found = environment.check("cuda:7")
    assert not found.passed
    assert found.failures == ["torch or JAX has the device cuda:7"]


# Division


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer operands: 4096 of a kind, and the roots of a few."""
    monkeypatch.setattr(operands, "COUNT", 4096)
    monkeypatch.setattr(division, "binades", lambda: operands.binades()[:: 2**10])


def only(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    pytest.importorskip(backend, reason=f"{backend} divides")

    def absent(device: str) -> Any:
        raise ImportError("left out")

    other = {"torch": "jax", "jax": "torch"}[backend]
    monkeypatch.setitem(BACKENDS, other, ((), absent))


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_division_is_right(few, monkeypatch, backend):
    only(monkeypatch, backend)
    found = division.check("cpu", rounds=2)
    assert found.passed, found.failures
    assert found.checked == (6 if backend == "jax" else 4)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", ["divide", "sqrt"])
def test_a_division_that_is_off_by_one_unit_is_found(few, monkeypatch, backend, name):
    only(monkeypatch, backend)
    namespace = BACKENDS[backend][1]("cpu")[0].xp
    right = getattr(namespace, name)
    monkeypatch.setattr(namespace, name, lambda *x: right(*x) * (1 + 2.0**-23))
    found = division.check("cpu", rounds=1)
    assert found.failures
    assert all(("quotients" if name == "divide" else "roots") in failure for failure in found.failures)


@pytest.mark.parametrize("units", [3, 4])
def test_how_far_off_the_devices_own_may_be(monkeypatch, few, units):
    """What `magma_jax.gpu.rounding` corrects is three units."""

    def off(function: Any) -> Any:
        def raw(*x: np.ndarray) -> np.ndarray:
            result = np.asarray(function(*x), np.float32)
            return (result.view(np.int32) + units).view(np.float32)

        return raw

    finding = Finding({"jax": {}})
    division._premise(finding, "jax", off(np.divide), off(np.sqrt))
    assert finding.passed == (units == 3)
    assert finding.facts["jax"]["roots off by"] == {str(units): len(operands.binades()[:: 2**10])}


def test_operands_are_as_hard_as_they_say():
    rng = np.random.default_rng(0)
    a, b = operands.PAIRS["nearly halfway"](rng)
    quotient = a.astype(np.float64) / b
    right = (a / b).astype(np.float64)
    halfway = abs(quotient - right) / np.spacing(a / b).astype(np.float64)
    assert np.median(halfway) > 0.4999995
    a, b = operands.PAIRS["any bits"](rng)
    assert np.isnan(a).any()
    assert np.isinf(b).any()
    tiny = np.float32(2.0**-126)
    assert not ((abs(a) < tiny) & (a != 0)).any()


def test_right_quotients_are_numpys():
    x = np.float32([1, 3, -0.0, np.inf])
    assert_bits_equal(operands.right_quotients(x, np.float32([3, 3, 3, 3])), x / np.float32(3))
    small = operands.right_quotients(np.float32([2.0**-100, 2.0**-130]), np.float32([2.0**40, 1]))
    assert_bits_equal(small, np.float32([0, 0]))


# Fences

JAX_JIT = next(control for control in fences.CONTROLS if control.needed == ("cpu",) and control.mode == "jit")


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Any:
    """What was compiled without a fence serves nobody."""
    yield
    if jax := __import__("sys").modules.get("jax"):
        jax.clear_caches()


def test_fence_works_and_is_needed():
    pytest.importorskip("jax", reason="jax contracts")
    found = fences.check("cpu", (JAX_JIT,))
    assert found.passed, found.failures
    assert found.checked == 2
    (control,) = found.facts["controls"]
    assert control["with"] == "equal"
    assert "ulp" in control["without"]


def test_fence_that_does_not_work_is_found(monkeypatch):
    pytest.importorskip("jax", reason="jax contracts")
    monkeypatch.setattr(Real, "fenced", lambda self: self._value)
    found = fences.check("cpu", (JAX_JIT,))
    assert "equal with it" in found.failures[0]


def control(answers: dict[str, Any], needed: tuple[str, ...]) -> tuple[Any, Any]:
    """A control of an attribute of ``answers``, and what runs it."""
    owner = SimpleNamespace(fence="there")
    one = fences.Control("a fence", "jax", "jit", lambda: owner, "fence", lambda: "gone", needed)
    return one, lambda which, device: answers[owner.fence]


MISMATCH = Mismatch(1, "w/mu", SimpleNamespace(__str__=lambda self: "1 ulp"))


@pytest.mark.parametrize(
    ("answers", "needed", "passed"),
    [
        ({"there": None, "gone": MISMATCH}, ("cpu",), True),
        ({"there": None, "gone": None}, ("cpu",), False),  # the control is blind
        ({"there": None, "gone": None}, (), True),  # a finding
        ({"there": None, "gone": "RuntimeError: no"}, ("cpu",), False),  # an exception is no difference
        ({"there": MISMATCH, "gone": MISMATCH}, (), False),
        ({"there": "RuntimeError: no", "gone": MISMATCH}, (), False),
    ],
)
def test_verdicts_of_controls(monkeypatch, answers, needed, passed):
    one, run = control(answers, needed)
    monkeypatch.setattr(fences, "_mismatch", run)
    monkeypatch.setattr(fences, "_open", lambda control, device: None)
    assert fences.check("cpu", (one,)).passed == passed


# Steps


def test_steps_on_the_cpu(torch_mode):
    pytest.importorskip("jax", reason="jax steps")
    found = steps.check("cpu", TINY)
    assert found.passed, found.failures
    assert found.checked == 3


def test_replayed_steps_have_the_bits_of_steps(torch_mode):
    def graph(mode: Any, step: Any) -> Any:
        return step

    eager = digest(steps._run(torch_mode, TINY, compile=False))
    assert digest(steps._run(torch_mode, TINY, compile=False, capture=graph)) == eager


@pytest.mark.parametrize("fault", ["nothing", "twice"])
def test_a_graph_that_replays_something_else_is_found(torch_mode, fault):
    def graph(mode: Any, step: Any) -> Any:
        return (lambda: None) if fault == "nothing" else lambda: (step(), step())

    eager = digest(steps._run(torch_mode, TINY, compile=False))
    assert digest(steps._run(torch_mode, TINY, compile=False, capture=graph)) != eager


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaMemcpy"])
def test_a_step_that_waits_is_found(torch_mode, call):
    from torch.profiler import record_function

    def step() -> None:
        torch_mode.put(np.zeros(3)).sum()
        with record_function(call):
            pass
        with record_function("cudaLaunchKernel"):
            pass

    assert steps.profiled(torch_mode, step) == ([call], 1)
    assert steps.profiled(torch_mode, lambda: torch_mode.put(np.zeros(3)).sum()) == ([], 0)


def test_what_is_outside_of_the_step_does_not_count():
    event = steps.Event
    events = [
        event("cudaDeviceSynchronize", 25, 30),
        event("cudaStreamSynchronize", 12, 13),
        event(steps.SPAN, 10, 20),
        event(steps.SPAN, 11, 40),  # the device's own
        event("cudaLaunchKernel", 11, 12),
        event("cudaMemcpyAsync", 0, 5),
    ]
    assert steps.within(events, steps.SPAN) == ["cudaLaunchKernel", "cudaStreamSynchronize"]
    with pytest.raises(LookupError, match="saw no 'magma step'"):
        steps.within([event("cudaLaunchKernel", 0, 1)], steps.SPAN)


def test_a_step_that_moves_something_to_the_device_is_found():
    jax = pytest.importorskip("jax", reason="jax steps")
    add = jax.jit(lambda x, y: x + y)
    x = jax.numpy.ones(3)
    add(x, np.ones(3, np.float32))
    assert steps.transferring(jax, lambda: add(x, x)) == ""
    with pytest.raises(Exception, match="host-to-device"):
        steps.transferring(jax, lambda: add(x, np.ones(3, np.float32)))


# The command


@pytest.fixture
def check(tmp_path: Any) -> Any:
    app = Typer()
    app.command()(command.main)
    return lambda *arguments: CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})


def test_command(check, tmp_path):
    file = tmp_path / "found.json"
    result = check("environment", "--device", "cpu", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert '"passed": true' in file.read_text()
    assert check("environment", "--device", "cuda:7").exit_code == 1
    assert "no check 'nonsense'; there are environment" in check("nonsense").output
    assert check("nonsense").exit_code == check("fences", "--device", "tpu").exit_code == 2


def test_every_check_is_there():
    for name in command.CHECKS:
        assert __import__(f"magma_conformance.device.{name}", fromlist=["check"]).check
