"""The command line: ``magma-conformance run``, ``probe`` and ``bench``."""

import fnmatch
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings would tear the progress bar

from magma_conformance import bench as bench_module
from magma_conformance import probe as probe_module
from magma_conformance import realtext
from magma_conformance.adapters import ADAPTERS
from magma_conformance.bench_contenders import CONTENDERS, MAGMA
from magma_conformance.cases import Case, pairwise, product
from magma_conformance.machine import cores
from magma_conformance.modes import BACKENDS
from magma_conformance.report import Report, render
from magma_conformance.runner import AnyJob, Job, open_implementation, open_mode, run_jobs

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

_ROWS = {backend: names for backend, (names, _) in BACKENDS.items()}
_ROWS |= {name: adapter.modes for name, adapter in ADAPTERS.items()}

Backends = Annotated[
    list[str] | None,
    typer.Option("--backend", help=f"One of {', '.join(_ROWS)}; may be repeated. Default: all installed."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N. NumPy and the strict namespace stay on the CPU.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")]


@app.command()
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
    _check_device(device)
    modes, report = _open_modes(backend, device)
    cases = _choose(list(product()) if full else pairwise(), case)
    real = case is None or any(fnmatch.fnmatchcase(realtext.COLUMN, pattern) for pattern in case)
    for pattern in case or ():
        if not _choose(cases, [pattern]) and not fnmatch.fnmatchcase(realtext.COLUMN, pattern):
            where = "" if full else ", or with --full"
            _refuse(f"--case: no case matches {pattern}; names look like {pairwise()[0].id}{where}")
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
    _write(report.to_json(), json_file)
    for failure in report.failures:
        console.print(failure, style="red", markup=False)
    if report.mismatches or report.failures:
        raise typer.Exit(1)
    ran = {result.mode for result in report.results if result.status != "not run"}
    if idle := [_label(key) for key in modes if _label(key) not in ran and (backend or not ran)]:
        _refuse(f"could not run: {', '.join(idle)}")
    if device != "cpu" and not any(
        _device(name, device) == device and not reason for (name, _), reason in modes.items()
    ):
        _refuse(f"--device: no backend here has a device {device}")


@app.command()
def probe(backend: Backends = None, device: Device = "cpu", json_file: JsonFile = None) -> None:
    """Measure the arithmetic of every backend and mode, so that a mismatch explains itself.

    Exit status: 0 if every fenced expression is exact, 1 if one is not, 2 if a backend asked for cannot run.
    """
    _check_device(device)
    try:
        report = probe_module.run_probe(backend, device)
    except ValueError as error:
        _refuse(str(error))
    probe_module.render(report, Console())
    _write(report.to_json(), json_file)
    if report.broken_fences():
        raise typer.Exit(1)
    if backend and any(mode.status != "measured" for mode in report.modes):
        raise typer.Exit(2)


@app.command()
def bench(
    backend: Backends = None,
    device: Device = "cpu",
    tensors: Annotated[int, typer.Option(min=1)] = 32,
    rows: Annotated[int, typer.Option(min=1)] = 512,
    columns: Annotated[int, typer.Option(min=1)] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each contender; the median counts.")] = 15,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Optimizers only: the core's compiled programs grow with the tensors.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Milliseconds per step of AdamW with Magma, beside each framework's own AdamW, in one run."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which tells the memory, would comment on itself
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _check_device(device)
    try:
        report = bench_module.run_bench(
            tensors=tensors,
            rows=rows,
            columns=columns,
            repeats=repeats,
            backends=backend,
            device=device,
            contenders=[c for c in CONTENDERS if c.optimizer != MAGMA or not adapters],
        )
    except ValueError as error:
        _refuse(str(error))
    bench_module.render(report, Console())
    _write(report.to_json(), json_file)


Key = tuple[str, str]  # backend, mode


def _open_modes(wanted: list[str] | None, device: str) -> tuple[dict[Key, str], Report]:
    """For each mode why it cannot run, empty if it can; and a report that says the same."""
    if unknown := [name for name in wanted or () if name not in _ROWS]:
        _refuse(f"--backend: no backend {unknown[0]!r}; there are {', '.join(_ROWS)}")
    report, modes = Report(), {}
    for backend, names in _ROWS.items():
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
            _refuse(f"--case {realtext.COLUMN!r}: {error}")
        return []
    return [realtext.RealJob(*key, _device(key[0], device), recording) for key in present]


def _choose(cases: list[Case], patterns: list[str] | None) -> list[Case]:
    if patterns is None:
        return cases
    return [case for case in cases if any(fnmatch.fnmatchcase(case.id, pattern) for pattern in patterns)]


def _check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        _refuse(f"--device: must be cpu, cuda or cuda:N, got {device}")


def _device(backend: str, device: str) -> str:
    return "cpu" if backend in ("numpy", "strict") else device


def _label(key: Key) -> str:
    return " ".join(key)


def _write(report: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


def _refuse(message: str) -> NoReturn:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
