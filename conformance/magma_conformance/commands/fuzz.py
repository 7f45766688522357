"""``magma-conformance fuzz``."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from magma_conformance.bars import Bars
from magma_conformance.commands.common import Device, JsonFile, check_device, check_writable, refuse, write
from magma_conformance.fuzz.hunt import Row, Tally, hunt, run_case
from magma_conformance.fuzz.independent import Oracle, c_port
from magma_conformance.fuzz.minimise import minimise
from magma_conformance.fuzz.report import Findings
from magma_conformance.fuzz.rows import foreign, rows
from magma_conformance.repeat import repeat
from magma_conformance.repro import write_repro
from magma_conformance.runner import open_implementation
from magma_conformance.task import Implementation, Task
from magma_conformance.worker import end_all

REFERENCES: dict[str, Callable[[], Implementation]] = {
    "numpy": lambda: open_implementation("numpy", "eager", "cpu"),
    "c": c_port,
    "oracle": Oracle,
}


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
    configurations: Annotated[
        int | None, typer.Option(min=1, help="At most so many in each row. Default: as time allows.")
    ] = None,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="The folder for files of cases that differ.")] = Path(),
    json_file: JsonFile = None,
) -> None:
    """Run random cases through every backend and mode, and compare all bits with a reference.

    Cases cover the whole ranges of spec section 9. One that differs is made small and written to a file, for
    `magma-conformance run --repro FILE`.

    Exit status: 0 if all that ran is equal, 1 if any case differs or fails, 2 if something that was asked for cannot
    run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads would spin on cores that others need
    console = Console()
    check_device(device)
    check_writable("--json", json_file)
    if reference not in REFERENCES:
        refuse(f"--reference: must be one of {', '.join(REFERENCES)}, got {reference!r}")
    try:
        plugged = [*(foreign("impl", x) for x in impl or ()), *(foreign("exec", x) for x in program or ())]
    except (LookupError, TypeError) as error:
        refuse(str(error))
    chosen = _choose(backend, mode, device, plugged, reference)
    try:
        expected = REFERENCES[reference]()
    except LookupError as error:
        refuse(f"--reference {reference}: {error}")
    findings, end = Findings(seed, expected.name), time.monotonic() + seconds
    repeats: list[str] = []
    with Bars(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as progress:
        bar = progress.add_task("", total=None)

        def tell(text: str) -> None:
            progress.update(bar, description=escape(text))

        for place, row in enumerate(chosen):
            now = time.monotonic()
            share = (end - now) / (len(chosen) - place)
            turns = hunt(row, expected, seed=seed, first=first, configurations=configurations, end=now + share)
            tell(f"{row.label}: starting")
            tally = None
            try:
                for tally in turns:
                    tell(_said(tally, place + 1, len(chosen)))
            except (ImportError, LookupError) as error:
                findings.absent[row.label] = str(error)
            if tally is not None:
                findings.tallies.append(tally)
            if tally is not None and tally.different:
                tell(f"{row.label}: making a case small")
                repeats.append(_keep(tally, expected, out))
            end_all()  # the processes of this row
            write(findings.to_json(), json_file)  # whoever stops it has what is done
    findings.render(console)
    for text in repeats:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if repeats:
        raise typer.Exit(1)
    ran = {tally.row.backend for tally in findings.tallies}
    asked = [row for row in chosen if backend or plugged]
    if idle := [row.label for row in asked if row.label in findings.absent and (mode or row.backend not in ran)]:
        refuse(f"could not run: {', '.join(idle)}")


def _choose(
    backend: list[str] | None, mode: list[str] | None, device: str, plugged: list[Row], reference: str
) -> list[Row]:
    """The rows that were asked for; leaves with status 2 where there is no such row."""
    there = [row for row in rows(device) if row.backend != reference]
    for option, wanted, known in (
        ("--backend", backend, dict.fromkeys(row.backend for row in there)),
        ("--mode", mode, dict.fromkeys(row.mode for row in there)),
    ):
        if unknown := [name for name in wanted or () if name not in known]:
            refuse(f"{option}: there is no {unknown[0]!r}; there are {', '.join(known)}")
    if plugged and not backend:
        there = []
    chosen = [
        row for row in there if (not backend or row.backend in backend) and (not mode or row.mode in mode)
    ] + plugged
    if not chosen:
        refuse(f"--mode: no mode {', '.join(mode or ())} of {', '.join(backend or ())}")
    return chosen


def _keep(tally: Tally, reference: Implementation, out: Path) -> str:
    """What differs in a row, and how to run it again: its first case is made small and written to a file."""
    row, (case, result) = tally.row, tally.different[0]
    said = "\n".join(f"{row.label} {case.id}: {result.status}: {result.reason}" for case, result in tally.different)
    if row.vary:  # `run` has no such modes
        return (
            f"{said}\n    magma-conformance fuzz --backend {row.backend} --mode {row.mode} --seed {case.seed} "
            f"--first {case.number} --configurations 1"
        )
    candidate = row.open()

    def fails(task: Task) -> bool:
        try:
            return run_case(candidate, reference, task, case).status == result.status
        except Exception:  # of the reference: the task itself is wrong
            return False

    task = case.task()
    if fails(task):
        task = minimise(task, fails, reference.run)
    out.mkdir(parents=True, exist_ok=True)
    file = out / (re.sub(r"[^\w.-]+", "-", f"{case.id} {row.label}").strip("-") + ".json")
    reason = run_case(candidate, reference, task, case).reason or result.reason
    write_repro(file, task, f"{row.label}: {reason}")
    again = repeat(row.label, "--repro", str(file))
    if row.backend in ("c", "oracle"):  # `run` has no such rows
        again = repeat("exec MY-PORT", "--repro", str(file))
    return f"{said}\n    smaller: {reason}\n    {again}"


def _said(tally: Tally, place: int, count: int) -> str:
    different = f", {len(tally.different)} different" if tally.different else ""
    return (
        f"row {place} of {count}, {tally.row.label}: {tally.configurations} configurations, "
        f"{tally.cases} cases{different}"
    )
