"""Proof that implementations of SkipUpdate and Magma agree in every bit."""

from magma_core import __version__

__all__ = ["__version__"]
