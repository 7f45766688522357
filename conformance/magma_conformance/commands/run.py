"""``magma-conformance run``."""

import difflib
import fnmatch
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from magma_conformance.cases import real_text
from magma_conformance.cases.pairwise import BASES, Case, pairwise, product
from magma_conformance.cases.recorded import Recorded
from magma_conformance.commands.common import (
    ROWS,
    Backends,
    Device,
    JsonFile,
    check_device,
    check_writable,
    open_repro,
    refuse,
    write,
)
from magma_conformance.external.plugin import KINDS
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.machine import cores, driver
from magma_conformance.report.page import write_page
from magma_conformance.report.report import RunReport, render
from magma_conformance.runner.jobs import AnyJob, Job, VectorJob, open_implementation, open_mode, run_jobs
from magma_conformance.runner.jobs import Case as RunCase
from magma_conformance.terminal.bars import Bars
from magma_conformance.vectors import FILES, Vector, load
from magma_conformance.wire.digest import digest_task


def run(
    backend: Backends = None,
    mode: Annotated[
        list[str] | None,
        typer.Option("--mode", help="Of the backends, such as jit; may be repeated. Default: all they have."),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as 'adamw/*', 'vectors/coins/*', 'recorded' or 'text' for real gradients; may be repeated. "
            "Default: all; vectors in modes that compile nothing and for --impl and --exec."
        ),
    ] = None,
    impl: Annotated[
        list[str] | None, typer.Option("--impl", help="An implementation in Python, pkg.mod:factory; may be repeated.")
    ] = None,
    program: Annotated[
        list[str] | None,
        typer.Option(
            "--exec",
            help="A program, with its arguments if any, that reads a request and writes an answer.",
        ),
    ] = None,
    repro: Annotated[
        list[Path] | None,
        typer.Option("--repro", help="A case in a file, as `fuzz` writes it, and nothing else; may be repeated."),
    ] = None,
    device: Device = "cpu",
    full: Annotated[bool, typer.Option("--full", help="All 81,000 combinations, not only all pairs.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the real-gradient run.")] = real_text.STEPS,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, cores()),
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="After so many no case is begun; what is left counts as not run. Default: no limit."),
    ] = None,
    json_file: JsonFile = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the matrix as a page to this file.")] = None,
) -> None:
    """Run every backend and mode on the same inputs, and compare all bits with magma_core on NumPy.

    --impl and --exec run external implementations (docs/porting.md) instead of the backends, or beside those requested.

    Exit status: 0 if everything that ran is equal, 1 on any mismatch or if the loss did not fall, 2 if something
    requested cannot run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads would spin on cores that others need
    console = Console()
    check_device(device)
    check_writable("--json", json_file)
    check_writable("--html", html)
    plugged = [*(("impl", target) for target in impl or ()), *(("exec", target) for target in program or ())]
    modes, report = _open_modes([] if plugged and not backend else backend, mode, device)
    modes |= _open_plugged(plugged)
    report.options = (*(["--full"] if full else []), *([f"--device {device}"] if device != "cpu" else []))
    repros: list[RunCase] = [open_repro(file) for file in repro or ()]
    if repros:
        case = case or []
    cases = _choose(list(product()) if full else pairwise(), case)
    vectors = [vector for vector in load() if case is None or _matches(vector.name, case)]
    real = case is None or _matches(real_text.COLUMN, case)
    recorded: list[RunCase] = [] if case is not None and not _matches(Recorded().id, case) else [Recorded()]
    names = [*(c.id for c in cases), Recorded().id, *(vector.name for vector in vectors), real_text.COLUMN]
    for pattern in case or ():
        if not any(_matches(name, [pattern]) for name in names):
            _refuse_case(pattern, full)
    present = [key for key, reason in modes.items() if not reason]
    _refuse_absent(modes, present, report, backend, device, by_mode=bool(mode))
    with (
        Bars() as progress,
        tempfile.TemporaryDirectory(prefix="magma-") as folder,
    ):
        # a time limit drops the last jobs: those that other machines can be compared with come first
        fixed = [*repros, *recorded]
        work: list[AnyJob] = [Job(*key, _device(key[0], device), c) for key in present for c in fixed]
        work += _vector_jobs(present, vectors, device, asked=case is not None)
        work += [Job(*key, device=_device(key[0], device), case=c) for key in present for c in cases]
        report.inputs = {c.id: digest_task(c.task()) for c in cases}
        report.inputs |= {c.id: digest_task(c.task()) for c in fixed}
        if real:
            work += _real_jobs(Path(folder), present, device, steps, report, progress, asked=case is not None)
        bar = progress.add_task("comparing", total=sum(job.size for job in work))
        wrong = ""

        def working(at_hand: Sequence[AnyJob]) -> None:
            modes = dict.fromkeys(_label((job.backend, job.mode)) for job in at_hand)
            progress.update(bar, description=f"{escape(', '.join(modes))}{wrong}")

        with closing(run_jobs(work, jobs, seconds, working)) as results:
            for result in results:
                report.results.append(result)
                if result.status in ("different", "failed"):
                    wrong = f"  [red]{result.status}"
                progress.advance(bar)
    render(report, [_label(key) for key in modes], console)
    if report.losses:
        first, last = report.losses[0], report.losses[-1]
        console.print(f"real text: loss {first:.3f} → {last:.3f} nats per byte in {len(report.losses)} steps")
        if len(report.losses) > 1 and not last < first:
            report.failures.append("the loss of the real-gradient run did not fall")
    write(report.to_json(), json_file)
    if html is not None:
        write_page([report.to_json()], html)
    for failure in report.failures:
        console.print(failure, style="red", markup=False)
    if report.mismatches or report.failures:
        raise typer.Exit(1)
    ran = {result.mode for result in report.results if result.status != "not run"}
    if idle := _idle(modes, ran, by_mode=bool(mode)) if backend or plugged or not ran else []:
        refuse(f"could not run: {', '.join(idle)}")


Key = tuple[str, str]  # backend, mode


def _open_modes(
    wanted: list[str] | None, wanted_modes: list[str] | None, device: str
) -> tuple[dict[Key, str], RunReport]:
    """For each mode why it cannot run (empty if it can), and a report that says the same."""
    if unknown := [name for name in wanted or () if name not in ROWS]:
        refuse(f"--backend: no backend {unknown[0]!r}; there are {', '.join(ROWS)}")
    rows = {
        backend: [name for name in names if wanted_modes is None or name in wanted_modes]
        for backend, names in ROWS.items()
        if wanted is None or backend in wanted
    }
    there = dict.fromkeys(name for backend in rows for name in ROWS[backend])
    if unknown := [name for name in wanted_modes or () if name not in there]:
        refuse(f"--mode: no mode {unknown[0]!r} of {', '.join(rows)}; there are {', '.join(there)}")
    report, modes = RunReport(), {}
    for backend, names in rows.items():
        where = _device(backend, device)
        for name in names:
            reason = ""
            try:
                if backend in ADAPTERS:
                    open_implementation(backend, name, where)
                    report.versions[backend] = version(ADAPTERS[backend].framework)
                    report.devices[backend] = _hardware(ADAPTERS[backend].framework, where)
                else:
                    mode = open_mode(backend, name, where)
                    report.versions[backend], report.devices[backend] = mode.version, mode.hardware
                report.drivers[backend] = driver(backend, where)
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


def _idle(modes: Mapping[Key, str], ran: set[str], *, by_mode: bool) -> list[str]:
    """What was requested and did not run: modes if modes were requested, else all modes of backends that ran none.

    Some modes need a device: CUDA graphs do not run on the CPU, nor gloo on CUDA.
    """
    there = {backend for backend, name in modes if _label((backend, name)) in ran}
    return [_label(key) for key in modes if _label(key) not in ran and (by_mode or key[0] not in there)]


def _refuse_absent(
    modes: Mapping[Key, str],
    present: list[Key],
    report: RunReport,
    wanted: list[str] | None,
    device: str,
    *,
    by_mode: bool,
) -> None:
    """Exit with status 2, before any computation, if something requested is missing."""
    details = [f"{backend}: {reason}" for backend, reason in report.absent_details.items()]
    if device != "cpu" and all(_device(name, device) != device for name, _ in present):
        asked = "of those asked for" if wanted or not present else "here"
        refuse("\n".join([f"--device: no backend {asked} has a device {device}", *details]))
    absent = _idle(modes, {_label(key) for key in present}, by_mode=by_mode) if wanted else []
    if absent:
        said = [f"{key}: {report.absent[key]}" for key in absent]
        refuse("\n".join(["cannot run what was asked for, so nothing was:", *said, *details]))


def _hardware(framework: str, device: str) -> str:
    """The device's own name; for Keras, which runs in another process, the requested name."""
    if device == "cpu":
        return ""
    return open_mode(framework, ROWS[framework][0], device).hardware if framework in BACKENDS else device


def _open_plugged(plugged: list[Key]) -> dict[Key, str]:
    """The external implementations; exits with status 2 if one cannot be opened."""
    for key in plugged:
        try:
            open_implementation(*key, "cpu")
        except (LookupError, TypeError) as error:
            refuse(str(error))
    return dict.fromkeys(plugged, "")


def _vector_jobs(present: list[Key], vectors: list[Vector], device: str, *, asked: bool) -> list[AnyJob]:
    """One job per file of vectors: an external program gets them in one request."""
    files: dict[str, list[Vector]] = {}
    for vector in vectors:
        files.setdefault(vector.file, []).append(vector)
    # a compiler would take seconds per vector, and the cases cover the same; JAX compiles even when eager
    eager = {(backend, "eager") for backend in BACKENDS if backend != "jax"}
    modes = [key for key in present if asked or key[0] in KINDS or key in eager]
    return [VectorJob(*key, _device(key[0], device), tuple(part)) for key in modes for part in files.values()]


def _real_jobs(
    folder: Path, present: list[Key], device: str, steps: int, report: RunReport, progress: Bars, *, asked: bool
) -> list[AnyJob]:
    bar = progress.add_task("real text: recording gradients", total=steps)

    def advance(loss: float) -> None:
        progress.update(bar, advance=1, description=f"real text: loss {loss:.3f}")

    try:
        recording, report.losses = real_text.record(folder, steps, advance)
    except ImportError as error:
        progress.remove_task(bar)
        report.absent[real_text.COLUMN] = str(error)
        if asked:
            refuse(f"--case {real_text.COLUMN!r}: {error}")
        return []
    report.inputs[real_text.COLUMN] = recording.inputs()
    return [real_text.RealJob(*key, _device(key[0], device), recording) for key in present]


def _refuse_case(pattern: str, full: bool) -> NoReturn:
    own = [Recorded().id, real_text.COLUMN]
    kinds = [*(f"vectors/{file}/*" for file in FILES), *(f"{base}/*" for base in BASES), *own]
    meant = difflib.get_close_matches(pattern, kinds, 1)
    where = "" if full else ", or more of them with --full"
    refuse(
        f"--case: no case matches {pattern!r}{f'; did you mean {meant[0]!r}?' if meant else '.'} There are "
        f"vectors/KIND/NUMBER such as {load()[0].name}, cases such as {pairwise()[0].id}{where}, {' and '.join(own)}"
    )


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _choose(cases: list[Case], patterns: list[str] | None) -> list[Case]:
    if patterns is None:
        return cases
    return [case for case in cases if _matches(case.id, patterns)]


def _device(backend: str, device: str) -> str:
    return "cpu" if backend in ("numpy", "strict", *KINDS) else device


def _label(key: Key) -> str:
    return " ".join(key)
