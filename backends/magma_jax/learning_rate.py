"""The learning rate: a number, an array, or a schedule; checked where its value is known."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from magma_core.arguments import check_interval, short
from magma_jax.options import Hyperparameter, check_number, is_array

Schedule: TypeAlias = Callable[[Any], Any]


def check_rate(learning_rate: Any, /) -> None:
    """Raise unless ``learning_rate`` is a number ≥ 0, a float array of shape (), or a schedule."""
    if isinstance(learning_rate, optax.GradientTransformation):
        raise TypeError(
            f"learning_rate must be a number or a schedule, got {short(learning_rate)}: to put masks around an "
            "optimizer, use wrap_magma(optimizer) or wrap_skip_update(optimizer)"
        )
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate)


def rate_at(learning_rate: Hyperparameter | Schedule | None, count: jax.Array, /) -> Any:
    """The rate after ``count`` steps; 1 without a learning rate.

    Raises:
        ValueError, TypeError: if a schedule gives anything but a number ≥ 0 or an array of shape (). Under tracing, the
            value is not known.
    """
    if learning_rate is None or not callable(learning_rate):
        return 1.0 if learning_rate is None else learning_rate
    rate = learning_rate(count)
    label = f"learning_rate({'count' if isinstance(count, jax.core.Tracer) else count})"
    if not is_array(rate):
        check_interval(label, rate, 0.0, None)
    elif rate.shape != () or not any(jnp.issubdtype(rate.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"{label} must be a number or an array of shape (), got {rate.dtype} of shape {rate.shape}")
    elif not isinstance(rate, jax.core.Tracer):
        check_interval(label, rate.item(), 0.0, None)
    return rate
