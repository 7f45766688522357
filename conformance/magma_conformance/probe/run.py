"""Measures the arithmetic of each backend, mode and device, which explains mismatches."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from rich.progress import Progress

from magma_conformance.bits import Difference, first_difference
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.machine import processor
from magma_conformance.probe.expressions import PROBES
from magma_conformance.probe.probe import Operations, Probe
from magma_conformance.probe.report import ModeReport, ModeStatus, ProbeReport, Result
from magma_conformance.probe.table import render
from magma_conformance.terminal.bars import Bars
from magma_core.namespace import Array

__all__ = ["ModeReport", "ProbeReport", "Result", "measure", "render", "run_probe"]

_SETTINGS = (
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
    "TF_ENABLE_ONEDNN_OPTS",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "OMP_NUM_THREADS",
)


def run_probe(backends: Sequence[str] | None = None, device: str = "cpu") -> ProbeReport:
    """Measure the hazards of `magma_conformance.probe.expressions` in all modes of some backends.

    Takes about a minute for all backends on two cores; progress goes to stderr.

    Args:
        backends: names from `magma_conformance.implementations.modes.BACKENDS`, or None for all.
        device: "cpu" or a device string such as "cuda:0". NumPy has only the one device.

    Returns:
        A report. A backend that is not installed, or lacks the device, is listed as such.

    Raises:
        ValueError: for an unknown backend.
        LookupError: if a named backend cannot run, or none has the device; nothing has been measured then.
    """
    there = [backend for backend in BACKENDS if backend != "strict"]  # strict is NumPy again
    unknown = set(backends or ()) - set(there)
    if unknown:
        raise ValueError(f"no backend {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    wanted = [backend for backend in there if backends is None or backend in backends]
    reports: list[ModeReport] = []
    opened, absent = _open(wanted, device)
    if backends is not None and absent:
        raise LookupError("\n".join(f"{one.backend}: {one.status}: {one.reason}" for one in absent.values()))
    if device != "cpu" and not opened.keys() - {"numpy"}:
        raise LookupError(f"device: no backend {'of these' if backends else 'here'} has a device {device}")
    with Bars(*Progress.get_default_columns(), transient=True) as progress:
        for backend in wanted:
            if backend in absent:
                reports += [replace(absent[backend], mode=name) for name in BACKENDS[backend][0]]
                continue
            task = progress.add_task(backend, total=len(opened[backend]) * len(PROBES))
            for mode in opened[backend]:
                progress.update(task, description=f"{mode.backend} {mode.name}")
                reports.append(measure(mode, advance=partial(progress.advance, task)))
    return ProbeReport(_environment(reports), device, tuple(reports))


def _open(wanted: Sequence[str], device: str) -> tuple[dict[str, Sequence[Mode]], dict[str, ModeReport]]:
    """Each backend's modes, or why it has none."""
    opened: dict[str, Sequence[Mode]] = {}
    absent: dict[str, ModeReport] = {}
    for backend in wanted:
        try:
            opened[backend] = BACKENDS[backend][1](device)
        except (ImportError, LookupError) as error:
            status: ModeStatus = "not installed" if isinstance(error, ImportError) else "no device"
            absent[backend] = ModeReport(backend, "", status, _line(error))
    return opened, absent


def measure(
    mode: Mode, probes: Iterable[Probe] = PROBES, /, *, advance: Callable[[int], Any] = lambda count: None
) -> ModeReport:
    """Evaluate expressions in one mode and compare each with its reference, bit for bit.

    Args:
        mode: where to run.
        probes: the expressions.
        advance: called with the number of expressions done, for a progress bar.
    """
    started = time.perf_counter()
    there = [probe for probe in probes if probe.only in (None, mode.backend)]
    results = {probe.id: Result("not applicable") for probe in probes if probe not in there}
    advance(len(results))
    for group in [there] if mode.whole else [[probe] for probe in there]:
        operands = [probe.operands() for probe in group]
        try:
            actual = _run(mode, group, operands)
        except Exception as error:  # frameworks refuse in many ways: a finding, not the end
            line = f"{type(error).__name__}: {_line(error)}"
            results |= {probe.id: Result("error", error=line) for probe in group}
        else:
            for probe, own, array in zip(group, operands, actual, strict=True):
                reference = probe.reference(own)
                first = first_difference(array, reference)
                results[probe.id] = _result(first, reference.size)
        advance(len(group))
    return ModeReport(
        mode.backend,
        mode.name,
        "measured",
        version=mode.version,
        hardware=mode.hardware or processor(),
        seconds=time.perf_counter() - started,
        results=results,
    )


def _result(first: Difference | None, total: int) -> Result:
    """A wrong dtype or shape counts as a difference everywhere."""
    if first is None:
        return Result("measured", 0, total)
    return Result("measured", first.count if first.what == "value" else total, total, first)


def _run(mode: Mode, probes: Sequence[Probe], operands: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Evaluate ``probes`` in one program, each on its own operands."""

    operations = Operations(mode.framework, mode.xp)

    def program(*arrays: Array) -> list[Array]:
        rest = list(arrays)
        results = []
        for probe, own in zip(probes, operands, strict=True):
            results.append(probe.evaluate(operations, rest[: len(own)]))
            rest = rest[len(own) :]
        return results

    with mode.xp.scope():
        results = mode.compile(program)(*(mode.put(x) for own in operands for x in own))
        return [mode.get(x) for x in results]


def _line(error: Exception) -> str:
    """The first two lines: torch's first says that a compiler raised, the second what."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])


def _environment(reports: Sequence[ModeReport]) -> dict[str, Any]:
    """Machine, versions, and the settings that change arithmetic."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "versions": {"numpy": np.__version__, "ml_dtypes": ml_dtypes.__version__}
        | {report.backend: report.version for report in reports if report.version},
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }
