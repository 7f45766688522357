"""How long a step takes: AdamW+Magma in each mode, beside the framework's own AdamW in the same run."""

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
from magma_conformance.bench.report import BenchReport, Timing, render
from magma_conformance.bench.workload import Workload, uniform
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.machine import cores, driver, processor
from magma_conformance.terminal.bars import Bars

__all__ = ["BenchReport", "Timing", "render", "run_bench"]


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

    On the CPU all contenders stay in memory and take turns, so that a slow minute of a shared machine meets all of
    them. On a device each takes turns with the framework's own, and makes place for the next. Gradients are others at
    every step, which is not timed. With the defaults there are 16.8 M parameters, which takes some four minutes on two
    cores, most of them for torch.compile, and 7 GiB of memory; on a device every contender needs 16 bytes for each
    parameter, and so does the one beside it.

    Args:
        workload: the parameters.
        repeats: timed steps of each contender.
        backends: some of "numpy", "torch", "jax", "tensorflow"; None for all.
        device: "cpu" or a device string such as "cuda:0". NumPy has only the one device.
        contenders: who takes part, of each framework the most important first.
        recount: see `Workload.magma_bytes`.
        seconds: after so many no contender is begun; None for no limit.
        keep: given what is known so far, whenever some contenders are done.
        progress: show it on stderr.

    Returns:
        The timings; what is not installed, has no such device or fails is among them with the reason.

    Raises:
        ValueError: for a number below 1, or a backend that does not exist.
        LookupError: where a backend that was named cannot run; nothing has been timed then.

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
