"""Shared libraries from C source, compiled once and kept in a cache.

A library's name is a digest of everything that its machine code depends on: source, compiler, flags and processor. It
appears in the cache whole, by a rename, so that any number of processes may build at once, and one may be killed.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fno-fast-math",  # whatever $CC brings along
    "-ffp-contract=off",  # a product and a sum are rounded twice (docs/numerics.md)
    "-fno-math-errno",  # else sqrt is a call
    "-fno-trapping-math",  # else conditions are branches; the result is the same
    "-fPIC",
    "-shared",
)
"""How every library is compiled; nothing here lets a compiler change a rounding."""

OPTIONAL = ("-march=native", "-fopenmp")
"""Flags for compilers that have them: this processor's instructions, and threads."""


class CompilerMissing(RuntimeError):
    """There is no C compiler, or it cannot compile."""


@functools.cache
def find_compiler() -> tuple[str, ...]:
    """The command of the C compiler: ``$CC``, or the first of cc, gcc and clang.

    Raises:
        CompilerMissing: if there is none.
    """
    if os.name != "posix":
        raise CompilerMissing(f"steps are compiled on POSIX systems only, this is {os.name}")
    given = shlex.split(os.environ.get("CC", ""))
    for command in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(command[0]):
            return (path, *command[1:])
    looked = f"CC={os.environ['CC']} is not a program" if given else "no cc, gcc or clang is on the path"
    raise CompilerMissing(f"there is no C compiler ({looked}): install gcc or clang, or set CC")


def build(source: str, *, headers: str | None = None) -> ctypes.CDLL:
    """The library made of ``source``.

    Args:
        source: a C program.
        headers: a folder of headers, whose version must stand in ``source``.

    Raises:
        CompilerMissing: if there is no compiler that can make it.
    """
    command = find_compiler()
    try:
        made_of = "\0".join([source, *command, _version(command), *FLAGS, *OPTIONAL, _processor()])
        file = cache_folder() / f"magma-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.so"
        if not _whole(file):
            _compile(source, file, _flags(command) if headers is None else (*_flags(command), f"-I{headers}"))
        return ctypes.CDLL(str(file))
    except OSError as error:  # no space, a folder that nothing can be loaded from, a library of another machine
        raise CompilerMissing(f"a step cannot be compiled and loaded: {error}") from error


@functools.cache
def cache_folder() -> Path:
    """Where libraries are kept: ``$MAGMA_CACHE``, or ``magma`` in the user's cache folder.

    Code is loaded from it, so only the user may be able to write it. Where that is not so, a temporary folder of this
    process takes its place.
    """
    named = os.environ.get("MAGMA_CACHE")
    try:
        folder = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "magma")).expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(folder)
        return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        if named:
            warnings.warn(f"MAGMA_CACHE={named} is not used, each process compiles anew: {error}", stacklevel=2)
    holder = tempfile.TemporaryDirectory(prefix="magma-")
    _holders.append(holder)
    return Path(holder.name)


def _check_own(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError("it belongs to somebody else")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("others can write to it (chmod go-w)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError("it is read-only")


_holders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def _whole(file: Path) -> bool:
    """Whether a library is there as it was built: it ends with the digest of the rest, which loaders do not look at."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    return content[-32:] == hashlib.sha256(content[:-32]).digest()


def _compile(source: str, file: Path, flags: tuple[str, ...]) -> None:
    command = [*find_compiler(), *flags, "-o", "step.so", "step.c", "-lm"]
    with tempfile.TemporaryDirectory(prefix=".build-", dir=file.parent) as folder:
        Path(folder, "step.c").write_text(source, encoding="utf-8")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerMissing(f"{command[0]} cannot compile a step: {done.stderr.strip()[:2000]}")
        made = Path(folder, "step.so")
        made.write_bytes(made.read_bytes() + hashlib.sha256(made.read_bytes()).digest())
        os.replace(made, file)


@functools.cache
def _flags(command: tuple[str, ...]) -> tuple[str, ...]:
    return (*FLAGS, *(flag for flag in OPTIONAL if _takes(command, flag)))


def _takes(command: tuple[str, ...], flag: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        text = Path(folder, "empty.c")
        text.write_text(
            "int magma_nothing(int x) {\n#pragma omp parallel for\nfor (int i = 0; i < x; i++);\nreturn x; }"
        )
        options = [flag, "-fPIC", "-shared", "-o", str(Path(folder, "empty.so")), str(text)]
        return not subprocess.run([*command, *options], capture_output=True, check=False).returncode


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout


@functools.cache
def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("flags", "Features", "model", "CPU part", "cpu family"))}
    return "\n".join([sys.platform, platform.machine(), *sorted(told)])
