"""The benchmark's results, as data and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.text import Text

from magma_conformance.bench.contenders import BASELINES, OURS
from magma_conformance.bench.workload import Workload
from magma_conformance.terminal.tables import Cell, print_table


@dataclass(frozen=True)
class Timing:
    """The result of one contender.

    Args:
        backend: the framework.
        mode: the mode that ran.
        optimizer: ours or another's.
        seconds: one per timed step; empty if there is a reason.
        reason: why nothing was measured.
        extra_bytes: peak memory of a step beyond its inputs and state; None if unknown.
        beside: the baseline's seconds in the same turns.
    """

    backend: str
    mode: str
    optimizer: str
    seconds: tuple[float, ...] = ()
    reason: str = ""
    extra_bytes: int | None = None
    beside: tuple[float, ...] = ()

    @property
    def milliseconds(self) -> float | None:
        """The median step; None if not measured."""
        return 1e3 * median(self.seconds) if self.seconds else None

    @property
    def ratio(self) -> float | None:
        """The median over the baseline's; None if either is missing."""
        return median(self.seconds) / median(self.beside) if self.seconds and self.beside else None

    def __str__(self) -> str:
        """Median and fastest: a shared machine only ever slows a step down."""
        if not self.seconds:
            return "–"
        middle, fastest = (1e3 * second for second in (median(self.seconds), min(self.seconds)))
        return f"{middle:.1f} ({fastest:.1f})" if middle >= 10 else f"{middle:.3f} ({fastest:.3f})"


@dataclass(frozen=True)
class BenchReport:
    """Milliseconds per step of every contender, measured in turns.

    Args:
        machine: processor, cores, device.
        versions: of Python and the frameworks.
        workload: the parameters.
        timings: in the order of `magma_conformance.bench.contenders.CONTENDERS`.
        copy_bandwidth: bytes per second that a copy reads and writes, by backend.
        recount: see `Workload.magma_bytes`.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    workload: Workload
    timings: tuple[Timing, ...]
    copy_bandwidth: Mapping[str, float] = field(default_factory=dict)
    recount: float = 0.0

    def bytes(self, timing: Timing, /) -> float:
        """Bytes that any implementation must move per step: AdamW's, or Magma's."""
        work = self.workload
        return work.magma_bytes(self.recount) if "magma" in timing.optimizer.lower() else work.adamw_bytes()

    def bandwidth(self, timing: Timing, /) -> float | None:
        """These bytes per second; other traffic does not count."""
        return self.bytes(timing) / median(timing.seconds) if timing.seconds else None

    def share(self, timing: Timing, /) -> float | None:
        """Bandwidth relative to a plain copy."""
        copy, own = self.copy_bandwidth.get(timing.backend), self.bandwidth(timing)
        return own / copy if own and copy else None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "machine": self.machine,
            "versions": self.versions,
            **self.workload.to_json(),
            "recount": self.recount,
            "copy_bytes_per_second": dict(self.copy_bandwidth),
            "timings": [self._timing_to_json(timing) for timing in self.timings],
        }

    def _timing_to_json(self, timing: Timing) -> dict[str, Any]:
        return {
            "backend": timing.backend,
            "mode": timing.mode,
            "optimizer": timing.optimizer,
            "median_ms": timing.milliseconds,
            "ms": [1e3 * second for second in timing.seconds],
            "reason": timing.reason,
            "extra_bytes": timing.extra_bytes,
            "ratio": timing.ratio,
            "bytes": self.bytes(timing),
            "bytes_per_second": self.bandwidth(timing),
            "share_of_copy": self.share(timing),
        }


def render(report: BenchReport, console: Console, /) -> None:
    """Print the table, one line per contender."""
    work = report.workload
    steps = max((len(t.seconds) for t in report.timings), default=0)
    beside = ", ".join(
        BASELINES[name] for name in dict.fromkeys(t.backend for t in report.timings) if name in BASELINES
    )
    rows: list[list[Cell]] = []
    for timing in report.timings:
        ratio, bandwidth, share = timing.ratio, report.bandwidth(timing), report.share(timing)
        rows.append(
            [
                f"{timing.backend} {timing.mode}",
                Text(timing.optimizer, style="bold" if timing.optimizer in OURS else ""),
                str(timing),
                "" if ratio is None else f"{ratio:.2f}",
                "" if bandwidth is None else f"{bandwidth / 1e9:.4g}",
                "" if share is None else f"{share:.0%}",
                "" if timing.extra_bytes is None else f"{timing.extra_bytes / 2**20:.2f}",
            ]
        )
    print_table(
        console,
        ["mode", "optimizer", "ms per step", "ratio", "GB/s", "of a copy", "extra MiB"],
        rows,
        title=f"{work.parameters / 1e6:.4g} M float32 parameters in {work.title}",
        caption=f"median (fastest) of up to {steps} steps in turns; ratio of medians to {beside or 'nothing'}",
        left=2,
        lead=2,
    )
    for timing in report.timings:
        if timing.reason:
            console.print(f"{timing.backend} {timing.mode}, {timing.optimizer}: {timing.reason}", markup=False)
    copies = ", ".join(f"{name} {found / 1e9:.4g} GB/s" for name, found in report.copy_bandwidth.items())
    if copies:
        console.print(f"a copy: {copies}, read and written", highlight=False)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = report.machine
    console.print(f"{machine['processor']}, {machine['cores']} cores, device {machine['device']}; {versions}")


def render_ratios(reports: Sequence[BenchReport], console: Console, /) -> None:
    """Print the workloads side by side: for each contender the ratio to its framework's baseline."""
    rows: list[list[Cell]] = []
    for timings in zip(*(report.timings for report in reports), strict=True):
        ratios = ["–" if timing.ratio is None else f"{timing.ratio:.2f}" for timing in timings]
        first = timings[0]
        rows.append([f"{first.backend} {first.mode}", first.optimizer, *ratios])
    titles = [report.workload.title for report in reports]
    print_table(console, ["mode", "optimizer", *titles], rows, title="side by side: ratio of medians", left=2, lead=2)
