"""``magma-conformance bench``."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from magma_conformance.bench import run as bench_module
from magma_conformance.bench.contenders import CONTENDERS, MAGMA
from magma_conformance.bench.workload import WORKLOADS, uniform
from magma_conformance.commands.common import Backends, Device, check_device, check_writable, refuse, write

_PLACE = "{model}"


def bench(
    backend: Backends = None,
    device: Device = "cpu",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="One after the other; may be repeated. For CPUs: matrices, 32 of 512×1024; many, 2,000 of 64×64; "
            "gpt2, 124 million parameters. For GPUs: llama, a billion; small, 10,000 of 64×64; stacked, the same for "
            "JAX. Default: matrices, of what the next options say."
        ),
    ] = None,
    tensors: Annotated[int, typer.Option(min=1)] = 32,
    rows: Annotated[int, typer.Option(min=1)] = 512,
    columns: Annotated[int, typer.Option(min=1)] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each contender; the median counts.")] = 15,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Optimizers only: the core's compiled programs grow with the tensors.")
    ] = False,
    recount: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the parameters that the exact sums take from memory once more."),
    ] = 0.0,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="After so many no contender is begun. Default: no limit.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help=f"Write the report to this file; of several models, {_PLACE} is the model's name."),
    ] = None,
) -> None:
    """Time a step of AdamW with Magma beside each framework's own AdamW, in one run.

    Exit status: 0; 2 if a requested backend lacks the device or could not be timed at all.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, would print messages
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    check_device(device)
    names = list(dict.fromkeys(model or ()))
    if unknown := [name for name in names if name not in WORKLOADS]:
        refuse(f"--model: no model {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    if json_file and len(names) > 1 and _PLACE not in json_file:
        refuse(f"--json: {json_file} is one file for {len(names)} models: put {_PLACE} into its name")
    workloads = {name: WORKLOADS[name] for name in names} or {
        f"{tensors}x{rows}x{columns}": uniform(tensors, rows, columns)
    }
    files = {name: Path(json_file.replace(_PLACE, name)) if json_file else None for name in workloads}
    for file in files.values():
        check_writable("--json", file)
    console, reports, started = Console(), [], time.monotonic()
    for name, workload in workloads.items():
        try:
            report = bench_module.run_bench(
                workload,
                repeats=repeats,
                backends=backend,
                device=device,
                contenders=[c for c in CONTENDERS if c.optimizer != MAGMA or not adapters],
                recount=recount,
                seconds=None if seconds is None else started + seconds - time.monotonic(),
                keep=partial(_keep, files[name]),  # an interrupted run keeps its results
            )
        except (ValueError, LookupError) as error:
            refuse(str(error))
        bench_module.render(report, console)
        reports.append(report)
    if len(reports) > 1:
        bench_module.render_ratios(reports, console)
    timed = {timing.backend for report in reports for timing in report.timings if timing.seconds}
    if idle := [name for name in backend or () if name not in timed]:
        refuse(f"--backend: nothing could be timed of {', '.join(idle)}")


def _keep(file: Path | None, report: bench_module.BenchReport) -> None:
    write(report.to_json(), file)
