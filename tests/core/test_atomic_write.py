"""Atomic file replacement: leftovers of killed writers are removed, files of live writers are not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from magma_core import SGD, Saved, State, magma, write_state
from magma_core.state_file import atomic_write
from magma_core.state_file.atomic_write import replacing

fcntl = pytest.importorskip("fcntl", reason="without flock, nothing is removed")

SAVED = {"w": Saved((2,), (), 0, 0, SGD(), magma(), State()).started()}

WRITER = """
import sys
from magma_core.state_file.atomic_write import replacing

with replacing(sys.argv[1]) as file:
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()  # until somebody kills this process, or closes its input
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


class Writer:
    """A process in the middle of a file."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", WRITER, os.fspath(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"writing\n"

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self) -> int:
        self.process.communicate()
        return self.process.returncode


def others(path: Path) -> set[str]:
    return {one.name for one in path.parent.iterdir()} - {path.name}


def test_the_next_save_removes_what_one_that_was_killed_left(path):
    with Writer(path) as writer:
        writer.kill()
    (left,) = others(path)
    assert (path.with_name(left)).read_bytes() == b"half of it"
    write_state(path, SAVED)
    assert others(path) == set()


def test_what_another_is_writing_stays_and_takes_its_place(path):
    with Writer(path) as writer:
        held = others(path)
        write_state(path, SAVED)
        with pytest.raises(OSError, match="is full"), replacing(path):
            raise OSError("the disk is full")
        assert others(path) == held
        assert writer.finish() == 0
    assert path.read_bytes() == b"half of it"
    assert others(path) == set()


def test_only_files_of_the_same_target_and_host_are_looked_at(path, monkeypatch):
    for target in (path, path.with_name("other")):
        with Writer(target) as writer:
            writer.kill()
    write_state(path, SAVED)
    left = others(path)
    assert len(left) == 1
    with monkeypatch.context() as patch:
        patch.setattr(atomic_write.platform, "node", lambda: "elsewhere")
        write_state(path.with_name("other"), SAVED)
        assert others(path) == {*left, "other"}
    write_state(path.with_name("other"), SAVED)
    assert others(path) == {"other"}


def stale(path: Path) -> Path:
    with Writer(path) as writer:
        writer.kill()
    (left,) = others(path)
    return path.with_name(left)


def test_what_is_no_regular_file_stays(path):
    """Under a name that a temporary file could have; to open a pipe would wait for its other end."""
    left = stale(path)
    kept = path.with_name("kept")
    left.rename(kept)
    pipe, link = (left.with_name(left.name.replace(".tmp", f"{i}.tmp")) for i in range(2))
    os.mkfifo(pipe)
    link.symlink_to(kept)
    write_state(path, SAVED)
    assert others(path) == {"kept", pipe.name, link.name}


def test_without_locks_nothing_is_removed(path, monkeypatch):
    left = stale(path)
    with monkeypatch.context() as patch:
        patch.setattr(atomic_write, "fcntl", None)  # as on Windows
        write_state(path, SAVED)
    assert others(path) == {left.name}

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")  # as some network file systems do

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        write_state(path, SAVED)
    assert others(path) == {left.name}
    write_state(path, SAVED)
    assert others(path) == set()


@pytest.mark.parametrize("moment", ["while it has the lock", "when it has removed it"])
def test_a_file_that_was_taken_for_stale_before_it_was_locked_is_made_anew(path, monkeypatch, moment):
    """Another writer comes between the creation of a file and its lock."""
    flock, met = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not met:
            (fresh,) = others(path)
            met.append(fresh)
            if moment == "when it has removed it":
                atomic_write._remove_stale(path.with_name(fresh))
            else:
                other = os.open(path.with_name(fresh), os.O_RDWR)
                met.append(other)
                flock(other, operation)
                path.with_name(fresh).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(path) as file:
        file.write(b"all of it")
    assert len(met) > 1 or moment == "when it has removed it"
    for descriptor in met[1:]:
        os.close(descriptor)
    assert path.read_bytes() == b"all of it"
    assert others(path) == set()


def test_long_and_odd_names(tmp_path):
    for name in ("x" * 255, "β" * 127, "[a]*?.{1}", os.fsdecode(b"\xff")):
        with Writer(tmp_path / name) as writer:
            writer.kill()
        assert len(os.listdir(tmp_path)) == 1
        write_state(tmp_path / name, SAVED)
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


def test_a_folder_that_may_not_be_listed(path, monkeypatch):
    def refuse(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        write_state(path, SAVED)
    assert np.frombuffer(path.read_bytes()[:8], "<u8") > 0
    assert others(path) == set()
