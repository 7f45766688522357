"""magma_core on PyTorch: optimizers in the manner of ``torch.optim``."""

from magma_core.extras import require

require("torch", extra="torch")

from magma_core.state import Alignment  # noqa: E402
from magma_torch.layers import attention_and_mlp  # noqa: E402
from magma_torch.optimizer import MaskedOptimizer  # noqa: E402
from magma_torch.portable import load_state, save_state  # noqa: E402
from magma_torch.variants import Magma, SkipUpdate  # noqa: E402
from magma_torch.wrap import Wrapped  # noqa: E402

__all__ = [
    "Alignment",
    "Magma",
    "MaskedOptimizer",
    "SkipUpdate",
    "Wrapped",
    "attention_and_mlp",
    "load_state",
    "save_state",
]
