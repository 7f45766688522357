"""``magma-conformance run``."""

import fnmatch
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from magma_conformance import realtext
from magma_conformance.adapters import ADAPTERS
from magma_conformance.cases import Case, pairwise, product
from magma_conformance.commands.common import ROWS, Backends, Device, JsonFile, check_device, refuse, write
from magma_conformance.machine import cores
from magma_conformance.report import Report, render
from magma_conformance.runner import AnyJob, Job, open_implementation, open_mode, run_jobs


def run(
    backend: Backends = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="Such as 'adamw/*', or 'text' for the real gradients; may be repeated. Default: all."),
    ] = None,
    device: Device = "cpu",
    full: Annotated[bool, typer.Option("--full", help="All 81,000 combinations, not only all pairs.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the real-gradient run.")] = realtext.STEPS,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, cores()),
    json_file: JsonFile = None,
) -> None:
    """Run every backend and mode on the same inputs and compare all bits with magma_core on NumPy.

    Exit status: 0 if all that ran is equal, 1 on any mismatch or if the loss did not fall,
    2 if something that was asked for cannot run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads would spin on cores that others need
    console = Console()
    check_device(device)
    modes, report = _open_modes(backend, device)
    cases = _choose(list(product()) if full else pairwise(), case)
    real = case is None or any(fnmatch.fnmatchcase(realtext.COLUMN, pattern) for pattern in case)
    for pattern in case or ():
        if not _choose(cases, [pattern]) and not fnmatch.fnmatchcase(realtext.COLUMN, pattern):
            where = "" if full else ", or with --full"
            refuse(f"--case: no case matches {pattern}; names look like {pairwise()[0].id}{where}")
    present = [key for key, reason in modes.items() if not reason]
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as progress,
        tempfile.TemporaryDirectory(prefix="magma-") as folder,
    ):
        work: list[AnyJob] = [Job(*key, device=_device(key[0], device), case=c) for key in present for c in cases]
        if real:
            work += _real_jobs(Path(folder), present, device, steps, report, progress, asked=case is not None)
        bar = progress.add_task("comparing", total=len(work))
        for result in run_jobs(work, jobs):
            report.results.append(result)
            equal = "" if result.status in ("equal", "not run") else "  [red]different"
            progress.update(bar, advance=1, description=f"{result.mode}{equal}")
    render(report, [_label(key) for key in modes], console)
    if report.losses:
        first, last = report.losses[0], report.losses[-1]
        console.print(f"real text: loss {first:.3f} → {last:.3f} nats per byte in {len(report.losses)} steps")
        if len(report.losses) > 1 and not last < first:
            report.failures.append("the loss of the real-gradient run did not fall")
    write(report.to_json(), json_file)
    for failure in report.failures:
        console.print(failure, style="red", markup=False)
    if report.mismatches or report.failures:
        raise typer.Exit(1)
    ran = {result.mode for result in report.results if result.status != "not run"}
    if idle := [_label(key) for key in modes if _label(key) not in ran and (backend or not ran)]:
        refuse(f"could not run: {', '.join(idle)}")
    if device != "cpu" and not any(
        _device(name, device) == device and not reason for (name, _), reason in modes.items()
    ):
        refuse(f"--device: no backend here has a device {device}")


Key = tuple[str, str]  # backend, mode


def _open_modes(wanted: list[str] | None, device: str) -> tuple[dict[Key, str], Report]:
    """For each mode why it cannot run, empty if it can; and a report that says the same."""
    if unknown := [name for name in wanted or () if name not in ROWS]:
        refuse(f"--backend: no backend {unknown[0]!r}; there are {', '.join(ROWS)}")
    report, modes = Report(), {}
    for backend, names in ROWS.items():
        if wanted and backend not in wanted:
            continue
        for name in names:
            reason = ""
            try:
                if backend in ADAPTERS:
                    open_implementation(backend, name, _device(backend, device))
                else:
                    mode = open_mode(backend, name, _device(backend, device))
                    report.versions[backend], report.devices[backend] = mode.version, mode.hardware
            except ImportError as error:
                reason = "not installed"
                report.absent_details[backend] = str(error)
            except LookupError as error:
                reason = f"no device {device}"
                report.absent_details[backend] = str(error)
            modes[backend, name] = reason
            if reason:
                report.absent[_label((backend, name))] = reason
    return modes, report


def _real_jobs(
    folder: Path, present: list[Key], device: str, steps: int, report: Report, progress: Progress, *, asked: bool
) -> list[AnyJob]:
    bar = progress.add_task("real text: recording gradients", total=steps)

    def advance(loss: float) -> None:
        progress.update(bar, advance=1, description=f"real text: loss {loss:.3f}")

    try:
        recording, report.losses = realtext.record(folder, steps, advance)
    except ImportError as error:
        progress.remove_task(bar)
        report.absent[realtext.COLUMN] = str(error)
        if asked:
            refuse(f"--case {realtext.COLUMN!r}: {error}")
        return []
    return [realtext.RealJob(*key, _device(key[0], device), recording) for key in present]


def _choose(cases: list[Case], patterns: list[str] | None) -> list[Case]:
    if patterns is None:
        return cases
    return [case for case in cases if any(fnmatch.fnmatchcase(case.id, pattern) for pattern in patterns)]


def _device(backend: str, device: str) -> str:
    return "cpu" if backend in ("numpy", "strict") else device


def _label(key: Key) -> str:
    return " ".join(key)
