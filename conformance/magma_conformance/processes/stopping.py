"""SIGTERM and Ctrl-C end a command and all that it has started: soon, with one line, and with no files left behind."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from magma_conformance.processes.worker import end_all

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 8.0  # seconds in which this process may end in order


def stoppable(command: Callable[[], Any]) -> None:
    """Run ``command`` in the main thread; a signal raises SystemExit there, so that `with` and `finally` are heeded.

    The exit status is then 128 + signal. Where a framework holds or swallows the exception, the process ends a few
    seconds later all the same; its workers end with it.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # the first is enough
        received.append(number)
        sys.exit(128 + number)

    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_late, args=(read,), daemon=True).start()
    try:
        command()
    finally:
        if received:
            end_all()
            _exit(received[0])
        signal.set_wakeup_fd(woken)
        os.close(write)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_late(pipe: int) -> None:
    """Told of a signal even while the main thread is busy in a framework; ends when the pipe does."""
    with os.fdopen(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in SIGNALS:
                time.sleep(_PATIENCE)
                _exit(number[0])


def _exit(number: int) -> NoReturn:
    """At once: an orderly exit would wait for the frameworks' threads."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)
