"""Shared by the commands: options, and how a command refuses a request."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.runner.repro import Repro

ROWS = {backend: names for backend, (names, _) in BACKENDS.items()}
ROWS |= {name: adapter.modes for name, adapter in ADAPTERS.items()}
"""The modes of each backend and adapter."""

Backends = Annotated[
    list[str] | None,
    typer.Option("--backend", help=f"One of {', '.join(ROWS)}; may be repeated. Default: all installed."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N. NumPy and the strict namespace stay on the CPU.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")]


def check_device(device: str) -> None:
    """Exit with status 2 unless ``device`` is a valid name."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        refuse(f"--device: must be cpu, cuda or cuda:N, got {device}")


def write(report: dict[str, Any], file: Path | None) -> None:
    """Write a report as JSON, if a file was requested."""
    if file is not None:
        file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_writable(option: str, file: Path | None) -> None:
    """Exit with status 2 unless the requested file can be written: before a long run, not after it."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.exists()
        with file.open("ab"):
            pass
        if not there:
            file.unlink()  # an interrupted run leaves no empty report
    except OSError as error:
        refuse(f"{option}: {error}")


def refuse(message: str) -> NoReturn:
    """Print the reason and exit with status 2."""
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def open_repro(file: Path) -> Repro:
    """A case from a file; exits with status 2 if it cannot be read."""
    try:
        Repro(file).task()
    except (OSError, ValueError) as error:
        refuse(f"--repro: {error}")
    return Repro(file)
