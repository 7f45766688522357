"""magma_core on TensorFlow."""

from magma_core.optional import require

require("tensorflow", extra="tensorflow")
