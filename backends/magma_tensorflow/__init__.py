"""magma_core on TensorFlow."""

from magma_core.optional import require

require("tensorflow", extra="tensorflow")

from magma_core import __version__  # noqa: E402

__all__ = ["__version__"]
