"""The result of a check."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Finding:
    """Facts and verdicts of a check.

    Attributes:
        facts: for programs, as JSON types.
        lines: for people.
        failures: expectations that did not hold.
        checked: the number of expectations; a check without any does not pass.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    checked: int = 0

    @property
    def passed(self) -> bool:
        """Whether there were expectations and all held."""
        return self.checked > 0 and not self.failures

    def expect(self, right: bool, what: str) -> None:
        """Count one expectation, which fails unless ``right``."""
        self.checked += 1
        self.lines.append(f"{'yes' if right else 'NO'}: {what}")
        if not right:
            self.failures.append(what)

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON types."""
        return {"passed": self.passed, "checked": self.checked, "failures": self.failures, "facts": self.facts}
