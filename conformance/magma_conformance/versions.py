"""Version numbers in reports. Any change gets a new number; old ones are never reused."""

SUITE_VERSION = 3
"""The suite: its cases, its comparisons, and the layout of its reports (report/report.schema.json).

2: reports have their date, the versions of specification and vectors, the drivers, and a summary of each mode.
3: digests of each result and of each case's inputs; the recorded gradients (cases/recorded.py).
"""

VECTORS_VERSION = 2
"""The known-answer vectors: their inputs, answers and file layout.

2: steps with 1 − β₂ equal to 1, at the end of four files.
"""

SPEC_VERSION = 1
"""docs/spec.md: any change that makes a conforming implementation give other bits."""
