"""Times a step of AdamW+Magma in each mode beside the framework's own AdamW, in one run."""

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from rich.progress import Progress

from magma_conformance.bench.arrays import copy_bandwidth
from magma_conformance.bench.contenders import CONTENDERS, Contender
from magma_conformance.bench.race import Race, reason, together
from magma_conformance.bench.report import BenchReport, Timing, render, render_ratios
from magma_conformance.bench.workload import Workload, uniform
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.machine import cores, driver, processor
from magma_conformance.terminal.bars import Bars

__all__ = ["BenchReport", "Timing", "render", "render_ratios", "run_bench"]


def run_bench(
    workload: Workload = uniform(32, 512, 1024),  # noqa: B008 (it is immutable)
    *,
    repeats: int = 15,
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    contenders: Sequence[Contender] = CONTENDERS,
    recount: float = 0.0,
    seconds: float | None = None,
    keep: Callable[[BenchReport], Any] = lambda report: None,
    progress: bool = True,
) -> BenchReport:
    """Time one optimizer step of every contender, in turns.

    On the CPU all contenders stay in memory and take turns, so that a slow minute of a shared machine affects all of
    them. On a device each takes turns with its framework's baseline, then frees its memory. Gradients change at every
    step, outside the timing. The defaults mean 16.8 M parameters: about four minutes on two cores, mostly spent in
    torch.compile, and 7 GiB of memory. On a device, a contender and its baseline need 16 bytes per parameter each.

    Args:
        workload: the parameters.
        repeats: timed steps of each contender.
        backends: some of "numpy", "torch", "jax", "tensorflow"; None for all.
        device: "cpu" or a device string such as "cuda:0". NumPy has only the one device.
        contenders: who takes part, each framework's most important first.
        recount: see `Workload.magma_bytes`.
        seconds: no contender starts after this long; None for no limit.
        keep: called with the report so far whenever some contenders finish.
        progress: show it on stderr.

    Returns:
        The timings. A contender that is not installed, lacks the device or fails is listed with the reason.

    Raises:
        ValueError: for a number below 1, or an unknown backend.
        LookupError: if a named backend cannot run; nothing has been timed then.

    Example:
        >>> report = run_bench(uniform(2, 4, 8), repeats=3, backends=["numpy"], progress=False)
        >>> [(t.backend, t.mode, t.optimizer, len(t.seconds)) for t in report.timings]
        [('numpy', 'eager', 'magma_core', 3)]
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if not 0 <= recount <= 1:
        raise ValueError(f"recount must be between 0 and 1, got {recount}")
    there = list(dict.fromkeys(contender.backend for contender in contenders))
    if unknown := set(backends or ()) - set(there):
        raise ValueError(f"no backend {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    contenders = [c for c in contenders if backends is None or c.backend in backends]
    waiting = _let_threads_sleep({contender.backend for contender in contenders} - {"numpy"})
    modes = _open(contenders, device)
    absent = [f"{backend}: {why}" for backend, why in modes.items() if isinstance(why, str)]
    if backends is not None and absent:
        raise LookupError("\n".join(absent))
    opened = {backend: next(iter(own.values())) for backend, own in modes.items() if not isinstance(own, str)}
    race = Race(modes, workload, repeats, None if seconds is None else time.monotonic() + seconds)
    bandwidths = {backend: copy_bandwidth(mode) for backend, mode in opened.items()}

    def report() -> BenchReport:
        return BenchReport(
            machine={
                "processor": processor(),
                "cores": cores(),
                "system": platform.system(),
                "device": device,
                "devices": {backend: mode.hardware for backend, mode in opened.items()},
                "drivers": {backend: driver(backend, device) for backend in opened},
                "omp_wait_policy": waiting,
            },
            versions=_versions(opened),
            workload=workload,
            recount=recount,
            copy_bandwidth={backend: found for backend, found in bandwidths.items() if found is not None},
            timings=tuple(race.timing(contender) for contender in contenders),
        )

    with Bars(*Progress.get_default_columns(), transient=True, quiet=not progress) as bar:
        groups = together(contenders, device)
        task = bar.add_task("", total=len(groups))
        for group in groups:
            names = ", ".join(f"{c.mode} {c.optimizer}" for c in group)
            bar.update(task, description=f"{group[0].backend} {names}" if len(group) < 3 else "all")
            race.run(group)
            keep(report())
            bar.advance(task)
    return report()


def _let_threads_sleep(frameworks: set[str]) -> str:
    """Let OpenMP's threads, which torch uses, sleep while they wait if several frameworks run; the user may override.

    By default they spin. If another framework's threads want the core, each parallel region then waits for the
    scheduler: on two busy cores, 14 ms became 200. On its own torch is faster when they spin.
    """
    if "torch" not in sys.modules and len(frameworks) > 1:  # the library reads it once, at load
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        return os.environ["OMP_WAIT_POLICY"]
    return os.environ.get("OMP_WAIT_POLICY", "default")


def _open(contenders: Sequence[Contender], device: str) -> dict[str, dict[str, Mode] | str]:
    """Each backend's modes by name, or why it has none."""
    opened: dict[str, dict[str, Mode] | str] = {}
    for backend in dict.fromkeys(contender.backend for contender in contenders):
        try:
            opened[backend] = {mode.name: mode for mode in BACKENDS[backend][1](device)}
        except (ImportError, LookupError) as error:
            opened[backend] = reason(error)
    return opened


def _versions(opened: Mapping[str, Mode]) -> dict[str, str]:
    versions = {"python": platform.python_version()} | {backend: mode.version for backend, mode in opened.items()}
    for library, user in (("optax", "jax"), ("keras", "tensorflow")):
        if user in versions:
            try:
                versions[library] = import_module(library).__version__
            except ImportError:
                continue
    return versions
