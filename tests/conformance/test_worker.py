"""Worker processes: their answers, their ends, and the detection of stuck ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from magma_conformance.external.supervised import run_supervised
from magma_conformance.implementations.other_process import OtherProcess
from magma_conformance.processes import pulse
from magma_conformance.processes.worker import Lost, Worker, end_all, look_after
from magma_conformance.task import Task

TASK = Task("key", {"w": np.zeros(2, np.float32)}, [], [], {}, {}, {"w": ()}, 0)


@pytest.fixture
def worker():
    made = Worker({"OF_THE_WORKER": "here"})
    yield made
    made.end()


class Awkward(Exception):
    """Cannot be made of its arguments, as torch's BackendCompilerFailed."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def awkward() -> None:
    raise Awkward(1, 2)


def refused() -> None:
    raise NotImplementedError("no such part")


def child() -> int:
    """A process that would go on for long."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3000)"]).pid


def nested() -> tuple[int, int]:
    """A worker of a worker, and what that has started."""
    global _kept
    _kept = Worker()
    return _kept.call(os.getpid), _kept.call(child)


def orphan() -> None:
    """Of a process that is killed."""
    worker = Worker()
    print(worker.call(os.getpid), *worker.call(nested), flush=True)
    worker.call(time.sleep, 3000)


def supervises(file: str) -> None:
    """A program with a session of its own; ``file`` gets its process."""
    run_supervised(["sh", "-c", 'echo $$ >"$0"; exec sleep 3000', file], 3000, lambda: None)


def orphan_that_supervises(file: str) -> None:
    Worker().call(supervises, file)


def cleans_up(file: str) -> None:
    try:
        Path(file).write_text("begun")
        time.sleep(3000)
    finally:
        Path(file).unlink()


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it holds within a minute: a busy machine takes its time."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def runs(pid: int) -> bool:
    """Whether there is such a process; a zombie is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_answers_calls_one_after_the_other(worker):
    assert worker.call(divmod, 7, 2) == (3, 1)
    assert worker.call(os.getenv, "OF_THE_WORKER") == "here"
    assert worker.call(os.getpid) == worker.call(os.getpid) != os.getpid()


def test_exceptions_are_answers(worker):
    with pytest.raises(NotImplementedError, match="no such part") as raised:
        worker.call(refused)
    assert "Traceback" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Awkward: 1 and 2"):
        worker.call(awkward)
    assert worker.call(abs, -1) == 1


@pytest.mark.parametrize(
    ("function", "argument", "said"),
    [
        (os._exit, 3, r"^its process died \(exit status 3\)$"),
        (os.abort, None, r"^its process died \(SIGABRT\)$"),
        (signal.raise_signal, signal.SIGKILL, r"^its process died \(SIGKILL: memory may have run out\)$"),
    ],
)
def test_a_process_that_died_is_noticed_at_once(worker, function, argument, said):
    with pytest.raises(Lost, match=said):
        worker.call(function, *(() if argument is None else (argument,)))
    with pytest.raises(Lost, match=said):  # and again
        worker.call(abs, -1)


def test_the_end_of_a_worker_is_that_of_all_that_it_started(worker):
    inner, innermost = worker.call(nested)
    own = worker.call(child)
    assert all(map(runs, (inner, innermost, own)))
    worker.end()
    assert not worker.alive
    assert eventually(lambda: not any(map(runs, (inner, innermost, own))))


def orphaned(call: str) -> "subprocess.Popen[str]":
    """A process that calls a function of this file, and is to be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import {__name__} as here; here.{call}"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_worker_whose_parent_is_killed_ends():
    """With what it has started, though nobody could end it in order."""
    parent = orphaned("orphan()")
    pids = [*map(int, parent.stdout.readline().split())]
    assert len(pids) == 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone = eventually(lambda: not any(map(runs, pids)))
    for pid in filter(runs, pids):
        os.kill(pid, signal.SIGKILL)
    assert gone


def test_a_program_ends_with_the_parent_of_its_worker(tmp_path):
    """Though it is in no group of theirs."""
    file = tmp_path / "process"
    file.touch()
    with orphaned(f"orphan_that_supervises({str(file)!r})") as parent:
        begun = eventually(lambda: file.read_text().endswith("\n"))
        parent.kill()
    assert begun
    pid = int(file.read_text())
    gone = eventually(lambda: not runs(pid))
    if not gone:
        os.kill(pid, signal.SIGKILL)
    assert gone


def test_a_worker_may_clean_up(worker, tmp_path):
    file = tmp_path / "file"
    worker.begin(cleans_up, str(file))
    assert eventually(file.exists)
    end_all([worker])
    assert not file.exists()


def test_a_worker_that_does_not_listen_ends_all_the_same(worker):
    worker.call(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    worker.end()
    assert not worker.alive


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def burn_in_a_child() -> None:
    subprocess.run([sys.executable, "-c", f"import {__name__} as here; here.burn(1.2)"], check=True)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")


@needs_proc
def test_processor_time_is_that_of_the_whole_family(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    worker = Worker()
    worker.call(abs, 1)
    before = pulse.processor_seconds(worker._process.pid)
    assert 0 < before < 60
    worker.call(burn_in_a_child)
    ended = pulse.processor_seconds(worker._process.pid)
    assert ended - before >= 1.2
    pid = worker.call(child)
    assert runs(pid)
    assert pulse.processor_seconds(os.getpid()) >= ended  # those that are alive
    worker.end()


@needs_proc
def test_only_a_process_that_does_nothing_is_stuck(monkeypatch, worker):
    used = 5.0
    monkeypatch.setattr(pulse, "LOOK", 0.0)
    monkeypatch.setattr(pulse, "processor_seconds", lambda pid: used)
    own = pulse.Pulse(1)
    for _ in range(5 * pulse.IDLE):
        used += 0.1  # one second in ten looks
        own.look()
        assert not own.stuck
    for _ in range(pulse.IDLE - 1):
        own.look()
    assert not own.stuck
    own.look()
    assert own.stuck
    used -= 3.0  # a child has ended, and its parent did not wait for it
    own.look()
    assert not own.stuck


@needs_proc
def test_who_has_answered_or_is_asked_anew_is_not_stuck(monkeypatch, worker):
    monkeypatch.setattr(pulse, "LOOK", 0.0)
    monkeypatch.setattr(pulse, "_LEAST", 1e9)  # nothing that it does is work
    worker.begin(abs, -1)
    for _ in range(pulse.IDLE):
        worker._pulse.look()
    assert eventually(lambda: worker.answered)
    assert not worker.stuck
    assert worker.result() == 1
    assert worker.stuck
    worker.begin(time.sleep, 3000)
    assert not worker.stuck


def test_where_the_system_does_not_tell_nothing_is_stuck(monkeypatch):
    monkeypatch.setattr(pulse, "LOOK", 0.0)
    monkeypatch.setattr(pulse, "processor_seconds", lambda pid: None)
    own = pulse.Pulse(1)
    for _ in range(3 * pulse.IDLE):
        own.look()
    assert not own.stuck


def test_looks_are_seldom(monkeypatch):
    """However often one asks."""
    monkeypatch.setattr(pulse, "processor_seconds", lambda pid: 1.0)
    own = pulse.Pulse(1)
    for _ in range(1000):
        own.look()
    assert not own.stuck


def test_waiting_for_several(worker):
    other = Worker()
    worker.begin(time.sleep, 3000)
    other.begin(abs, -2)
    assert look_after([worker, other]) == [other]
    assert other.result() == 2
    other.end()


class Odd:
    """An implementation that does what its task is called."""

    name = "odd"

    def refuses(self, task: Task) -> str | None:
        return "it is refused" if task.key == "refused" else None

    def run(self, task: Task) -> list:
        if task.key == "die":
            os._exit(9)
        if task.key == "sleep":
            time.sleep(3000)
        return [os.getpid()]


def local(word: str) -> Odd:
    assert word == "word"
    return Odd()


def test_elsewhere_an_implementation_may_die_or_be_stuck(monkeypatch):
    odd = OtherProcess("odd", __name__, "word")
    first = odd.run(TASK)
    assert first == odd.run(TASK) != [os.getpid()]
    assert odd.refuses(replace(TASK, key="refused")) == "it is refused"
    with pytest.raises(Lost, match=r"^its process died \(exit status 9\)$"):
        odd.run(replace(TASK, key="die"))
    second = odd.run(TASK)  # another process
    assert second != first
    monkeypatch.setattr(pulse, "LOOK", 0.05)
    monkeypatch.setattr(pulse, "_LEAST", 1e9)
    with pytest.raises(Lost, match=r"^stuck: its process used no processor time for 10 minutes$"):
        odd.run(replace(TASK, key="sleep"))
    assert not runs(second[0])
