"""What the benchmark found, as data and as a table."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from magma_conformance.bench_contenders import OURS


@dataclass(frozen=True)
class Timing:
    """One contender.

    Args:
        backend: the framework.
        mode: how it ran.
        optimizer: ours or another's.
        seconds: of each timed step; empty where there is a reason.
        reason: why nothing was measured.
        extra_bytes: the most that a step holds besides what it was given and what it keeps; torch only.
    """

    backend: str
    mode: str
    optimizer: str
    seconds: tuple[float, ...] = ()
    reason: str = ""
    extra_bytes: int | None = None

    @property
    def milliseconds(self) -> float | None:
        """The median step, or None."""
        return 1e3 * median(self.seconds) if self.seconds else None

    def __str__(self) -> str:
        """The median and, because a shared machine only ever slows a step down, the fastest."""
        if not self.seconds:
            return "–"
        middle, fastest = (1e3 * second for second in (median(self.seconds), min(self.seconds)))
        return f"{middle:.1f} ({fastest:.1f})" if middle >= 10 else f"{middle:.3f} ({fastest:.3f})"

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        return {
            "backend": self.backend,
            "mode": self.mode,
            "optimizer": self.optimizer,
            "median_ms": self.milliseconds,
            "ms": [1e3 * second for second in self.seconds],
            "reason": self.reason,
            "extra_bytes": self.extra_bytes,
        }


@dataclass(frozen=True)
class BenchReport:
    """Milliseconds per step of every contender, measured in turns.

    Args:
        machine: processor, cores, device.
        versions: of Python and the frameworks.
        tensors: number of float32 parameters.
        shape: of each.
        timings: in the order of `magma_conformance.bench_contenders.CONTENDERS`.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    tensors: int
    shape: tuple[int, int]
    timings: tuple[Timing, ...]

    def own(self, timing: Timing, /) -> list[Timing]:
        """The optimizers of others that stand beside ``timing``."""
        return [t for t in self.timings if t.backend == timing.backend and t.optimizer not in OURS]

    def ratio(self, timing: Timing, /) -> float | None:
        """The median over that of the fastest of others; None where either is missing."""
        others = [t.milliseconds for t in self.own(timing) if t.milliseconds is not None]
        return timing.milliseconds / min(others) if others and timing.milliseconds is not None else None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        return {
            "machine": self.machine,
            "versions": self.versions,
            "tensors": self.tensors,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "timings": [t.to_json() | {"ratio": self.ratio(t)} for t in self.timings],
        }

    @property
    def parameters(self) -> int:
        """Their elements, all together."""
        return self.tensors * self.shape[0] * self.shape[1]


def render(report: BenchReport, console: Console, /) -> None:
    """Print the table: one line for each mode of magma_core."""
    rows, columns = report.shape
    steps = max((len(t.seconds) for t in report.timings), default=0)
    table = Table(
        title=f"{report.parameters / 1e6:.3g} M float32 parameters in {report.tensors} tensors of {rows}×{columns}",
        caption=f"median (fastest) of {steps} steps in turns; ratio of medians to the fastest of the framework",
    )
    for heading in ("", "optimizer"):
        table.add_column(heading)
    for heading in ("ms per step", "ratio", "extra MiB"):
        table.add_column(heading, justify="right")
    for timing in report.timings:
        ratio = report.ratio(timing)
        table.add_row(
            f"{timing.backend} {timing.mode}",
            f"[bold]{timing.optimizer}" if timing.optimizer in OURS else timing.optimizer,
            str(timing),
            "" if ratio is None else f"{ratio:.2f}",
            "" if timing.extra_bytes is None else f"{timing.extra_bytes / 2**20:.2f}",
        )
    console.print(table)
    for timing in report.timings:
        if timing.reason:
            console.print(f"{timing.backend} {timing.mode}, {timing.optimizer}: {timing.reason}", markup=False)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = report.machine
    console.print(f"{machine['processor']}, {machine['cores']} cores, device {machine['device']}; {versions}")
