"""``magma-conformance fuzz``."""

import os
import re
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from magma_conformance.commands.common import Device, JsonFile, check_device, check_writable, refuse, write
from magma_conformance.fuzz.hunt import Row, Tally, hunt, run_case
from magma_conformance.fuzz.independent import Oracle, c_port
from magma_conformance.fuzz.minimise import minimise
from magma_conformance.fuzz.report import render, to_json
from magma_conformance.fuzz.rows import foreign, rows
from magma_conformance.machine import environment
from magma_conformance.repro import write_repro
from magma_conformance.runner import open_implementation
from magma_conformance.task import Implementation, Task
from magma_conformance.versions import SPEC_VERSION, SUITE_VERSION

REFERENCES: dict[str, Callable[[], Implementation]] = {
    "numpy": lambda: open_implementation("numpy", "eager", "cpu"),
    "c": c_port,
    "oracle": Oracle,
}
_EVERY = 10.0  # seconds between lines where there is no terminal


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
    run, 130 after Ctrl-C, which ends the search and reports what was found until then.
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
    began, end = datetime.now(UTC), time.monotonic() + seconds
    tallies: list[Tally] = []
    absent: dict[str, str] = {}
    whole = False
    with _Progress() as progress, suppress(KeyboardInterrupt):  # what was found until then is reported
        for place, row in enumerate(chosen):
            share = (end - time.monotonic()) / (len(chosen) - place)
            progress.tell(f"{row.label}: starting")
            turns = hunt(
                row,
                expected,
                seed=seed,
                first=first,
                configurations=configurations or 2**63,
                end=time.monotonic() + share,
            )
            try:
                for tally in turns:
                    progress.tell(_said(tally, place + 1, len(chosen)))
                    if not tallies or tallies[-1] is not tally:
                        tallies.append(tally)
            except (ImportError, LookupError) as error:
                absent[row.label] = str(error)
        whole = True
    render(tallies, absent, expected.name, console)
    for tally in tallies:
        for case, result in tally.different:
            console.print(f"{tally.row.label} {case.id}: {result.status}: {result.reason}", style="red", markup=False)
        if tally.different:  # one of them is kept: the others say the same, as a rule
            console.print(_keep(tally, expected, out), markup=False, highlight=False, soft_wrap=True)
    report: dict[str, Any] = {
        "suite": "magma-conformance fuzz",
        "suite_version": SUITE_VERSION,
        "spec_version": SPEC_VERSION,
        "date": f"{began:%Y-%m-%dT%H:%M:%SZ}",
        "environment": environment(),
        "seed": seed,
        "reference": expected.name,
        "rows": to_json(tallies),
        "absent": absent,
    }
    write(report, json_file)
    if any(tally.different for tally in tallies):
        raise typer.Exit(1)
    if not whole:
        raise typer.Exit(130)
    if (backend or plugged) and absent:
        refuse(f"could not run: {', '.join(absent)}")


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
    """Make the first case that differs small, write it to a file, and say how to run it again."""
    row, (case, result) = tally.row, tally.different[0]
    if row.vary:  # `run` has no such modes
        return (
            f"    magma-conformance fuzz --backend {row.backend} --mode {row.mode} --seed {case.seed} "
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
    where = {
        "c": "--exec MY-BUILD-OF-PORTS/C",
        "oracle": "--exec MY-PORT",
        "impl": f"--impl {shlex.quote(row.mode)}",
        "exec": f"--exec {shlex.quote(row.mode)}",
    }.get(row.backend, f"--backend {row.backend} --mode {row.mode}")
    return f"    {reason}\n    magma-conformance run --repro {shlex.quote(str(file))} {where}"


def _said(tally: Tally, place: int, count: int) -> str:
    different = f", {len(tally.different)} different" if tally.different else ""
    return (
        f"row {place} of {count}, {tally.row.label}: {tally.configurations} configurations, "
        f"{tally.cases} cases{different}"
    )


class _Progress:
    """What is going on: a line that changes on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("")
        self._last = 0.0

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def tell(self, text: str) -> None:
        """Show what is going on."""
        self._bar.update(self._task, description=text)
        if not self._console.is_terminal and time.monotonic() > self._last + _EVERY:
            self._last = time.monotonic()
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
