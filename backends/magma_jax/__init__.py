"""magma_core on JAX; its rules as optax transformations: docs/jax.md."""

from magma_core.optional import require

require("jax", extra="jax")
require("optax", extra="jax")

from magma_core import __version__  # noqa: E402
from magma_core.state import Alignment  # noqa: E402
from magma_jax.optimizer import MagmaState, MagmaTransformation  # noqa: E402
from magma_jax.selection import attention_and_mlp  # noqa: E402
from magma_jax.state_file import load_state, save_state  # noqa: E402
from magma_jax.variants import by_rule, magma, scale_by_magma, scale_by_skip_update, skip_update  # noqa: E402
from magma_jax.wrap import WrappedState, wrap, wrap_magma, wrap_skip_update  # noqa: E402

__all__ = [
    "Alignment",
    "MagmaState",
    "MagmaTransformation",
    "WrappedState",
    "__version__",
    "attention_and_mlp",
    "by_rule",
    "load_state",
    "magma",
    "save_state",
    "scale_by_magma",
    "scale_by_skip_update",
    "skip_update",
    "wrap",
    "wrap_magma",
    "wrap_skip_update",
]
