"""magma_core on NumPy, the reference for every other backend."""

from magma_core import __version__

__all__ = ["__version__"]
