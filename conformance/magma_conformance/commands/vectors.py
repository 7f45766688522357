"""``magma-conformance vectors``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import SpinnerColumn, TextColumn

from magma_conformance.commands.common import refuse
from magma_conformance.terminal.bars import Bars
from magma_conformance.vectors import FOLDER


def vectors(
    write: Annotated[
        Path | None, typer.Option("--write", help="Make the files of vectors anew, in this folder.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Look for mistakes in the files of this folder.")
    ] = None,
) -> None:
    """Make the vectors, or check files of vectors; without an option, check the installed ones.

    Exit status: 0 if all is well, 1 if a file has a mistake, 2 if a folder cannot be read or written.
    """
    console = Console()
    if write is not None:
        _write(write, console)
    if write is None or check is not None:
        _check(check or FOLDER, console)


def _write(folder: Path, console: Console) -> None:
    from magma_conformance.vectors.generator.write import write

    with Bars(SpinnerColumn(), TextColumn("{task.description}"), transient=True) as progress:
        bar = progress.add_task("making vectors", total=None)
        try:
            write(folder, lambda file: progress.update(bar, description=f"making vectors: {file}"))
        except OSError as error:
            refuse(f"--write: {error}")
    console.print(f"written to {folder}", markup=False, highlight=False)


def _check(folder: Path, console: Console) -> None:
    from magma_conformance.vectors.generator.lint import lint

    try:
        count, mistakes = lint(folder)
    except OSError as error:
        refuse(f"--check: {error}")
    for mistake in mistakes:
        console.print(mistake, style="red", markup=False, highlight=False)
    if mistakes:
        raise typer.Exit(1)
    console.print(f"{count} vectors, no mistakes", markup=False, highlight=False)
