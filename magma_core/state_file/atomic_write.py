"""Atomic replacement of files; removes leftovers of killed writers.

The writer creates a temporary file beside the target, and renames it at the end. It holds a lock on the file until the
rename. A lock ends with its process, however the process ends. A temporary file of the same target without a lock is
therefore stale; the next writer removes it. Network file systems may keep locks per host, so the temporary name encodes
host and target, and only files with the same two are examined. Without such locks (Windows, some network file systems),
nothing is removed.
"""

import hashlib
import os
import platform
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, which cannot rename an open file either
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str], /) -> Iterator[BinaryIO]:
    """A new file to write, which replaces ``path`` when the context ends without an error.

    Args:
        path: the file to replace; a symbolic link stays a link.

    Raises:
        ValueError: if ``path`` is something other than a regular file.
        OSError: if the file cannot be written; no trace of it remains.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        raise ValueError(f"{str(target)!r} is no regular file: choose another path")
    owner = hashlib.sha256(f"{platform.node()}\0{target.name}".encode(errors="surrogateescape")).hexdigest()[:16]
    prefix, suffix = f".magma-{owner}-", ".tmp"
    for name in _names(target.parent):
        if name.startswith(prefix) and name.endswith(suffix):
            _remove_stale(target.with_name(name))
    temporary, file = _locked(target.with_name(prefix), suffix)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl:  # while the lock is held
                os.replace(temporary, target)
        if not fcntl:
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _locked(prefix: Path, suffix: str) -> tuple[Path, BinaryIO]:
    """A new file, locked where possible."""
    while True:
        path = prefix.with_name(f"{prefix.name}{secrets.token_hex(8)}{suffix}")
        file = path.open("xb")
        try:
            _lock(file.fileno())
        except BlockingIOError:
            pass  # another writer took it for stale before it was locked, and removes it
        except OSError:
            return path, file  # no locks here: no writer can get one to remove the file
        else:
            if path.exists():
                return path, file
        file.close()


def _remove_stale(path: Path) -> None:
    """Remove a temporary file unless a writer holds it."""
    with suppress(OSError):  # gone, owned by another user, or not lockable here: it stays
        if not fcntl or not stat.S_ISREG(os.lstat(path).st_mode):
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _lock(descriptor)
            path.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file; OSError if it is locked or cannot be locked."""
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _names(folder: Path) -> list[str]:
    """The names in a folder; empty if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError:
        return []
