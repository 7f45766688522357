"""The step as C, traced from `magma_core` and compiled on this machine: the same bits at the speed of memory."""

from magma_native.compiler import CompilerMissing, cache_folder, find_compiler
from magma_native.step import update_planned

__all__ = ["CompilerMissing", "cache_folder", "find_compiler", "update_planned"]
