"""``python -m magma_conformance.device CHECK --device cuda --json FILE``.

Exit status: 0 if every check passed, 1 if one failed or nothing could be checked, 2 if the device does not exist.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console

from magma_conformance.commands.common import Device, JsonFile, check_device, check_writable, refuse, write
from magma_conformance.device.finding import Finding
from magma_conformance.processes.stopping import stoppable

CHECKS = ("environment", "division", "fences", "steps")
"""Modules of this package; each has ``check(device)``."""


def main(
    check: Annotated[str, typer.Argument(help=f"One of {', '.join(CHECKS)}.")],
    device: Device = "cuda",
    json_file: JsonFile = None,
) -> None:
    """Run one check of a device beyond the cases."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would print its own messages
    if check not in CHECKS:
        refuse(f"no check {check!r}; there are {', '.join(CHECKS)}")
    check_device(device)
    check_writable("--json", json_file)
    run: Callable[[str], Finding] = import_module(f"magma_conformance.device.{check}").check
    try:
        finding = run(device)
    except (ImportError, LookupError) as error:
        refuse(str(error))
    console = Console()
    for line in finding.lines:
        console.print(line, highlight=False, markup=False)
    write(finding.to_json(), json_file)
    if not finding.passed:
        raise typer.Exit(1)


if __name__ == "__main__":
    stoppable(lambda: typer.run(main))
