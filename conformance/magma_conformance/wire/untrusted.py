"""Handles foreign input: files that may be anything, and text that may hold anything."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_PART = 300  # characters shown at either end of a long text
_WAITLESS = getattr(os, "O_NONBLOCK", 0)
_LINKLESS = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def open_foreign(file: Path, /, most: int, *, links: bool = True, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 text file of bounded size for reading; refuse pipes, devices and larger files.

    Args:
        file: its path.
        most: its size limit in bytes.
        links: whether the path may be a symbolic link.
        errors: see `open`.

    Raises:
        OSError: if it cannot be opened, is not a regular file, or is too large.

    Example:
        >>> with open_foreign(Path("/dev/zero"), 10):
        ...     pass
        Traceback (most recent call last):
        ...
        OSError: [Errno 22] not a regular file: '/dev/zero'
    """
    if not stat.S_ISREG(os.stat(file, follow_symlinks=links).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    # the file may have been replaced since: opening a pipe must not wait for its writer
    flags = _WAITLESS if links else _WAITLESS | _LINKLESS
    with open(file, encoding="utf-8", errors=errors, opener=lambda path, own: os.open(path, own | flags)) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(file))
        yield stream


def shown(text: str, /, *, lines: bool = False) -> str:
    """Foreign text made safe for a message: long text shortened, control characters escaped.

    Args:
        text: what to show.
        lines: whether it may have several lines.

    Example:
        >>> print(shown("out of memory \\x1b[31m"))
        out of memory \\x1b[31m
    """
    text = text.strip()
    if len(text) > 2 * _PART + 100:
        text = f"{text[:_PART]} … {text[-_PART:]}"
    return "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text)
