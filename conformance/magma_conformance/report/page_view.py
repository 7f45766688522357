"""The view model of the page: a report's rows, cells and notes, in order."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from magma_conformance.external.plugin import KINDS
from magma_conformance.report.loss_curve import Curve, loss_curve
from magma_conformance.report.report import STATUSES, columns_in_order, explained, in_order

Json: TypeAlias = Mapping[str, Any]

SHOWN = 200
"""Cases of one kind that a cell lists; the rest are counted, and are in the JSON."""


class Tally:
    """Results counted by status: equal, not equal, not run."""

    def __init__(self, results: Iterable[Json]) -> None:
        self.results = list(results)
        found = Counter(result["status"] for result in self.results)
        self.counts = {status: found[status] for status in STATUSES}

    @property
    def run(self) -> int:
        """Cases that ran."""
        return len(self.results) - self.counts["not run"]

    @property
    def equal(self) -> int:
        """Cases whose bits are all equal."""
        return self.counts["equal"]

    @property
    def idle(self) -> int:
        """Cases that did not run."""
        return self.counts["not run"]

    @property
    def kind(self) -> str:
        """The kind that colour and symbol show."""
        if not self.run:
            return "idle"
        return "equal" if self.equal == self.run else "bad"

    @property
    def verdict(self) -> str:
        """The kind in words."""
        return {"idle": "not run", "equal": "equal", "bad": "different"}[self.kind]

    @cached_property
    def bad(self) -> list[Json]:
        """Results that differ or failed."""
        return [result for result in self.results if result["status"] in ("different", "failed")]

    @cached_property
    def good(self) -> list[Json]:
        """Results that are equal."""
        return [result for result in self.results if result["status"] == "equal"]

    @cached_property
    def reasons(self) -> dict[str, list[Json]]:
        """Results that did not run, by reason."""
        reasons: dict[str, list[Json]] = {}
        for result in self.results:
            if result["status"] == "not run":
                reasons.setdefault(result["reason"] or "no reason given", []).append(result)
        return reasons


class Cell(Tally):
    """The cases of one column in one mode."""

    def __init__(self, results: Iterable[Json], id: str, column: str) -> None:
        super().__init__(results)
        self.id, self.column = id, column


class Row(Tally):
    """One mode; if absent, with the reason."""

    def __init__(self, results: Iterable[Json], id: str, mode: str, columns: list[str], absent: str | None) -> None:
        super().__init__(results)
        self.id, self.mode, self.absent = id, mode, absent
        self.suspects = explained(self.results)
        self.backend, _, self.name = mode.partition(" ")
        self.seconds = float(sum(result["seconds"] for result in self.results))
        by_column: dict[str, list[Json]] = {column: [] for column in columns}
        for result in self.results:
            by_column[result["column"]].append(result)
        self.cells = [Cell(found, f"{id}-column-{i}", name) for i, (name, found) in enumerate(by_column.items(), 1)]


@dataclass(frozen=True)
class Framework:
    """One backend, its version and its device; None if the report does not say."""

    name: str
    version: str | None
    device: str | None
    driver: str | None


class Run(Tally):
    """One report.

    Args:
        report: accepted by `read.check_report`.
        id: of its section.
    """

    def __init__(self, report: Json, id: str) -> None:
        super().__init__(report["results"])
        self.id = id
        self.environment: Json = report["environment"]
        self.failures: list[str] = list(report["failures"])
        self.curve: Curve | None = loss_curve(report["losses"])
        self.columns = columns_in_order(result["column"] for result in self.results)
        absent: Mapping[str, str] = report["absent"]
        by_mode: dict[str, list[Json]] = {}
        for result in self.results:
            by_mode.setdefault(result["mode"], []).append(result)
        for name in absent:
            if " " in name:  # the others are columns
                by_mode.setdefault(name, [])
        self.rows = [
            Row(by_mode[mode], f"{id}-mode-{i}", mode, self.columns, absent.get(mode))
            for i, mode in enumerate(in_order(by_mode), 1)
        ]
        self.absent = {name: reason for name, reason in absent.items() if name not in by_mode}
        self.absent_details: Mapping[str, str] = report.get("absent_details") or {}
        self.frameworks = list(self._frameworks())
        self.facts = self._facts(report)
        self.title = self._title()

    @property
    def kind(self) -> str:
        """See `Tally.kind`; other failures count too."""
        return "bad" if self.failures else super().kind

    @property
    def gaps(self) -> bool:
        """Whether some mode has no case in some column."""
        return any(not cell.results for row in self.rows if row.results for cell in row.cells)

    @property
    def unknown(self) -> bool:
        """Whether the report lacks anything that current reports have."""
        return None in self.facts.values() or any(None in vars(framework).values() for framework in self.frameworks)

    def _frameworks(self) -> Iterable[Framework]:
        say = self.environment
        versions, devices, drivers = say["versions"], say["devices"], say.get("drivers")
        for name in dict.fromkeys(
            [row.backend for row in self.rows if row.absent is None and row.backend not in KINDS] + list(versions)
        ):
            device = devices.get(name)
            driver = "" if device == "" else (drivers or {}).get(name)
            yield Framework(name, versions.get(name), "processor" if device == "" else device, driver)

    def _facts(self, report: Json) -> dict[str, str | None]:
        def number(name: str) -> str | None:
            return None if report.get(name) is None else str(report[name])

        say, date = self.environment, report.get("date")
        return {
            "Date": date and date.replace("T", " ").replace("Z", " UTC"),
            "Processor": say["processor"],
            "System": f"{say['system']} {say['machine']}",
            "Python": say["python"],
            "Suite version": number("suite_version"),
            "Spec version": number("spec_version"),
            "Vectors version": number("vectors_version"),
        }

    def _title(self) -> str:
        """What ran, and on which accelerators, if any."""
        names = [framework.name for framework in self.frameworks]
        names += [row.mode for row in self.rows if row.backend in KINDS]
        devices = [framework.device for framework in self.frameworks if framework.device not in (None, "processor")]
        where = dict.fromkeys(devices) or [self.environment["processor"]]
        return f"{', '.join(names) or 'nothing'} on {', '.join(filter(None, where))}"
