"""Finds the hazards that explain an implementation's failures, by comparing failures with what each hazard changes."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

LEAST_RECALL = 0.6
"""A suspect must explain at least this share of the failed vectors,"""

LEAST_PRECISION = 0.4
"""and at least this share of the vectors that it changes must have failed. Compilers contract some sums, not all."""

LEAST_OF_BEST = 0.8
"""Further suspects are named if they are nearly as likely as the likeliest."""

LEAST_FAILED = 2
"""Too many hazards explain a single failure."""


class Suspect(NamedTuple):
    """A hazard that may be the cause."""

    flag: str
    hits: int  # failed vectors that carry the flag
    failed: int  # failed vectors with flags
    changes: int  # vectors that carry the flag, and ran

    @property
    def likeness(self) -> float:
        """The harmonic mean of recall and precision."""
        return 2 * self.hits / (self.failed + self.changes)

    def __str__(self) -> str:
        return f"{self.flag} (in {self.hits} of {self.failed} failed vectors; it changes {self.changes})"


def suspects(results: Iterable[Mapping[str, Any]], /) -> list[Suspect]:
    """The likeliest causes, at most three.

    Only values count: a crash or a missing array says nothing about the arithmetic.

    Args:
        results: of one implementation, from a report's JSON.
    """
    ran = [result for result in results if result.get("flags") and result["status"] in ("equal", "different")]
    failed = [set(result["flags"]) for result in ran if _differs_in_value(result)]
    if len(failed) < LEAST_FAILED:
        return []
    found = []
    for flag in dict.fromkeys(flag for result in ran for flag in result["flags"]):
        changes = sum(flag in result["flags"] for result in ran)
        suspect = Suspect(flag, sum(flag in flags for flags in failed), len(failed), changes)
        if suspect.hits >= max(LEAST_RECALL * len(failed), LEAST_PRECISION * changes):
            found.append(suspect)
    found.sort(key=lambda suspect: (-suspect.likeness, suspect.flag))
    return [suspect for suspect in found[:3] if suspect.likeness >= LEAST_OF_BEST * found[0].likeness]


def _differs_in_value(result: Mapping[str, Any]) -> bool:
    mismatch = result.get("mismatch")
    return mismatch is not None and mismatch["difference"]["what"] == "value"
