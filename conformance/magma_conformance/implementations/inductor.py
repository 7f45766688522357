"""Tells whether torch.compile can work on the CPU here."""

import functools
from importlib import import_module


@functools.cache
def compiler_missing() -> str | None:
    """Why Inductor has no C++ compiler, or None if it has one."""
    try:
        import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except Exception as error:  # its InvalidCxxCompiler is not public
        return f"no C++ compiler was found ({type(error).__name__})"
    return None
