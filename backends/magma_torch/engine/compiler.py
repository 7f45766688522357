"""Whether torch.compile can work on the CPU here."""

import functools
import warnings
from importlib import import_module

import torch


@functools.cache
def compiler_missing() -> str | None:
    """Why there is no compiler for the CPU, or None if there is one."""
    try:
        import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except Exception as error:  # its InvalidCxxCompiler is not public
        return f"no C++ compiler was found ({type(error).__name__})"
    return None


def compile_if_possible(compile: bool, /) -> bool:
    """``compile``; False, and a warning to the caller's caller, where it was asked for and there is no compiler.

    Where there is a GPU, nothing is said: parameters may be there.
    """
    if compile and not torch.cuda.is_available() and (reason := compiler_missing()):
        warnings.warn(f"compile=True has no effect, {reason}: steps run eagerly, with the same bits", stacklevel=3)
        return False
    return compile
