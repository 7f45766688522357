"""The relay's results: a table for people, JSON for programs."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from magma_conformance.machine import cores, environment
from magma_conformance.relay.plan import FRAMEWORKS, RelayPlan
from magma_conformance.relay.verdict import FirstDifference
from magma_conformance.terminal.tables import Cell, print_table
from magma_conformance.versions import SPEC_VERSION, SUITE_VERSION


@dataclass(frozen=True)
class LegReport:
    """One leg of both relays.

    Args:
        framework: a key of `FRAMEWORKS`.
        versions: of the framework and its dependencies.
        steps: t of the first and the last step.
        exact: the exact relay's first difference from the reference run at the end of the leg.
        masks: number of masks compared, in the exact and the free relay.
        other_mask: the first mask that differs from the reference run.
        losses: the free relay's, in nats per byte, one per step.
        reference: the reference run's losses.
        control: the reference run's losses with one weight an ulp larger from the end of the first leg on.
        weights: relative distance between the free relay's weights and the reference run's at the end.
        seconds: wall time of the process.
    """

    framework: str
    versions: dict[str, str]
    steps: tuple[int, int]
    exact: FirstDifference | None
    masks: int
    other_mask: FirstDifference | None
    losses: list[float]
    reference: list[float]
    control: list[float]
    weights: float
    seconds: float

    @property
    def label(self) -> str:
        """The framework's name."""
        return FRAMEWORKS[self.framework].label

    @property
    def distances(self) -> list[float]:
        """|difference of losses| between the free relay and the reference run at each step."""
        return _distances(self.losses, self.reference)

    @property
    def control_distances(self) -> list[float]:
        """The same distances for one ulp in one weight."""
        return _distances(self.control, self.reference)

    def to_json(self) -> dict[str, Any]:
        """The leg as JSON types."""
        return {
            "framework": self.framework,
            "versions": self.versions,
            "steps": list(self.steps),
            "exact": {
                "verdict": "equal" if self.exact is None else "different",
                "first_difference": self.exact and asdict(self.exact),
            },
            "masks": {
                "compared": self.masks,
                "verdict": "equal" if self.other_mask is None else "different",
                "first_difference": self.other_mask and asdict(self.other_mask),
            },
            "free": {
                "loss_at_end": _finite(self.losses[-1]),
                "loss_never_moved": _finite(self.reference[-1]),
                "largest_distance": _finite(max(self.distances)),
                "distance_at_end": _finite(self.distances[-1]),
                "weights_distance_at_end": _finite(self.weights),
                "largest_distance_of_one_ulp": _finite(max(self.control_distances)),
            },
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class RelayReport:
    """The results of all legs.

    Args:
        plan: the plan that ran.
        parameters: number of the model's weights.
        legs: in order.
        seconds: wall time of the reference run.
        date: when it ran, in UTC.
    """

    plan: RelayPlan
    parameters: int
    legs: Sequence[LegReport]
    seconds: float
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")

    @property
    def reference(self) -> list[float]:
        """Losses of the reference run."""
        return [loss for leg in self.legs for loss in leg.reference]

    @property
    def free(self) -> list[float]:
        """Losses of the free relay."""
        return [loss for leg in self.legs for loss in leg.losses]

    @property
    def control(self) -> list[float]:
        """Losses of the reference run with one weight an ulp larger from the end of the first leg on."""
        return [loss for leg in self.legs for loss in leg.control]

    def failures(self) -> list[str]:
        """All failures, one line each."""
        said = []
        for number, leg in enumerate(self.legs, 1):
            for what, finding in (("exact relay", leg.exact), ("masks", leg.other_mask)):
                if finding is not None:
                    said.append(f"leg {number}, {leg.label}, {what}: {finding}")
        for what, losses in (("run that never moved", self.reference), ("free relay", self.free)):
            if len(losses) > 1 and not losses[-1] < losses[0]:
                said.append(f"the loss of the {what} did not fall: {losses[0]:.3f}, then {losses[-1]:.3f}")
        return said

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "suite": "magma-conformance relay",
            "suite_version": SUITE_VERSION,
            "spec_version": SPEC_VERSION,
            "date": self.date,
            "environment": {**environment(), "cores": cores()},
            "model": asdict(self.plan) | {"hidden": self.plan.hidden, "parameters": self.parameters},
            "legs": [leg.to_json() for leg in self.legs],
            "failures": self.failures(),
            "losses": {
                "never_moved": [*map(_finite, self.reference)],
                "free": [*map(_finite, self.free)],
                "one_ulp": [*map(_finite, self.control)],
            },
            "seconds": self.seconds + sum(leg.seconds for leg in self.legs),
        }


_FREE = ("loss", "free", "largest", "at end", "one ulp", "weights")


def render(report: RelayReport, console: Console) -> None:
    """Print a line per leg, and the failures."""
    rows: list[list[Cell]] = [
        [
            leg.label,
            _verdict(leg.exact, "bit-identical"),
            _verdict(leg.other_mask, f"{leg.masks} equal"),
            "/".join(_short(version) for name, version in leg.versions.items() if name != "optax"),
            f"{leg.steps[0]}–{leg.steps[1]}",
            f"{leg.reference[-1]:.4f}",
            f"{leg.losses[-1]:.4f}",
            _small(max(leg.distances)),
            _small(leg.distances[-1]),
            _small(max(leg.control_distances)),
            _small(leg.weights),
            f"{leg.seconds:.1f}",
        ]
        for leg in report.legs
    ]
    print_table(
        console,
        ["leg", "exact relay", "masks", "version", "steps", *_FREE, "sec"],
        rows,
        title=f"{report.parameters / 1e6:.2g} M parameters, {report.plan.steps} steps a leg",
        caption="distances of the free relay from the run that never moved: losses in nats per byte, weights relative\n"
        "one ulp: the largest distance in PyTorch alone, if one weight is an ulp larger since the first leg ended",
        left=5,
        lead=2,
    )
    for failure in report.failures():
        console.print(failure, style="red", markup=False, highlight=False)


def _distances(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [abs(own - other) for own, other in zip(losses, reference, strict=True)]


def _finite(value: float) -> float | None:
    """None for NaN and infinities, which JSON lacks."""
    return value if math.isfinite(value) else None


def _verdict(finding: FirstDifference | None, good: str) -> Text:
    return Text(good, style="green") if finding is None else Text("different", style="red")


def _small(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _short(version: str) -> str:
    return version.partition("+")[0]
