"""The probe's results, as data."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from magma_conformance.bits import Difference
from magma_conformance.probe.expressions import PROBES
from magma_conformance.probe.inputs import COUNT
from magma_conformance.probe.probe import Probe

ModeStatus: TypeAlias = Literal["measured", "not installed", "no device"]


@dataclass(frozen=True)
class Result:
    """The result of one expression in one mode.

    Args:
        status: "not applicable" if the framework lacks the expression, "error" if it raised.
        differing: elements whose bits differ from the reference.
        total: elements compared.
        first: the first difference.
        error: the exception, in one line.
    """

    status: Literal["measured", "not applicable", "error"]
    differing: int = 0
    total: int = 0
    first: Difference | None = None
    error: str = ""

    @property
    def percent(self) -> float:
        """100 · differing / total."""
        return 100 * self.differing / self.total if self.total else 0.0

    def text(self, probe: Probe, /) -> str:
        """The result in at most seven characters: a percentage, or the probe's word."""
        if self.status != "measured":
            return "n/a" if self.status == "not applicable" else "error"
        if probe.words is not None and self.differing in (0, self.total):
            return probe.words[self.differing > 0]
        if self.differing == 0:
            return "0"
        return f"{self.percent:.1f} %" if self.percent >= 0.05 else "<0.1 %"

    def to_json(self, probe: Probe, /) -> dict[str, Any]:
        """The result as JSON types."""
        if self.status != "measured":
            return {"status": self.status, "text": self.text(probe)} | ({"error": self.error} if self.error else {})
        return {
            "status": self.status,
            "text": self.text(probe),
            "differing": self.differing,
            "total": self.total,
            "percent": self.percent,
            "first_difference": None if self.first is None else self.first.to_json(),
        }


@dataclass(frozen=True)
class ModeReport:
    """The results of all expressions in one mode.

    Args:
        backend: the framework.
        mode: the mode that ran.
        status: whether anything was measured; if not, there are no results.
        reason: why not.
        version: of the framework.
        hardware: the device's name.
        seconds: wall time, compilation included.
        results: by expression id.
    """

    backend: str
    mode: str
    status: ModeStatus
    reason: str = ""
    version: str = ""
    hardware: str = ""
    seconds: float = 0.0
    results: dict[str, Result] = field(default_factory=dict)

    def to_json(self, probes: tuple[Probe, ...] = PROBES) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "backend": self.backend,
            "mode": self.mode,
            "status": self.status,
            "reason": self.reason,
            "version": self.version,
            "hardware": self.hardware,
            "seconds": round(self.seconds, 3),
            "results": {p.id: self.results[p.id].to_json(p) for p in probes if p.id in self.results},
        }


@dataclass(frozen=True)
class ProbeReport:
    """The arithmetic of every mode on one device.

    Args:
        environment: versions, machine, and the settings that change arithmetic.
        device: as requested, such as "cpu" or "cuda:0".
        modes: in the order of the backends.
        probes: the expressions, in the order of the table.
    """

    environment: dict[str, Any]
    device: str
    modes: tuple[ModeReport, ...]
    probes: tuple[Probe, ...] = PROBES

    def broken_fences(self) -> list[tuple[ModeReport, Probe, Result]]:
        """Fenced expressions that differ or fail. There no adapter can be right."""
        return [
            (mode, probe, mode.results[probe.id])
            for mode in self.modes
            for probe in self.probes
            if probe.fenced and probe.id in mode.results
            if mode.results[probe.id].status == "error" or mode.results[probe.id].differing
        ]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "environment": self.environment,
            "device": self.device,
            "elements": COUNT,
            "probes": [
                {
                    "id": p.id,
                    "topic": p.topic,
                    "expression": p.label,
                    "meaning": p.meaning,
                    "fenced": p.fenced,
                }
                for p in self.probes
            ],
            "modes": [mode.to_json(self.probes) for mode in self.modes],
            "fences_hold": not self.broken_fences(),
        }
