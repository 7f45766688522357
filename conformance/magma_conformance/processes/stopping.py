"""SIGTERM and Ctrl-C end a command and everything it started: soon, with one line, and without files left behind."""

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
_PATIENCE = 8.0  # seconds for an orderly exit


def stoppable(command: Callable[[], Any]) -> None:
    """Run ``command`` in the main thread. A signal raises SystemExit there, so that `with` and `finally` blocks run.

    The exit status is then 128 + signal. If a framework blocks or swallows the exception, the process still ends a
    few seconds later, and its workers with it.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # the first one is enough
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
    """Enforce the deadline after a signal, even while a framework keeps the main thread busy; ends with the pipe."""
    with os.fdopen(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in SIGNALS:
                time.sleep(_PATIENCE)
                _exit(number[0])


def _exit(number: int) -> NoReturn:
    """Exit at once: an orderly exit would wait for the frameworks' threads."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)
