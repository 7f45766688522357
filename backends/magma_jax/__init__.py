"""magma_core on JAX."""

from magma_core.extras import require

require("jax", extra="jax")
