"""The run that never moves: one optimizer in one process makes all the steps. The legs are compared with it."""

import numpy as np

from magma_conformance.relay.folder import Folder
from magma_conformance.relay.legs.leg import Say
from magma_conformance.relay.legs.torch_leg import Runner, language_model
from magma_conformance.relay.plan import RelayPlan


def run_reference(folder: Folder, say: Say) -> None:
    """Train from the first step to the last; write down the batches, the gradients, and where it stands after each leg.

    Then most of it again with one weight changed, for comparison.

    4 bytes for each parameter and step are written for the gradients.
    """
    plan = folder.plan()
    steps = range(1, plan.total + 1)
    model = language_model(plan)
    folder.write_batches([model.tokens(step) for step in steps])
    runner = Runner(plan, {})
    runner.start(model.parameters())
    runner.hand_over(folder.station("reference", 0))
    losses = []
    for step in steps:
        loss, gradients = runner.loss_and_gradients(step)
        losses.append(loss)
        folder.write_gradients(step, {name: gradient.numpy() for name, gradient in gradients.items()})
        folder.write_masks("reference", step, runner.step(gradients))
        if step % plan.steps == 0:
            runner.hand_over(folder.station("reference", step))
        say("reference", step, loss)
    control = _control(folder, plan, runner, say)
    folder.write_report("reference", {"versions": runner.versions, "losses": losses, "control": control})


def _control(folder: Folder, plan: RelayPlan, runner: Runner, say: Say) -> list[float]:
    """The losses from the second leg on, if one weight had been an ulp larger when it began: what a distance means."""
    folder.start("control", plan.steps)
    station = folder.station("control", plan.steps)
    weights = station.read_weights()
    weights["head"][ord("e"), 0] = np.nextafter(weights["head"][ord("e"), 0], np.float32(np.inf))
    station.write_weights(weights)
    runner.take_over(station)
    losses = []
    for step in range(plan.steps + 1, plan.total + 1):
        loss, gradients = runner.loss_and_gradients(step)
        losses.append(loss)
        runner.step(gradients)
        say("control", step, loss)
    return losses
