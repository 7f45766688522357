"""``magma-conformance probe``."""

import typer
from rich.console import Console

from magma_conformance.commands.common import Backends, Device, JsonFile, check_device, check_writable, refuse, write
from magma_conformance.probe import run as probe_module


def probe(backend: Backends = None, device: Device = "cpu", json_file: JsonFile = None) -> None:
    """Measure the arithmetic of every backend and mode, which explains a mismatch.

    Exit status: 0 if every fenced expression is exact, 1 if one is not, 2 if a requested backend cannot run.
    """
    check_device(device)
    check_writable("--json", json_file)
    try:
        report = probe_module.run_probe(backend, device)
    except (ValueError, LookupError) as error:
        refuse(str(error))
    probe_module.render(report, Console())
    write(report.to_json(), json_file)
    if report.broken_fences():
        raise typer.Exit(1)
