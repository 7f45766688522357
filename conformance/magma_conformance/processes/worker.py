"""A process of its own that answers calls. It is waited for as long as it works, and never outlives its parent.

It leads a session of its own, so that Ctrl-C in a terminal reaches the parent alone, and that what it has started, such
as compilers, can be ended with it. Its lifeline is the pipe of its calls: when that closes, it ends, in order if it
can. A program under test has yet another session, which only this process can end.
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
_PATIENCE = 3.0  # seconds in which a process may end by itself, its temporary files removed

_started: "weakref.WeakSet[Worker]" = weakref.WeakSet()


class Lost(RuntimeError):
    """There will be no answer: the process died, or does nothing any more."""


class Worker:
    """A process that answers one call at a time.

    Args:
        environment: variables that it has besides those of this process, before anything is imported there.
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
        """Whether the process has not ended."""
        return self._process.poll() is None

    @property
    def stuck(self) -> bool:
        """Whether there is no answer, and it has done nothing for a very long time since it was asked."""
        return self._pulse.stuck and not self.answered

    @property
    def answered(self) -> bool:
        """Whether `result` would not wait: there is an answer, or there will be none as the process died."""
        return self._pipe.closed or self._pipe.poll() or not self.alive

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have ``function`` called there; it can be pickled, and so can its arguments and results."""
        self._pulse.reset()
        with suppress(OSError):  # it is gone: `result` says so
            self._pipe.send((function, arguments))

    def result(self) -> Any:
        """What the call gave, or raises what it raised, with its traceback as a note.

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
        """`begin`, wait, `result`; ends a process that is stuck."""
        self.begin(function, *arguments)
        while not look_after([self]):
            if self.stuck:
                self.end()
                raise Lost(STUCK)
        return self.result()

    def end(self) -> None:
        """End it, and what it has started."""
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
"""What is said of a process that is alive and does nothing."""


def look_after(workers: Sequence[Worker], seconds: float = math.inf) -> list[Worker]:
    """Those that have answered or died; waits for one, for at most so many seconds or until it is time for a look."""
    wait([worker._pipe for worker in workers if not worker._pipe.closed], timeout=min(seconds, pulse.LOOK))
    found = [worker for worker in workers if worker.answered]
    for worker in workers:
        worker._pulse.look()
    return found


def end_all(workers: Sequence[Worker] | None = None) -> None:
    """End processes together, by default all that are left; their patience is one."""
    chosen = list(_started if workers is None else workers)
    _end([(worker._process, worker._pipe) for worker in chosen if worker._finalizer.detach()])


def _end(processes: Sequence[tuple["subprocess.Popen[bytes]", Connection]]) -> None:
    for process, _ in processes:
        process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for process, pipe in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):  # nothing is left of its session
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pipe.close()


def serve(file: int) -> NoReturn:
    """Answer calls until the other end of the pipe is closed, or a signal comes."""
    os.set_inheritable(file, False)  # what is started here is not to hold the lifeline
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
        if alone.is_set():  # the parent would have ended the rest of the group
            os.killpg(0, signal.SIGKILL)
        os._exit(1)  # frameworks have threads that an orderly exit would wait for


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """By an exception, so that `with` and `finally` are heeded."""
    del frame
    sys.exit(128 + number)


def _listen(pipe: Connection, calls: "queue.SimpleQueue[bytes]", alone: threading.Event) -> None:
    while True:
        try:
            calls.put(pipe.recv_bytes())
        except (EOFError, OSError):  # nobody is there to hear an answer
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
    """The exception; one that does not survive it as a RuntimeError of the same text."""
    try:
        data = pickle.dumps((False, error))
        pickle.loads(data)
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note("".join(error.__notes__))
        return pickle.dumps((False, plain))
    return data
