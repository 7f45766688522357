"""A leg in any framework: take over, step, hand over."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from magma_conformance.relay.folder import Folder, Run, Station
from magma_conformance.relay.plan import FRAMEWORKS, LEGS, RelayPlan
from magma_conformance.task import Arrays

Say = Callable[[Run, int, float | None], None]
"""Called with the run, the completed step, and its loss if there is one."""


class Runner(Protocol):
    """Model and optimizer in one framework, in its own types and layout."""

    versions: dict[str, str]  # of the framework and its dependencies

    def take_over(self, station: Station) -> None:
        """Replace weights and state by the station's."""

    def hand_over(self, station: Station) -> None:
        """Write weights and state to the station."""

    def loss_and_gradients(self, step: int) -> tuple[float, Any]:
        """Loss on the batch of ``step`` in nats per byte, and gradients for `step`."""

    def given(self, gradients: Arrays) -> Any:
        """Convert gradients from a file for `step`."""

    def step(self, gradients: Any) -> dict[str, np.ndarray]:
        """One optimizer step; returns the kept blocks by name of the masked parameters."""


def open_runner(framework: str, plan: RelayPlan, batches: Mapping[int, np.ndarray]) -> Runner:
    """Import the framework and make its runner; ``batches`` are (batch, length + 1) int64, by step."""
    module = import_module(f"magma_conformance.relay.legs.{FRAMEWORKS[framework].module}")
    runner: Runner = module.Runner(plan, batches)
    return runner


def run_leg(folder: Folder, leg: int, say: Say) -> None:
    """Run one leg of both relays.

    The exact relay comes first. What it leaves in the framework must not affect the free one, and does not.
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
