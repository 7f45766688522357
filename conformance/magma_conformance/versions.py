"""What the numbers in a report count. A change of any kind is a new number; old ones are never given again."""

SUITE_VERSION = 3
"""Of the suite: its cases, how it compares, and the layout of its reports (report/report.schema.json).

2: reports say when, by which specification and vectors, on which drivers, and what came of each mode.
3: a digest of what each result computed, and of what each case gave it; the recorded gradients (recording.py).
"""

VECTORS_VERSION = 2
"""Of the known-answer vectors: their inputs, their answers and the layout of their files.

2: steps in which 1 − β₂ is 1, at the end of four files.
"""

SPEC_VERSION = 1
"""Of docs/spec.md: any change that makes a conforming implementation give other bits."""
