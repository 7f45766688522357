"""The command line of the suite: what each command proves, measures or makes."""

import os

import typer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings would tear the progress bar

from magma_conformance.commands.bench import bench
from magma_conformance.commands.compare import compare
from magma_conformance.commands.fuzz import fuzz
from magma_conformance.commands.page import page
from magma_conformance.commands.probe import probe
from magma_conformance.commands.relay import relay
from magma_conformance.commands.run import run
from magma_conformance.commands.vectors import vectors
from magma_conformance.processes.stopping import stoppable

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
for command in (run, fuzz, compare, relay, vectors, page, probe, bench):
    app.command()(command)


def main() -> None:
    """Run the command that the arguments name."""
    stoppable(app)


if __name__ == "__main__":
    main()
