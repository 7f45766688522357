"""magma_core on PyTorch."""

from magma_core.extras import require

require("torch", extra="torch")
