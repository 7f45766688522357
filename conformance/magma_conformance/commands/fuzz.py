"""``magma-conformance fuzz``."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from magma_conformance.commands.common import (
    ROWS,
    Device,
    JsonFile,
    check_device,
    check_writable,
    open_repro,
    refuse,
    write,
)
from magma_conformance.external.plugin import KINDS
from magma_conformance.fuzz.hunt import Row, Tally, configurations, hunt
from magma_conformance.fuzz.minimise import minimise
from magma_conformance.fuzz.report import Findings
from magma_conformance.fuzz.rows import foreign, rows
from magma_conformance.processes.worker import end_all
from magma_conformance.runner.jobs import run_task
from magma_conformance.runner.repeat import repeat
from magma_conformance.runner.repro import Repro, write_repro
from magma_conformance.runner.result import Result
from magma_conformance.task import Implementation, Task
from magma_conformance.terminal.bars import Bars

REFERENCES = ("numpy", "c", "oracle")


def fuzz(
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", help="As `run` has them, or c, oracle; may be repeated. Default: all installed."),
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option("--mode", help="Such as eager or jit-numbers; may be repeated. Default: all.")
    ] = None,
    impl: Annotated[
        list[str] | None, typer.Option("--impl", help="An implementation in Python, pkg.mod:factory; may be repeated.")
    ] = None,
    program: Annotated[
        list[str] | None, typer.Option("--exec", help="A program as docs/porting.md describes; may be repeated.")
    ] = None,
    reference: Annotated[str, typer.Option(help=f"What all are compared with: {', '.join(REFERENCES)}.")] = "numpy",
    seconds: Annotated[
        float, typer.Option(min=1, help="Of the whole; each row has an equal share, and at least one configuration.")
    ] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides all cases, on every machine.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="The number of the first configuration.")] = 0,
    most: Annotated[
        int | None,
        typer.Option("--configurations", min=1, help="At most so many in each row. Default: no limit."),
    ] = None,
    repro: Annotated[
        list[Path] | None, typer.Option("--repro", help="A case in a file, and no random ones; may be repeated.")
    ] = None,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="The folder for files of cases that differ.")] = Path(),
    json_file: JsonFile = None,
) -> None:
    """Run random cases through every backend and mode, and compare all bits with a reference.

    Cases cover the whole ranges of spec section 9. A case that differs is minimised and written to a file; the command
    that runs it again is printed.

    Exit status: 0 if everything that ran is equal, 1 if any case differs or fails, 2 if something requested cannot run
    or compared nothing.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads would spin on cores that others need
    console = Console()
    check_device(device)
    check_writable("--json", json_file)
    check_writable("--out", out / "fuzz.json")
    if reference not in REFERENCES:
        refuse(f"--reference: must be one of {', '.join(REFERENCES)}, got {reference!r}")
    given = [open_repro(file) for file in repro or ()]
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        there = rows(device, Path(folder))
        expected = _open_reference(reference, there)
        plugged = [*(foreign("impl", x) for x in impl or ()), *(foreign("exec", x) for x in program or ())]
        chosen = _choose([row for row in there if row.backend != reference], backend, mode, plugged)
        if device != "cpu" and all(row.device == "cpu" for row in chosen):
            refuse(f"--device: nothing of what was asked for runs on {device}")
        opened, absent = _open(chosen)
        if idle := _idle(chosen, [row for row, _ in opened], by_mode=bool(mode)) if backend or plugged else []:
            refuse("\n".join(["cannot run what was asked for, so nothing was:", *(f"{x}: {absent[x]}" for x in idle)]))
        findings, end = Findings(seed, first, device, expected.name, absent=absent), time.monotonic() + seconds
        repeats: list[str] = []
        with Bars(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as progress:
            bar = progress.add_task("", total=None)
            for place, (row, candidate) in enumerate(opened):
                progress.update(bar, description=escape(f"{row.label}: starting"))
                share = time.monotonic() + (end - time.monotonic()) / (len(opened) - place)
                cases_of = [[case] for case in given] or configurations(row, seed=seed, first=first, most=most)
                tally = Tally(row)
                for tally in hunt(row, candidate, expected, cases_of, end=share):
                    progress.update(bar, description=escape(_said(tally, place + 1, len(opened))))
                findings.tallies.append(tally)
                if tally.different:
                    progress.update(bar, description=escape(f"{row.label}: making a case small"))
                    repeats.append(_keep(tally, candidate, expected, reference, out))
                end_all()  # this row's processes
                write(findings.to_json(), json_file)  # an interrupted run keeps its results
    findings.render(console)
    for text in repeats:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if repeats:
        raise typer.Exit(1)
    ran = [tally.row for tally in findings.tallies if tally.cases]
    if idle := _idle(chosen, ran, by_mode=bool(mode)) if backend or plugged or not ran else []:
        refuse(f"compared nothing: {', '.join(idle)}")


def _open_reference(reference: str, there: list[Row]) -> Implementation:
    try:
        return next(row for row in there if row.backend == reference).open()
    except LookupError as error:
        refuse(f"--reference {reference}: {error}")


def _choose(there: list[Row], backend: list[str] | None, mode: list[str] | None, plugged: list[Row]) -> list[Row]:
    """The requested rows; exits with status 2 if one does not exist."""
    for option, wanted, known in (
        ("--backend", backend, dict.fromkeys(row.backend for row in there)),
        ("--mode", mode, dict.fromkeys(row.mode for row in there)),
    ):
        if unknown := [name for name in wanted or () if name not in known]:
            refuse(f"{option}: there is no {unknown[0]!r}; there are {', '.join(known)}")
    if plugged and not backend:
        return plugged
    chosen = [row for row in there if (not backend or row.backend in backend) and (not mode or row.mode in mode)]
    if not chosen:
        refuse(f"--mode: no mode {', '.join(mode or ())} of {', '.join(backend or ())}")
    return chosen + plugged


def _open(chosen: list[Row]) -> tuple[list[tuple[Row, Implementation]], dict[str, str]]:
    """The runnable rows with their implementations, and by label why the others cannot run."""
    opened, absent = [], {}
    for row in chosen:
        try:
            opened.append((row, row.open()))
        except (ImportError, LookupError, TypeError) as error:
            absent[row.label] = str(error)
    return opened, absent


def _idle(chosen: list[Row], ran: list[Row], *, by_mode: bool) -> list[str]:
    """Requested rows that did not run: all of them if modes were requested, else those of backends without any."""
    there = {row.backend for row in ran}
    return [row.label for row in chosen if row not in ran and (by_mode or row.backend not in there)]


def _keep(tally: Tally, candidate: Implementation, expected: Implementation, reference: str, out: Path) -> str:
    """Report a row's first difference: minimise the case, write it to a file, and say how to run it again."""
    row, (case, result) = tally.row, tally.different[0]
    others = ", ".join(case.id for case, _ in tally.different[1:])
    said = f"{row.label} {case.id}: {result.status}: {result.reason}" + (f"\n    also {others}" if others else "")
    if isinstance(case, Repro):
        return said

    def judged(task: Task) -> Result | None:
        try:
            records = expected.run(task)
        except Exception:  # the task itself is wrong
            return None
        return run_task(candidate, case, task, lambda: records)

    def fails(task: Task) -> bool:
        again = judged(task)
        return again is not None and again.status == result.status

    task = case.task()
    if fails(task):
        task = minimise(task, fails, expected.run)
    file = out / (re.sub(r"[^\w.-]+", "-", f"{case.id} {row.label}").strip("-") + ".json")
    again = judged(task)
    reason = again.reason if again is not None and again.reason else result.reason
    write_repro(file, task, f"{row.label}: {reason}")
    of_run = reference == "numpy" and (row.backend in KINDS or row.mode in ROWS.get(row.backend, ()))
    command = repeat(row.label, "--repro", str(file), command="run" if of_run else "fuzz")
    command += "" if of_run else f" --reference {reference}"
    command += "" if row.device == "cpu" else f" --device {row.device}"
    return f"{said}\n    smaller: {reason}\n    {command}"


def _said(tally: Tally, place: int, count: int) -> str:
    different = f", {len(tally.different)} different" if tally.different else ""
    return (
        f"row {place} of {count}, {tally.row.label}: {tally.configurations} configurations, "
        f"{tally.cases} cases{different}"
    )
