"""Whether steps can be compiled for the CPU here."""

import functools
import warnings

import torch
from magma_native import CompilerMissing, find_compiler


@functools.cache
def compiler_missing() -> str | None:
    """Why there is no compiler for the CPU, or None if there is one."""
    try:
        find_compiler()
    except CompilerMissing as error:
        return str(error)
    return None


def compile_if_possible(compile: bool, /) -> bool:
    """``compile``; False, and a warning to the caller's caller, where it was asked for and there is no compiler.

    Where there is a GPU, nothing is said: parameters may be there.
    """
    if compile and not torch.cuda.is_available() and (reason := compiler_missing()):
        warnings.warn(f"compile=True has no effect, {reason}: steps run eagerly, with the same bits", stacklevel=3)
        return False
    return compile
