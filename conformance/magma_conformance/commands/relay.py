"""``magma-conformance relay``."""

import importlib.util
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from magma_conformance.commands.common import JsonFile, check_writable, refuse, write
from magma_conformance.relay.folder import Folder, Run
from magma_conformance.relay.plan import FRAMEWORKS, LEGS, RelayPlan
from magma_conformance.relay.processes import ProcessFailed
from magma_conformance.relay.report import render
from magma_conformance.relay.run import missing, run_relay
from magma_conformance.terminal.bars import Bars


def relay(
    steps: Annotated[int, typer.Option(min=1, help="Of each of the four legs.")] = RelayPlan.steps,
    width: Annotated[int, typer.Option(min=1, help="Of the model, a multiple of 8.")] = RelayPlan.width,
    layers: Annotated[int, typer.Option(min=1, help="Of the model.")] = RelayPlan.layers,
    json_file: JsonFile = None,
    picture: Annotated[Path | None, typer.Option(help="Draw losses and distances into this PNG file.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Leave what was handed over in this folder, which must be empty or new.")
    ] = None,
) -> None:
    """Train one model in PyTorch, JAX, Keras on TensorFlow and PyTorch again, and compare with a reference run.

    Exit status: 0 if every leg, fed the same gradients, ends with the same bits, all masks are equal and the loss
    falls; 1 if not, or if a leg fails; 2 if something is not installed.
    """
    try:
        plan = RelayPlan(steps=steps, width=width, layers=layers)
    except ValueError as error:
        refuse(str(error))
    if absent := missing():
        refuse("\n".join(absent))
    if picture is not None and importlib.util.find_spec("matplotlib") is None:
        refuse("--picture: matplotlib is not installed: pip install matplotlib")
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        refuse(f"--folder: {folder} is not empty: name a new one")
    check_writable("--json", json_file)
    check_writable("--picture", picture)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refuse(f"--folder: {error}")
    console = Console()
    with ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magma-relay-")))
        bars = stack.enter_context(_Bars(plan))
        try:
            report = run_relay(plan, Folder(root), bars.made)
        except ProcessFailed as error:
            bars.stop()
            console.print(str(error), style="red", markup=False, highlight=False)
            raise typer.Exit(1) from None
    render(report, console)
    write(report.to_json(), json_file)
    if picture is not None:
        from magma_conformance.relay.picture import draw  # imported here: matplotlib is not a dependency

        draw(report, picture)
    if report.failures():
        raise typer.Exit(1)


class _Bars(Bars):
    """A bar for the reference run and for each leg."""

    def __init__(self, plan: RelayPlan) -> None:
        super().__init__()
        self._plan = plan
        self._reference = self.add_task("never moved, PyTorch", total=2 * plan.total - plan.steps)
        self._legs = [
            self.add_task(f"leg {number}, {FRAMEWORKS[framework].label}", total=2 * plan.steps, start=False)
            for number, framework in enumerate(LEGS, 1)
        ]

    def made(self, run: Run, step: int, loss: float | None) -> None:
        """Advance the bar by one step."""
        del loss
        bar = self._reference if run in ("reference", "control") else self._legs[(step - 1) // self._plan.steps]
        self.start_task(bar)
        self.update(bar, advance=1)
