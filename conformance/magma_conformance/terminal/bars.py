"""Progress on stderr: bars on a terminal, elsewhere a line from time to time for the log."""

import threading
import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

EVERY = 10.0
"""Seconds between lines."""


class Bars(Progress):
    """`rich.progress.Progress` that also works without a terminal.

    Args:
        columns: of the bars; by default description, bar, count and time.
        transient: whether the bars disappear at the end.
        quiet: show nothing.
    """

    def __init__(self, *columns: ProgressColumn, transient: bool = False, quiet: bool = False) -> None:
        console = Console(stderr=True)
        chosen = columns or (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        super().__init__(*chosen, console=console, transient=transient, disable=quiet or not console.is_terminal)
        self._lines = not quiet and not console.is_terminal
        self._over = threading.Event()
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        """Start showing progress."""
        if self._lines:
            threading.Thread(target=self._write_lines, daemon=True).start()
        super().__enter__()
        return self

    def stop(self) -> None:
        """Stop showing progress."""
        self._over.set()
        if not self.disable:
            super().stop()

    def _write_lines(self) -> None:
        while not self._over.wait(EVERY):
            passed = timedelta(seconds=int(time.monotonic() - self._started))
            for task in self.tasks:
                if task.started and (task.total is None or task.completed < task.total):
                    count = "" if task.total is None else f" {task.completed:.0f}/{task.total:.0f}"
                    line = f"{passed} {Text.from_markup(task.description)}{count}"
                    self.console.print(line, soft_wrap=True, markup=False, highlight=False)
