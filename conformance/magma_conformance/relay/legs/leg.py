"""What a leg does, whoever runs it: take over, make its steps, hand over."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from magma_conformance.relay.folder import Folder, Run, Station
from magma_conformance.relay.plan import FRAMEWORKS, LEGS, RelayPlan
from magma_conformance.task import Arrays

Say = Callable[[Run, int, float | None], None]
"""Told the run, the step that was made, and its loss if there is one."""


class Runner(Protocol):
    """The model and the optimizer in one framework, in its own types and layout."""

    versions: dict[str, str]  # of the framework and what it runs on

    def take_over(self, station: Station) -> None:
        """Put weights and state in the place of those that are there."""

    def hand_over(self, station: Station) -> None:
        """Write both."""

    def loss_and_gradients(self, step: int) -> tuple[float, Any]:
        """On the batch of ``step``: nats per byte, and gradients as `step` takes them."""

    def given(self, gradients: Arrays) -> Any:
        """Gradients from a file, as `step` takes them."""

    def step(self, gradients: Any) -> dict[str, np.ndarray]:
        """One step of the optimizer; which blocks it kept, by the names of the masked parameters."""


def open_runner(framework: str, plan: RelayPlan, batches: Mapping[int, np.ndarray]) -> Runner:
    """Imports the framework; ``batches`` are (batch, length + 1) int64, by step."""
    module = import_module(f"magma_conformance.relay.legs.{FRAMEWORKS[framework].module}")
    runner: Runner = module.Runner(plan, batches)
    return runner


def run_leg(folder: Folder, leg: int, say: Say) -> None:
    """One leg of both relays.

    The exact one comes first: what it leaves behind in the framework must not matter to the free one, nor does it.
    """
    plan = folder.plan()
    runner = open_runner(LEGS[leg], plan, folder.batches())
    steps = plan.leg_steps(leg)
    losses = []
    runs: tuple[Run, ...] = ("exact", "free")
    for run in runs:
        runner.take_over(folder.station(run, steps.start - 1))
        for step in steps:
            if run == "exact":
                loss, gradients = None, runner.given(folder.gradients(step))
            else:
                loss, gradients = runner.loss_and_gradients(step)
                losses.append(loss)
            folder.write_masks(run, step, runner.step(gradients))
            say(run, step, loss)
        runner.hand_over(folder.station(run, steps[-1]))
    loaded = sorted({"torch", "jax", "tensorflow"} & sys.modules.keys())
    folder.write_report(f"leg-{leg + 1}", {"versions": runner.versions, "losses": losses, "loaded": loaded})
