"""The reference run: one optimizer makes all steps in one process. The legs are compared with it."""

import numpy as np

from magma_conformance.relay.folder import Folder
from magma_conformance.relay.legs.leg import Say
from magma_conformance.relay.legs.torch_leg import Runner, language_model
from magma_conformance.relay.plan import RelayPlan


def run_reference(folder: Folder, say: Say) -> None:
    """Train from the first step to the last; save the batches, the gradients, and the state after each leg.

    Then train again from the second leg on with one weight changed, for comparison. The gradients take 4 bytes per
    parameter and step.
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
    """The losses from the second leg on, with one weight an ulp larger: the scale for distances."""
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
