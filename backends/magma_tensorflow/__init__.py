"""magma_core on TensorFlow."""

from magma_core.extras import require

require("tensorflow", extra="tensorflow")
