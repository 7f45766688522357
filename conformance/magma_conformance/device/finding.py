"""What comes of a check."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Finding:
    """Facts and verdicts.

    Attributes:
        facts: for programs, JSON types.
        lines: for people.
        failures: what is not as it must be; none if the check passed.
        checked: how many things could be found wrong; a check of nothing proves nothing.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    checked: int = 0

    @property
    def passed(self) -> bool:
        """Whether something was checked and all of it is right."""
        return self.checked > 0 and not self.failures

    def expect(self, right: bool, what: str) -> None:
        """Count one thing, which is wrong unless ``right``."""
        self.checked += 1
        self.lines.append(f"{'yes' if right else 'NO'}: {what}")
        if not right:
            self.failures.append(what)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        return {"passed": self.passed, "checked": self.checked, "failures": self.failures, "facts": self.facts}
