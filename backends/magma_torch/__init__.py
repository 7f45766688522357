"""magma_core on PyTorch: optimizers in the style of ``torch.optim``."""

from magma_core.optional import require

require("torch", extra="torch")

from magma_core import __version__  # noqa: E402
from magma_core.state import Alignment  # noqa: E402
from magma_torch.groups import attention_and_mlp  # noqa: E402
from magma_torch.optimizer import MaskedOptimizer  # noqa: E402
from magma_torch.state_file import load_state, save_state  # noqa: E402
from magma_torch.variants import Magma, SkipUpdate  # noqa: E402
from magma_torch.wrap import Wrapped  # noqa: E402

__all__ = [
    "Alignment",
    "Magma",
    "MaskedOptimizer",
    "SkipUpdate",
    "Wrapped",
    "__version__",
    "attention_and_mlp",
    "load_state",
    "save_state",
]
