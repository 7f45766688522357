"""magma_core on NumPy: the reference that every other backend is compared with."""

from magma_core import __version__

__all__ = ["__version__"]
