"""The cache of libraries: shared by processes, safe against what goes wrong, and loaded from only where it is ours."""

import os
import signal
import stat
import subprocess
import sys
import time
import warnings

import pytest
from magma_native import cache_folder, compiler

SOURCE = "int magma_answer(void) { return 42; }"

BUILD = f"""
import sys
from magma_native import compiler
print(compiler.build({SOURCE!r}).magma_answer())
"""


def libraries(folder):
    return sorted(folder.glob("*.so"))


def answer() -> int:
    return compiler.build(SOURCE).magma_answer()


def start() -> "subprocess.Popen[str]":
    """Another process that builds the same library."""
    command = [sys.executable, "-c", BUILD]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def slow_compiler(folder, seconds: float):
    """A compiler that waits before it begins."""
    script = folder / "slow"
    script.write_text(f'#!/bin/sh\ncase "$*" in *step.c*) sleep {seconds};; esac\nexec cc "$@"\n')
    script.chmod(0o755)
    return script


def test_a_library_is_taken_from_the_cache(afresh, tmp_path):
    afresh()
    assert answer() == 42
    (file,) = libraries(tmp_path / "cache")
    built = file.stat()
    afresh()
    assert answer() == 42
    assert file.stat() == built
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_processes_build_at_once(afresh, tmp_path):
    """Each waits long enough for the other to have begun; both load what is there whole."""
    afresh(CC=str(slow_compiler(tmp_path, 2)))
    processes = [start() for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["42\n", "42\n"]
    assert len(libraries(tmp_path / "cache")) == 1
    assert not list((tmp_path / "cache").glob(".build-*"))


def test_a_builder_that_is_killed_leaves_nothing_that_is_loaded(afresh, tmp_path):
    afresh(CC=str(slow_compiler(tmp_path, 60)))
    process = start()
    cache = tmp_path / "cache"
    for _ in range(600):
        if list(cache.glob(".build-*/step.c")):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)  # with the compiler that it waits for
    process.communicate()
    assert list(cache.glob(".build-*"))  # it was in the middle
    assert libraries(cache) == []
    afresh(CC=None)
    assert answer() == 42


@pytest.mark.parametrize("damage", [lambda x: b"", lambda x: x[: len(x) // 2], lambda x: x[:-40] + b"?" + x[-39:]])
def test_a_damaged_library_is_built_again(damage, afresh, tmp_path):
    """As a full disk or a copy that was stopped leaves it: the loader might take it, or end the process."""
    afresh()
    compiler.build(SOURCE)
    (file,) = libraries(tmp_path / "cache")
    whole = file.read_bytes()
    file.unlink()  # this process has the old one in memory
    file.write_bytes(damage(whole))
    assert start().communicate()[0] == "42\n"
    assert compiler._whole(file)


@pytest.mark.parametrize("change", ["flags", "version", "source", "processor", "compiler"])
def test_what_machine_code_depends_on_has_files_of_its_own(change, afresh, tmp_path, monkeypatch):
    afresh()
    compiler.build(SOURCE)
    source = SOURCE
    if change == "flags":
        monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-g"))
    if change == "version":
        monkeypatch.setattr(compiler, "_version", lambda command: "another")
    if change == "processor":
        monkeypatch.setattr(compiler, "_processor", lambda: "another")
    if change == "source":
        source += "\n"
    if change == "compiler":
        afresh(CC=str(slow_compiler(tmp_path, 0)))
    elif change == "flags":
        afresh()
    compiler.build(source)
    assert len(libraries(tmp_path / "cache")) == 2


def test_the_folder_is_in_the_users_cache(afresh, tmp_path):
    afresh(MAGMA_CACHE=None, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "magma"
    afresh(MAGMA_CACHE=None, XDG_CACHE_HOME=None, HOME=str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "magma"


def unusable(tmp_path, why: str, monkeypatch) -> str:
    """A folder in which nothing can, or may, be kept."""
    folder = tmp_path / "shared"
    folder.mkdir()
    if why in ("others write", "its group writes"):
        folder.chmod(0o777 if why == "others write" else 0o770)
    elif why == "another's":
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    elif why == "read-only":  # root may write everywhere
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    elif why == "no home":
        monkeypatch.setattr(compiler.Path, "expanduser", no_home)
    elif why == "a file":
        folder.rmdir()
        folder.write_text("")
    else:
        assert why == "cannot be made"
        return "/dev/null/cache"
    return str(folder)


def no_home(path):
    raise RuntimeError("Could not determine home directory.")


WHY = ["others write", "its group writes", "another's", "read-only", "no home", "a file", "cannot be made"]


@pytest.mark.parametrize("why", WHY)
@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_cannot_be_used(why, named, afresh, tmp_path, monkeypatch):
    """A temporary one takes its place; who named the folder is told."""
    folder = unusable(tmp_path, why, monkeypatch)
    if named:
        afresh(MAGMA_CACHE=folder)
        with pytest.warns(UserWarning, match=r"MAGMA_CACHE=.* is not used.*: .*") as caught:
            found = cache_folder()
        assert len(caught) == 1
    else:
        if why != "no home":
            monkeypatch.setattr(compiler.Path, "expanduser", lambda path: compiler.Path(folder))
        afresh(MAGMA_CACHE=None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = cache_folder()
    assert str(found) != folder
    assert answer() == 42
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_temporary_folder_ends_with_its_process(tmp_path):
    code = BUILD + "print(compiler.cache_folder())"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "MAGMA_CACHE": "/dev/null/cache"},
        capture_output=True,
        text=True,
        check=True,
    )
    said, folder = ran.stdout.split()
    assert said == "42"
    assert not os.path.exists(folder)


def test_a_cache_that_is_gone_is_no_crash(afresh, tmp_path):
    """A cleaner has removed the folder while the process ran."""
    afresh()
    cache_folder().rmdir()
    with pytest.raises(compiler.CompilerMissing, match=r"a step cannot be compiled and loaded: .*cache"):
        compiler.build(SOURCE)
