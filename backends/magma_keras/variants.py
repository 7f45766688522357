"""The two methods of the paper (arXiv 2602.15322), `Magma` and `SkipUpdate`."""

from typing import Any, Unpack

import keras

from magma_core import Base, Rule, magma, skip_update
from magma_core.config import LEARNING_RATE, Decay, Momentum
from magma_core.signatures import shares_arguments
from magma_keras.optimizer import MaskedOptimizer
from magma_keras.options import BaseOptions


@keras.saving.register_keras_serializable(package="magma")
@shares_arguments(MaskedOptimizer, Rule)
class Magma(MaskedOptimizer):
    """Magma (arXiv 2602.15322): a random half of the blocks moves, scaled by how well gradient and momentum agree.

    A kept block's step is scaled by its score, 0.38 to 0.62 at τ = 2. With p = 0.5, the mean step of a masked block is
    0.28 of the dense one. ``lr_scale`` compensates; it is a range to search, 1 to 3.6, not a start.

    Args:
        score_ema: a, the decay rate of the score; ``use_ema`` and ``ema_momentum`` are Keras's average of variables.
        cosine_momentum: the score uses the momentum "after" or "before" this step's update.

    Raises:
        ValueError, TypeError: see `MaskedOptimizer`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from magma_keras import Magma
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="out")], name="model")
        >>> model.compile(optimizer=Magma(learning_rate=3e-3), loss="mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
        >>> sorted(model.optimizer.scores)
        ['model/out/bias', 'model/out/kernel']
    """

    def __init__(
        self,
        learning_rate: Any = LEARNING_RATE,
        base: str | Base = "adamw",
        *,
        p: float = Rule.p,
        tau: float = Rule.tau,
        score_ema: float = Rule.ema,
        initial_score: float = Rule.initial_score,
        cosine_momentum: Momentum = Rule.momentum,
        decay: Decay = Rule.decay,
        **options: Unpack[BaseOptions],
    ) -> None:
        rule = magma(p=p, tau=tau, ema=score_ema, initial_score=initial_score, momentum=cosine_momentum, decay=decay)
        super().__init__(learning_rate, rule, base, **options)

    def get_config(self) -> dict[str, Any]:
        """See `Masking.get_config`."""
        config = super().get_config()
        rule = config.pop("rule")
        return config | {argument: rule[field] for argument, field in _MAGMA.items()}


@keras.saving.register_keras_serializable(package="magma")
@shares_arguments(MaskedOptimizer, Rule)
class SkipUpdate(MaskedOptimizer):
    """SkipUpdate (arXiv 2602.15322): each step moves a random subset of blocks, 1/p times as far as the base would.

    Raises:
        ValueError, TypeError: see `MaskedOptimizer`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from magma_keras import SkipUpdate
        >>> w = keras.Variable([[1.0], [1.0], [1.0], [1.0]], name="w")
        >>> optimizer = SkipUpdate(0.1, base="sgd", block_axes=(0,))
        >>> optimizer.apply([keras.ops.ones((4, 1))], [w])
        >>> np.asarray(w)[:, 0]
        array([1. , 1. , 0.8, 0.8], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: Any = LEARNING_RATE,
        base: str | Base = "adamw",
        *,
        p: float = Rule.p,
        decay: Decay = Rule.decay,
        **options: Unpack[BaseOptions],
    ) -> None:
        super().__init__(learning_rate, skip_update(p=p, decay=decay), base, **options)

    def get_config(self) -> dict[str, Any]:
        """See `Masking.get_config`."""
        config = super().get_config()
        rule = config.pop("rule")
        return config | {argument: rule[argument] for argument in ("p", "decay")}


_MAGMA = {
    "p": "p",
    "tau": "tau",
    "score_ema": "ema",
    "initial_score": "initial_score",
    "cosine_momentum": "momentum",
    "decay": "decay",
}
"""The arguments of `Magma` and their fields of `magma_core.Rule`; here momentum is a number of the base."""

keras.saving.get_custom_objects().update({"magma": Magma, "skip_update": SkipUpdate})  # compile(optimizer="magma")
