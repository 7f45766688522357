"""A separate process that answers calls. It may take as long as it works, and never outlives its parent.

It leads its own session, so that Ctrl-C in a terminal reaches the parent alone, and so that everything it started,
such as compilers, can be ended with it. Its lifeline is the pipe of its calls: when the pipe closes, the process ends,
in order if it can. A program under test has yet another session, which only this process can end.
"""

import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from types import FrameType
from typing import Any, NoReturn

from magma_conformance.processes import pulse

_START = "import sys; sys.path[:] = {path!r}; from magma_conformance.processes.worker import serve; serve({file})"
_PATIENCE = 3.0  # seconds for an orderly exit that removes temporary files

_started: "weakref.WeakSet[Worker]" = weakref.WeakSet()


class Lost(RuntimeError):
    """There will be no answer: the process died or is stuck."""


class Worker:
    """A process that answers one call at a time.

    Args:
        environment: extra variables, set before any import there.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, file=theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=os.environ | dict(environment or {}),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._pulse = pulse.Pulse(self._process.pid)
        self._finalizer = weakref.finalize(self, _end, [(self._process, self._pipe)])
        _started.add(self)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def stuck(self) -> bool:
        """Whether it has not answered and has been idle for a very long time since the call."""
        return self._pulse.stuck and not self.answered

    @property
    def answered(self) -> bool:
        """Whether `result` would return at once: there is an answer, or the process died."""
        return self._pipe.closed or self._pipe.poll() or not self.alive

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a call of ``function`` there; function, arguments and results must pickle."""
        self._pulse.reset()
        with suppress(OSError):  # the process is gone: `result` reports it
            self._pipe.send((function, arguments))

    def result(self) -> Any:
        """The call's result; re-raises its exception, with the traceback as a note.

        Raises:
            Lost: if the process died.
        """
        try:
            good, value = self._pipe.recv()
        except (EOFError, OSError):
            raise Lost(self._obituary()) from None
        if not good:
            raise value
        return value

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`begin`, wait, `result`; ends a stuck process."""
        self.begin(function, *arguments)
        while not look_after([self]):
            if self.stuck:
                self.end()
                raise Lost(STUCK)
        return self.result()

    def end(self) -> None:
        """End the process and everything it started."""
        self._finalizer()

    def _obituary(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        status = self._process.returncode
        if status is None:
            return "its process closed its pipe"
        if status >= 0:
            return f"its process died (exit status {status})"
        hint = ": memory may have run out" if status == -signal.SIGKILL else ""
        return f"its process died ({signal.Signals(-status).name}{hint})"


STUCK = f"stuck: its process used no processor time for {pulse.IDLE * pulse.LOOK / 60:.0f} minutes"
"""Describes a process that is alive but idle."""


def look_after(workers: Sequence[Worker], seconds: float = math.inf) -> list[Worker]:
    """Workers that have answered or died. Waits for one, at most ``seconds`` or until the next look is due."""
    wait([worker._pipe for worker in workers if not worker._pipe.closed], timeout=min(seconds, pulse.LOOK))
    found = [worker for worker in workers if worker.answered]
    for worker in workers:
        worker._pulse.look()
    return found


def end_all(workers: Sequence[Worker] | None = None) -> None:
    """End processes together, by default all that are left; they share one grace period."""
    chosen = list(_started if workers is None else workers)
    _end([(worker._process, worker._pipe) for worker in chosen if worker._finalizer.detach()])


def _end(processes: Sequence[tuple["subprocess.Popen[bytes]", Connection]]) -> None:
    for process, _ in processes:
        process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for process, pipe in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):  # its session is empty
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pipe.close()


def serve(file: int) -> NoReturn:
    """Answer calls until the pipe closes or a signal comes."""
    os.set_inheritable(file, False)  # child processes must not hold the lifeline
    pipe: Connection = Connection(file)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    alone = threading.Event()
    threading.Thread(target=_listen, args=(pipe, calls, alone), daemon=True).start()
    try:
        while True:
            pipe.send_bytes(_answer(calls.get()))
    finally:
        end_all()
        if alone.is_set():  # otherwise the parent ends the rest of the group
            os.killpg(0, signal.SIGKILL)
        os._exit(1)  # an orderly exit would wait for the frameworks' threads


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Raise, so that `with` and `finally` blocks run."""
    del frame
    sys.exit(128 + number)


def _listen(pipe: Connection, calls: "queue.SimpleQueue[bytes]", alone: threading.Event) -> None:
    while True:
        try:
            calls.put(pipe.recv_bytes())
        except (EOFError, OSError):  # nobody is left to hear an answer
            alone.set()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_PATIENCE)
            os.killpg(0, signal.SIGKILL)


def _answer(call: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(call)
        return pickle.dumps((True, function(*arguments)))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _pickled(error)


def _pickled(error: Exception) -> bytes:
    """The exception, or a RuntimeError of the same text if it does not pickle."""
    try:
        data = pickle.dumps((False, error))
        pickle.loads(data)
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note("".join(error.__notes__))
        return pickle.dumps((False, plain))
    return data
