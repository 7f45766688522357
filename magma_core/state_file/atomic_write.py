"""Atomic replacement of files, and removal of what killed writers left.

A file is written under a temporary name beside its target, and renamed. The writer holds a lock on it from the
beginning until it has its name. A lock ends with its process, however that ends: a temporary file of the same target
without one is stale, and the next writer removes it. Locks of network file systems may be of one host alone, so that
the name says which host and target the file is of, and only files of the same are looked at. Where there are no such
locks (Windows, some network file systems), nothing is removed.
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
except ImportError:  # Windows, where a file that is open cannot be renamed either
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str], /) -> Iterator[BinaryIO]:
    """A new file to be written, which takes the place of ``path`` when the context ends without an error.

    Args:
        path: of the file; a link stays one.

    Raises:
        ValueError: if there is something else than a regular file.
        OSError: if the file cannot be written; there is no trace of it then.
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
            if fcntl:  # as long as there is a lock
                os.replace(temporary, target)
        if not fcntl:
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _locked(prefix: Path, suffix: str) -> tuple[Path, BinaryIO]:
    """A new file, locked where that can be."""
    while True:
        path = prefix.with_name(f"{prefix.name}{secrets.token_hex(8)}{suffix}")
        file = path.open("xb")
        try:
            _lock(file.fileno())
        except BlockingIOError:
            pass  # another writer took it for stale before it had its lock, and removes it
        except OSError:
            return path, file  # there are no locks here: nobody gets one to remove the file
        else:
            if path.exists():
                return path, file
        file.close()


def _remove_stale(path: Path) -> None:
    """Remove a temporary file unless a writer holds it."""
    with suppress(OSError):  # gone, or another user's, or not to be locked here: it stays
        if not fcntl or not stat.S_ISREG(os.lstat(path).st_mode):
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _lock(descriptor)
            path.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file; OSError if it is locked, or cannot be."""
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _names(folder: Path) -> list[str]:
    """What is in a folder, as far as it may be listed."""
    try:
        return os.listdir(folder)
    except OSError:
        return []
