"""A signal ends a command and everything it started, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the system has no /proc")

MARK = "MARK_OF_THE_TEST"
ENDLESS = "import time; time.sleep(3000)"


class Command:
    """``python -m magma_conformance``, and whatever process has its mark."""

    def __init__(self, folder: Path, *arguments: str, code: str = "") -> None:
        self.temporary, self._mark = folder / "tmp", f"{MARK}={uuid.uuid4()}".encode()
        self.temporary.mkdir()
        own = dict([self._mark.decode().split("=")]) | {"TMPDIR": str(self.temporary)}
        own |= {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}  # torch keeps it for other runs
        what = ["-c", code] if code else ["-m", "magma_conformance"]
        self.process = subprocess.Popen(
            [sys.executable, *what, *arguments],
            env=os.environ | own | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a signal to its group is what Ctrl-C in a terminal is
        )

    def family(self) -> list[int]:
        """All processes that have the mark and have not ended."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except (OSError, ValueError):
                continue  # another's, or it has ended
        return found

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until it holds; a busy machine takes its time."""
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, "it did not come to it"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def is_gone(self) -> bool:
        """Whether nothing is left of it, within some seconds."""
        end = time.monotonic() + 20
        while self.family() and time.monotonic() < end:
            time.sleep(0.05)
        return not self.family()


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: str, code: str = "") -> Command:
        started.append(Command(tmp_path, *arguments, code=code))
        return started[-1]

    yield start
    for command in started:
        for pid in command.family():
            os.kill(pid, signal.SIGKILL)
        command.process.communicate()


@pytest.mark.parametrize(
    ("number", "jobs", "family"),
    [
        (signal.SIGTERM, 2, 6),  # the command, two lanes, two ranks of one, and of the other a program without end
        (signal.SIGINT, 1, 2),  # the command and the program
    ],
)
def test_a_signal_leaves_nothing_behind(start, tmp_path, number, jobs, family):
    pytest.importorskip("torch", reason="ranks are torch's")
    (tmp_path / "endless.py").write_text(ENDLESS)
    program = f"{sys.executable} {tmp_path / 'endless.py'}"
    modes = ["--backend=magma_torch", "--mode=ddp"] if jobs == 2 else ["--backend=numpy"]
    command = start("run", *modes, "--exec", program, "--case=sgd/*", f"--jobs={jobs}")
    command.wait_for(lambda: len(command.family()) >= family and any(command.temporary.iterdir()))
    os.kill(command.process.pid, number)
    _, said = command.process.communicate(timeout=60)
    assert command.process.returncode == 128 + number
    assert command.is_gone()
    assert [*command.temporary.iterdir()] == []
    lines = [line for line in said.splitlines() if not line.startswith("0:")]  # those of the progress
    assert lines == [f"ended by {number.name}"]


def test_ctrl_c_while_workers_import(start):
    """It reaches the command alone, which says one line."""
    command = start("run", "--backend=torch", "--backend=numpy", "--mode=eager", "--case=sgd/*", "--jobs=2")
    command.wait_for(lambda: len(command.family()) == 3)
    workers = set(command.family()) - {command.process.pid}
    assert {pid: os.getsid(pid) for pid in workers} == {pid: pid for pid in workers}
    os.killpg(command.process.pid, signal.SIGINT)
    _, said = command.process.communicate(timeout=60)
    assert (command.process.returncode, said) == (130, "ended by SIGINT\n")
    assert command.is_gone()


def test_whoever_swallows_the_exception_ends_all_the_same(start):
    code = """
import time
from magma_conformance.processes import stopping
from magma_conformance.processes.worker import Worker

def stubborn():
    worker = Worker()
    worker.call(abs, 1)
    while True:
        try:
            print("begun", flush=True)
            worker.call(time.sleep, 3000)
        except SystemExit:
            print("swallowed", flush=True)

stopping._PATIENCE = 0.5
stopping.stoppable(stubborn)
"""
    command = start(code=code)
    assert command.process.stdout.readline() == "begun\n"
    command.process.terminate()
    out, said = command.process.communicate(timeout=60)
    assert (command.process.returncode, said) == (143, "ended by SIGTERM\n")
    assert "swallowed" in out
    assert command.is_gone()


def test_a_command_that_is_left_alone_ends_as_ever():
    code = """
import signal, sys
from magma_conformance.processes.stopping import stoppable
before = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
try:
    stoppable(lambda: sys.exit(5))
finally:
    assert before == [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    assert signal.set_wakeup_fd(-1) == -1
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 5
