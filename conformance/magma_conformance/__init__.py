"""Checks that implementations of SkipUpdate and Magma are bitwise identical."""

from magma_core import __version__

__all__ = ["__version__"]
