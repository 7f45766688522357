"""The optimizers of this package inside optimizers that contain others."""

import keras

from magma_keras.masking import Masking


def masking_optimizers(optimizer: keras.optimizers.Optimizer, /) -> list[Masking]:
    """The optimizers of this package inside an optimizer that may contain others.

    Args:
        optimizer: one of this package, a ``LossScaleOptimizer`` (into which Keras puts it under the policy
            "mixed_float16"), a ``MultiOptimizer``, or any other.

    Example:
        >>> import keras
        >>> from magma_keras import Magma, masking_optimizers
        >>> [own] = masking_optimizers(keras.optimizers.LossScaleOptimizer(Magma()))
        >>> own.scores
        {}
    """
    if isinstance(optimizer, Masking):
        return [optimizer]
    inner = getattr(optimizer, "optimizers", None) or [getattr(optimizer, "inner_optimizer", None)]
    return [found for each in inner if each is not None for found in masking_optimizers(each)]
