"""How long a step takes: AdamW+Magma in each mode, beside the framework's own AdamW in the same run."""

import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from rich.console import Console
from rich.progress import Progress

from magma_conformance.bench_contenders import CONTENDERS, Contender, Data, Step
from magma_conformance.bench_report import BenchReport, Timing, render
from magma_conformance.machine import cores, processor
from magma_conformance.modes import BACKENDS, Mode

__all__ = ["BenchReport", "Timing", "render", "run_bench"]

_WARM_UPS = 2  # the first step compiles; in the second, what the first returned comes in


def run_bench(
    *,
    tensors: int = 32,
    rows: int = 512,
    columns: int = 1024,
    repeats: int = 15,
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    contenders: Sequence[Contender] = CONTENDERS,
    progress: bool = True,
) -> BenchReport:
    """Time one optimizer step of every contender, in turns.

    All contenders stay in memory and take turns, so that a slow minute of a shared machine meets all of them.
    Whole tensors are blocks. With the defaults there are 16.8 M parameters, which takes some four minutes on two
    cores, most of them for torch.compile, and 7 GiB of memory.

    Args:
        tensors: number of parameters.
        rows: their first extent.
        columns: their second extent.
        repeats: timed steps of each contender.
        backends: some of "numpy", "torch", "jax", "tensorflow"; None for all.
        device: "cpu" or a device string such as "cuda:0". NumPy has only the one device.
        contenders: who takes part.
        progress: show a progress bar on stderr.

    Returns:
        The timings; what is not installed, has no such device or fails is among them with the reason.

    Raises:
        ValueError: for a number below 1, or a backend that does not exist.

    Example:
        >>> report = run_bench(tensors=2, rows=4, columns=8, repeats=3, backends=["numpy"], progress=False)
        >>> [(t.backend, t.mode, t.optimizer, len(t.seconds)) for t in report.timings]
        [('numpy', 'eager', 'Magma', 3)]
    """
    for name, value in (("tensors", tensors), ("rows", rows), ("columns", columns), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    there = list(dict.fromkeys(contender.backend for contender in contenders))
    if unknown := set(backends or ()) - set(there):
        raise ValueError(f"no backend {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    contenders = [c for c in contenders if backends is None or c.backend in backends]
    data = Data.random(tensors, rows, columns)
    waiting = _let_threads_sleep({contender.backend for contender in contenders} - {"numpy"})
    modes = _open(contenders, device)
    steps: dict[Contender, Step] = {}
    reasons: dict[Contender, str] = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("", total=len(contenders))
        for contender in contenders:
            bar.update(task, description=f"compile {contender.backend} {contender.mode} {contender.optimizer}")
            ready = _prepare(contender, modes[contender.backend], data)
            if isinstance(ready, str):
                reasons[contender] = ready
            else:
                steps[contender] = ready
            bar.advance(task)
        bar.update(task, description="time", total=repeats, completed=0)
        seconds = _take_turns(steps, repeats, advance=lambda: bar.advance(task))
        extra = {c: peak_memory(step) for c, step in steps.items() if c.backend == "torch" and c.mode in modes["torch"]}
    return BenchReport(
        machine={
            "processor": processor(),
            "cores": cores(),
            "system": platform.system(),
            "device": device,
            "omp_wait_policy": waiting,
        },
        versions=_versions(modes),
        tensors=tensors,
        shape=(rows, columns),
        timings=tuple(
            Timing(c.backend, c.mode, c.optimizer, tuple(seconds.get(c, ())), reasons.get(c, ""), extra.get(c))
            for c in contenders
        ),
    )


def peak_memory(step: Step) -> int:
    """The most that one step of torch holds at a time, in bytes, of memory that it allocates itself."""
    profiler = import_module("torch.profiler")
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def _let_threads_sleep(frameworks: set[str]) -> str:
    """Among several frameworks OpenMP's threads, which torch runs on, sleep while they wait, unless told otherwise.

    By default they spin. Where another framework's threads want the core, each parallel region then waits for a turn of
    the scheduler: measured on two busy cores, 14 ms became 200. By itself torch is faster when they spin.
    """
    if "torch" not in sys.modules and len(frameworks) > 1:  # it is read once, when the library is loaded
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        return os.environ["OMP_WAIT_POLICY"]
    return os.environ.get("OMP_WAIT_POLICY", "default")


def _open(contenders: Sequence[Contender], device: str) -> dict[str, dict[str, Mode] | str]:
    """The modes of each backend by name, or why there are none."""
    opened: dict[str, dict[str, Mode] | str] = {}
    for backend in dict.fromkeys(contender.backend for contender in contenders):
        try:
            opened[backend] = {mode.name: mode for mode in BACKENDS[backend][1](device)}
        except (ImportError, LookupError) as error:
            opened[backend] = _reason(error)
    return opened


def _prepare(contender: Contender, modes: Mapping[str, Mode] | str, data: Data) -> Step | str:
    """A step that has been compiled, or why there is none."""
    if isinstance(modes, str):
        return modes
    try:
        step = contender.prepare(modes[contender.mode], data)
        for _ in range(_WARM_UPS):
            step()
    except Exception as error:  # a framework may refuse in any way: that is a finding, not the end
        return _reason(error)
    return step


def _take_turns(
    steps: Mapping[Contender, Step], repeats: int, *, advance: Callable[[], None]
) -> dict[Contender, list[float]]:
    seconds: dict[Contender, list[float]] = {contender: [] for contender in steps}
    for _ in range(repeats):
        for contender, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[contender].append(time.perf_counter() - started)
        advance()
    return seconds


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "not installed"
    # torch says in the first line that a compiler failed, and in the second what
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return text if isinstance(error, LookupError) else f"{type(error).__name__}: {text}"


def _versions(modes: Mapping[str, Mapping[str, Mode] | str]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for backend, opened in modes.items():
        if not isinstance(opened, str):
            versions[backend] = next(iter(opened.values())).version
    for library, user in (("optax", "jax"), ("keras", "tensorflow")):
        if user in versions:
            try:
                versions[library] = import_module(library).__version__
            except ImportError:
                continue
    return versions
