"""Runs an external program once, with a time limit, and ends everything that it started."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

_TAIL = 2**12  # bytes of stderr to keep
_PIPE = 2**20  # at least the capacity of a pipe, so that one read empties it
_LOOK = 0.05  # seconds between checks of a silent program


def run_supervised(command: Sequence[str], seconds: float, check: Callable[[], None]) -> tuple[int | None, str]:
    """Run a program to its end or its time limit, then end every process of its group.

    Args:
        command: program and arguments.
        seconds: the time limit.
        check: called now and then; if it raises, the program is ended.

    Returns:
        Exit status (None on timeout) and the tail of standard error.

    Raises:
        OSError: if it cannot be started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a group of its own
    )
    assert process.stderr is not None
    with process.stderr as stderr:
        try:
            status, said = _listen(process, stderr.fileno(), time.monotonic() + seconds, check)
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, said.decode("utf-8", "replace")


def _listen(
    process: subprocess.Popen[bytes], stderr: int, deadline: float, check: Callable[[], None]
) -> tuple[int | None, bytes]:
    """Wait until the program ends, not until its stderr closes: processes that it leaves behind may hold that open."""
    os.set_blocking(stderr, False)
    ready = select.poll()
    ready.register(stderr, select.POLLIN)
    said, closed = b"", False
    while True:
        status = process.poll()  # before reading: all its output is then in the pipe
        with suppress(BlockingIOError):
            heard = os.read(stderr, _PIPE)
            said, closed = (said + heard)[-_TAIL:], not heard
        left = deadline - time.monotonic()
        if status is not None or left < 0:
            return status, said
        check()
        pause = min(_LOOK, left)
        if closed:  # poll would return at once
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause)
        else:
            ready.poll(1000 * pause)
