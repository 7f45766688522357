"""``magma-conformance bench``."""

import os
from typing import Annotated

import typer
from rich.console import Console

from magma_conformance.bench import run as bench_module
from magma_conformance.bench.contenders import CONTENDERS, MAGMA
from magma_conformance.bench.workload import WORKLOADS, uniform
from magma_conformance.commands.common import Backends, Device, JsonFile, check_device, check_writable, refuse, write


def bench(
    backend: Backends = None,
    device: Device = "cpu",
    model: Annotated[
        str | None,
        typer.Option(
            help="Not of one shape: llama, a billion parameters; gpt2, 124 million; small, 10,000 tensors; "
            "stacked, the same for JAX."
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
    json_file: JsonFile = None,
) -> None:
    """Time a step of AdamW with Magma beside each framework's own AdamW, in one run.

    Exit status: 0; 2 if a requested backend lacks the device or could not be timed at all.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, would print messages
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    check_device(device)
    check_writable("--json", json_file)
    if model is not None and model not in WORKLOADS:
        refuse(f"--model: no model {model!r}; there are {', '.join(WORKLOADS)}")
    try:
        report = bench_module.run_bench(
            uniform(tensors, rows, columns) if model is None else WORKLOADS[model],
            repeats=repeats,
            backends=backend,
            device=device,
            contenders=[c for c in CONTENDERS if c.optimizer != MAGMA or not adapters],
            recount=recount,
            seconds=seconds,
            keep=lambda report: write(report.to_json(), json_file),  # an interrupted run keeps its results
        )
    except (ValueError, LookupError) as error:
        refuse(str(error))
    bench_module.render(report, Console())
    timed = {timing.backend for timing in report.timings if timing.seconds}
    if idle := [name for name in backend or () if name not in timed]:
        refuse(f"--backend: nothing could be timed of {', '.join(idle)}")
