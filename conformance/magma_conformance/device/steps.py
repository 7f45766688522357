"""Steps on a device: the host never waits for it, and a replayed CUDA graph gives the bits of eager steps."""

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from magma_conformance.bench.arrays import PARAM_SCALE, Gradients, draw
from magma_conformance.bench.workload import Workload, llama
from magma_conformance.device.finding import Finding
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.wire.digest import digest
from magma_core import State

MODEL = llama(layers=2, width=256, keys=64, hidden=512, vocabulary=512)
STEPS = 6
SPAN = "magma step"

WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuEventSynchronize",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoD_v2",
)
"""CUDA calls that block the host. Asynchronous ones have longer names: cudaMemcpyAsync."""


def check(device: str, model: Workload = MODEL) -> Finding:
    """Passes if no step blocks the host, and all ways of stepping give the same bits."""
    finding = Finding()
    for backend, look in (("torch", _torch), ("jax", _jax)):
        try:
            mode = next(mode for mode in BACKENDS[backend][1](device) if mode.name != "compile")
        except (ImportError, LookupError) as error:
            finding.lines.append(f"{backend}: {error}")
        else:
            look(finding, mode, model)
    return finding


def _torch(finding: Finding, mode: Mode, model: Workload) -> None:
    eager = digest(_run(mode, model, compile=False))
    compiled = digest(_run(mode, model, compile=True))
    finding.expect(compiled == eager, f"magma_torch: compiled steps have the bits of eager ones, {STEPS} steps")
    training = _Training(mode, model, compile=True)
    for _ in range(2):
        training.step()
        training.change()
    found, launches = profiled(mode, training.optimizer.step)
    finding.facts["launches"] = launches
    finding.expect(not found, f"magma_torch: no step waits for the device: {', '.join(found) or 'no such call'}")
    finding.lines.append(f"magma_torch: {launches} launches in a step of {len(model.tensors)} tensors")
    if not mode.hardware:
        finding.lines.append("magma_torch: CUDA's graphs are not for the processor")
        return
    training.change()
    refused = _error(lambda: _forbidden_to_wait(mode, training.optimizer.step))
    finding.expect(not refused, f"magma_torch: torch sees no wait in a step: {refused or 'none'}")
    replayed = _error(lambda: digest(_run(mode, model, compile=True, capture=cuda_graph)))
    finding.expect(
        replayed == eager, f"magma_torch: a replayed graph has the bits of eager steps: {_equal(replayed, eager)}"
    )


def _equal(found: str, expected: str) -> str:
    return "equal" if found == expected else found


class _Training:
    """A model whose gradients change at each step."""

    def __init__(self, mode: Mode, model: Workload, *, compile: bool) -> None:
        magma = import_module("magma_torch").Magma
        self.mode, self.params, self.grads = mode, draw(mode, model, PARAM_SCALE, 1), Gradients(mode, model)
        self.names = [tensor.name for tensor in model.tensors]
        for param, grad in zip(self.params, self.grads.arrays, strict=True):
            param.grad = grad
        groups = [
            {"params": [(tensor.name, param)], "masked": tensor.block_axes is not None}
            for tensor, param in zip(model.tensors, self.params, strict=True)
        ]
        self.optimizer = magma(groups, compile=compile)

    def step(self, step: Callable[[], Any] | None = None) -> None:
        """Step with new gradients."""
        self.grads.renew()
        (step or self.optimizer.step)()

    def change(self) -> None:
        """Change what ordinary training changes between steps: the gradients' memory and the rate."""
        for param in self.params:
            param.grad = param.grad.clone()
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5

    def record(self) -> dict[str, Any]:
        """Parameters and states."""
        record: dict[str, Any] = {}
        for name, param in zip(self.names, self.params, strict=True):
            state = self.optimizer.state[param]
            fields = {"param": param, **{field: state[field] for field in State._fields if field in state}}
            record |= {f"{name}/{field}": self.mode.get(x).copy() for field, x in fields.items()}
        return record


Capture = Callable[[Mode, Callable[[], Any]], Callable[[], Any]]


def _run(mode: Mode, model: Workload, *, compile: bool, capture: Capture | None = None) -> list[dict[str, Any]]:
    """The record after each step; with ``capture``, the first step is eager and the others are replayed."""
    training = _Training(mode, model, compile=compile)
    training.step()
    records = [training.record()]
    step = capture(mode, training.optimizer.step) if capture else None
    for _ in range(STEPS - 1):
        training.step(step)
        records.append(training.record())
    return records


def cuda_graph(mode: Mode, step: Callable[[], Any]) -> Callable[[], Any]:
    """Capture the step as a CUDA graph and return its replay. Capturing runs nothing."""
    cuda = mode.framework.cuda
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        step()
    return graph.replay


class Event(NamedTuple):
    """A profiled call, in the profiler's units of time."""

    name: str
    start: float
    end: float


def profiled(mode: Mode, step: Callable[[], Any]) -> tuple[list[str], int]:
    """The blocking calls of a step, and its number of launches."""
    profiler = import_module("torch.profiler")
    activities = [profiler.ProfilerActivity.CPU]
    if mode.hardware:
        activities.append(profiler.ProfilerActivity.CUDA)
        mode.framework.cuda.synchronize()
    with profiler.profile(activities=activities) as profile:
        with profiler.record_function(SPAN):
            step()
        if mode.hardware:
            mode.framework.cuda.synchronize()  # outside the span, so that the profiler sees the launches
    events = [Event(e.name, e.time_range.start, e.time_range.end) for e in profile.events()]
    inside = within(events, SPAN)
    return [name for name in inside if name in WAITS], sum("Launch" in name for name in inside)


def within(events: Iterable[Event], span: str) -> list[str]:
    """The names of the events that begin within the event ``span``, in order.

    Raises:
        LookupError: if there is no such event: the profiler saw nothing.
    """
    known = sorted(events, key=lambda event: event.start)
    spans = [event for event in known if event.name == span]
    if not spans:
        raise LookupError(f"the profiler saw no {span!r}")
    first = spans[0]  # the host's; the device may have one too, which ends later
    return [event.name for event in known if first.start <= event.start <= first.end and event.name != span]


def _forbidden_to_wait(mode: Mode, step: Callable[[], Any]) -> str:
    cuda = mode.framework.cuda
    cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        cuda.set_sync_debug_mode("default")
    return ""


def _error(call: Callable[[], str]) -> str:
    """The call's result, or the error that it raised."""
    try:
        return call()
    except Exception as error:  # devices refuse in many ways: that is the finding
        return f"{type(error).__name__}: {error}"


def _jax(finding: Finding, mode: Mode, model: Workload) -> None:
    """A jitted step moves nothing between host and device, the only way that it could wait."""
    jax, magma = import_module("jax"), import_module("magma_jax").magma
    axes = {tensor.name: tensor.block_axes for tensor in model.tensors}
    optimizer = magma(1e-3, block_axes=lambda name, leaf: axes[name], kernels=True)
    update = jax.jit(optimizer.step, donate_argnums=(0, 2))
    params = dict(zip(axes, draw(mode, model, PARAM_SCALE, 1), strict=True))
    grads = dict(zip(axes, Gradients(mode, model).arrays, strict=True))
    params, state = update(params, grads, optimizer.init(params))
    params, state = jax.block_until_ready(update(params, grads, state))

    refused = _error(lambda: transferring(jax, lambda: update(params, grads, state)))
    finding.expect(not refused, f"magma_jax: a step moves nothing between host and device: {refused or 'nothing'}")


def transferring(jax: Any, step: Callable[[], Sequence[Any]]) -> str:
    """Run a step; raises if it moves anything between host and device."""
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(step())
    return ""
