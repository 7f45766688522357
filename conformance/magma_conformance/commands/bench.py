"""``magma-conformance bench``."""

import os
from typing import Annotated

import typer
from rich.console import Console

from magma_conformance import bench as bench_module
from magma_conformance.bench_contenders import CONTENDERS, MAGMA
from magma_conformance.commands.common import Backends, Device, JsonFile, check_device, check_writable, refuse, write


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
    check_device(device)
    check_writable("--json", json_file)
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
        refuse(str(error))
    bench_module.render(report, Console())
    write(report.to_json(), json_file)
