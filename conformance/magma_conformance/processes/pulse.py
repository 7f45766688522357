"""Detects whether processes work, by the processor time that they and their descendants use."""

import os
import time
from collections import defaultdict
from pathlib import Path

LOOK = 10.0
"""Seconds between looks."""

IDLE = 60
"""Consecutive looks without work after which a process counts as stuck: ten minutes."""

_LEAST = 1.0  # seconds of processor time that count as work; polling a clock needs less in ten minutes


class Pulse:
    """Looks at a process from time to time.

    It counts looks, not seconds: a machine that was suspended for an hour has missed one look.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looked = time.monotonic()
        self._used = processor_seconds(pid)
        self._idle = 0

    @property
    def stuck(self) -> bool:
        """Whether the process has been idle for `IDLE` looks."""
        return self._idle >= IDLE

    def reset(self) -> None:
        """Restart the count."""
        self._idle = 0

    def look(self) -> None:
        """Look, unless the last look was less than `LOOK` seconds ago."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked, used = time.monotonic(), processor_seconds(self._pid)
        if self._used is None or used is None or abs(used - self._used) >= _LEAST:  # less when a child has ended
            self._used, self._idle = used, 0
        else:
            self._idle += 1


def processor_seconds(root: int) -> float | None:
    """Processor time of a process and all its descendants; None if the system does not report it (no /proc)."""
    if not Path("/proc/self/stat").exists():
        return None
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # the name, in parentheses, may contain spaces
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(folder.name)
        children[int(fields[1])].append(pid)
        ticks[pid] = sum(map(int, fields[11:15]))  # user and system, its own and those of children that have ended
    found, total = [root], 0
    while found:
        pid = found.pop()
        total += ticks.get(pid, 0)
        found += children[pid]
    return total / os.sysconf("SC_CLK_TCK")
