"""Whether steps can be compiled for the CPU here."""

import functools

import torch
from magma_native import CompilerMissing, find_compiler
from magma_native.library import library
from magma_native.loops import Formula

from magma_torch.warn import warn


@functools.cache
def compiler_missing() -> str | None:
    """Why there is no compiler for the CPU, or None if there is one."""
    try:
        find_compiler()
    except CompilerMissing as error:
        return str(error)
    return None


@functools.cache
def cannot_compile(formula: Formula) -> bool:
    """Whether the compiler cannot make this step, as GCC 11 and Clang 14 have no float16 on x86; then it warns.

    Whoever asks first waits for the compiler. There is one warning for each format of parameters.
    """
    try:
        library(formula)
    except CompilerMissing as error:
        if formula.param not in _told:
            _told.add(formula.param)
            warn(f"{formula.param} parameters step eagerly, with the same bits: {error}")
        return True
    return False


_told: set[str | None] = set()


def compile_if_possible(compile: bool, /) -> bool:
    """``compile``; False, and a warning to the user's line, where it was asked for and there is no compiler.

    Where there is a GPU, nothing is said: parameters may be there.
    """
    if compile and not torch.cuda.is_available() and (reason := compiler_missing()):
        warn(f"compile=True has no effect, {reason}: steps run eagerly, with the same bits")
        return False
    return compile
