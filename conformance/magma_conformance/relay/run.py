"""Runs the whole relay: the reference run, then leg by leg."""

import importlib.util
import time

import numpy as np

from magma_conformance.relay import processes
from magma_conformance.relay.folder import Folder, Run
from magma_conformance.relay.legs.leg import Say
from magma_conformance.relay.plan import FRAMEWORKS, LEGS, RelayPlan
from magma_conformance.relay.report import LegReport, RelayReport
from magma_conformance.relay.verdict import at_station, distance, of_masks
from magma_core.optional import not_installed


def missing() -> list[str]:
    """Missing packages, with the remedy."""
    needs = {module: extra for framework in FRAMEWORKS.values() for module, extra in framework.needs.items()}
    return [
        not_installed(module, extra=extra)
        for module, extra in needs.items()
        if importlib.util.find_spec(module) is None
    ]


def run_relay(plan: RelayPlan, folder: Folder, say: Say) -> RelayReport:
    """Run everything and compare.

    Args:
        plan: what to run.
        folder: empty or new; takes 4 bytes per parameter and step.
        say: called after each step of each run.

    Raises:
        ProcessFailed: if a process fails.
    """
    folder.write_plan(plan)
    seconds = _timed(folder, "reference", "reference", say)
    reference, control = (folder.report("reference")[key] for key in ("losses", "control"))
    control = reference[: plan.steps] + control
    relays: tuple[Run, ...] = ("exact", "free")
    for run in relays:
        folder.start(run)
    legs = []
    for number, framework in enumerate(LEGS):
        name = f"leg-{number + 1}"
        took = _timed(folder, str(number), name, say)
        steps, said = plan.leg_steps(number), folder.report(name)
        masks = [of_masks(folder, run, steps) for run in relays]
        legs.append(
            LegReport(
                framework=framework,
                versions=said["versions"],
                steps=(steps[0], steps[-1]),
                exact=at_station(folder, "exact", steps[-1]),
                masks=sum(count for count, _ in masks),
                other_mask=next((finding for _, finding in masks if finding), None),
                losses=said["losses"],
                reference=reference[steps.start - 1 : steps.stop - 1],
                control=control[steps.start - 1 : steps.stop - 1],
                weights=distance(folder, steps[-1]),
                seconds=took,
            )
        )
    parameters = sum(int(np.size(array)) for array in folder.station("reference", 0).read_weights().values())
    return RelayReport(plan, parameters, legs, seconds)


def _timed(folder: Folder, who: str, name: str, say: Say) -> float:
    started = time.perf_counter()
    processes.run_process(folder, who, name, say)
    return time.perf_counter() - started
