"""The command line of the suite."""

import os
from typing import Annotated

import typer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's messages would tear the progress bar

from magma_conformance.commands.bench import bench
from magma_conformance.commands.compare import compare
from magma_conformance.commands.fuzz import fuzz
from magma_conformance.commands.page import page
from magma_conformance.commands.probe import probe
from magma_conformance.commands.relay import relay
from magma_conformance.commands.run import run
from magma_conformance.commands.vectors import vectors
from magma_conformance.processes.stopping import stoppable
from magma_conformance.versions import SPEC_VERSION, SUITE_VERSION, VECTORS_VERSION
from magma_core import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False)
for command in (run, fuzz, compare, relay, vectors, page, probe, bench):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"magma-optim {__version__} (suite {SUITE_VERSION}, vectors {VECTORS_VERSION}, spec {SPEC_VERSION})")
        raise typer.Exit


@app.callback(help=__doc__)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command that the arguments name."""
    stoppable(app)


if __name__ == "__main__":
    main()
