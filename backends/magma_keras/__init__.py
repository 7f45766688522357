"""Magma and SkipUpdate as Keras 3 optimizers, on every Keras backend: docs/keras.md."""

from magma_keras.installed import require_keras

require_keras()

from magma_core import __version__  # noqa: E402
from magma_core.state import Alignment  # noqa: E402
from magma_keras.callback import ScoreLogger  # noqa: E402
from magma_keras.contained import masking_optimizers  # noqa: E402
from magma_keras.optimizer import MaskedOptimizer  # noqa: E402
from magma_keras.selection import attention_and_mlp  # noqa: E402
from magma_keras.state_file import load_state, save_state  # noqa: E402
from magma_keras.variants import Magma, SkipUpdate  # noqa: E402
from magma_keras.wrap import Wrapped  # noqa: E402

__all__ = [
    "Alignment",
    "Magma",
    "MaskedOptimizer",
    "ScoreLogger",
    "SkipUpdate",
    "Wrapped",
    "__version__",
    "attention_and_mlp",
    "load_state",
    "masking_optimizers",
    "save_state",
]
