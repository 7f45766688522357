"""The public transformations, in optax's two layers: ``scale_by_…`` has no learning rate.

The arguments are documented once, at `Options`, `read_options`, `transformation` and `magma_core.Rule`.
"""

from typing import Unpack

from optax import ScalarOrSchedule

from magma_core import Base, Rule
from magma_core import skip_update as skip_update_rule
from magma_core.config import Decay, Momentum
from magma_core.signatures import shares_arguments
from magma_jax.learning_rate import check_rate
from magma_jax.mistakes import ARGUMENTS
from magma_jax.optimizer import MagmaTransformation, transformation
from magma_jax.options import BaseOptions, Hyperparameter, magma_options, read_options, rule_options


@shares_arguments(transformation, read_options, hints=ARGUMENTS)
def by_rule(
    learning_rate: ScalarOrSchedule,
    rule: Rule,
    base: str | Base = "adamw",
    *,
    float32_updates: bool = False,
    kernels: bool | None = None,
    **options: Unpack[BaseOptions],
) -> MagmaTransformation:
    """Any rule over any base, as an optimizer: θ ← θ − lr·w·k·Δ (docs/spec.md).

    `optax.apply_updates` adds the updates to the parameters. For float32 parameters, the sum has exactly the contract's
    bits, with two exceptions: a subnormal parameter in a block that is not kept, if the platform flushes subnormals,
    and ``decay="dense"`` with weight decay. For bfloat16 and float16, updates are rounded to the parameters' format, as
    usual in optax, and the sum is rounded again; ``float32_updates`` avoids that. `MagmaTransformation.step` has no
    exceptions.

    Leaves are parameters: float32, bfloat16 or float16. float64 leaves are computed in float32, outside the contract. A
    leaf without a gradient (None) or that is not a float stays unchanged.

    Hyper-parameters are Python numbers, or float arrays of shape () as `optax.inject_hyperparams` makes them. An array
    gives the same bits as its float32 value given as a Python number. Arrays are not validated.

    Returns:
        The transformation, which also has ``step`` and ``alignment``.

    Raises:
        ValueError, TypeError: naming the argument, its value and the remedy; for leaves, when ``init`` sees them.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from magma_core import damping
        >>> optimizer = by_rule(0.1, damping(), "sgd")
        >>> params = {"w": jnp.ones(2)}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.array([0.5, -0.5])}, state, params)
        >>> optax.apply_updates(params, updates)["w"]
        Array([0.9743877, 1.0256124], dtype=float32)
    """
    check_rate(learning_rate)
    return transformation(
        read_options(rule, {}, base, **options), learning_rate, float32_updates=float32_updates, kernels=kernels
    )


@shares_arguments(by_rule, Rule, hints=ARGUMENTS)
def magma(
    learning_rate: ScalarOrSchedule,
    base: str | Base = "adamw",
    *,
    p: Hyperparameter = Rule.p,
    tau: Hyperparameter = Rule.tau,
    ema: Hyperparameter = Rule.ema,
    initial_score: Hyperparameter = Rule.initial_score,
    cosine_momentum: Momentum = Rule.momentum,
    decay: Decay = Rule.decay,
    float32_updates: bool = False,
    kernels: bool | None = None,
    **options: Unpack[BaseOptions],
) -> MagmaTransformation:
    """Magma: uniform masks; the alignment score damps kept blocks (arXiv 2602.15322).

    A kept block's step is scaled by its score, 0.38 to 0.62 at τ = 2. With p = 0.5, the mean step of a masked block is
    0.28 of the dense one. ``lr_scale`` compensates; it is a range to search, 1 to 3.6, not a start.

    Args:
        cosine_momentum: the cosine uses μ "after" or "before" this step's update.

    Returns:
        The transformation, see `by_rule`.

    Raises:
        ValueError, TypeError: see `by_rule`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> optimizer = magma(0.3, block_axes=(0,), seed=3)
        >>> params = {"w": jnp.ones((2, 2))}
        >>> grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params)
        >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
        >>> optax.apply_updates(params, updates)["w"]
        Array([[1.       , 1.       ],
               [0.8447905, 0.8447905]], dtype=float32)
        >>> state.score["w"]
        Array([0.5122459, 0.5122459], dtype=float32)
    """
    rule, arrays = magma_options(cosine_momentum, decay, p=p, tau=tau, ema=ema, initial_score=initial_score)
    check_rate(learning_rate)
    return transformation(
        read_options(rule, arrays, base, **options), learning_rate, float32_updates=float32_updates, kernels=kernels
    )


@shares_arguments(by_rule, Rule, hints=ARGUMENTS)
def skip_update(
    learning_rate: ScalarOrSchedule,
    base: str | Base = "adamw",
    *,
    p: Hyperparameter = Rule.p,
    decay: Decay = Rule.decay,
    float32_updates: bool = False,
    kernels: bool | None = None,
    **options: Unpack[BaseOptions],
) -> MagmaTransformation:
    """SkipUpdate: uniform masks, made unbiased by the weight 1/p, so the base's learning rate stays right.

    Returns:
        The transformation, see `by_rule`.

    Raises:
        ValueError, TypeError: see `by_rule`.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = skip_update(0.1, "sgd", block_axes=(0,))
        >>> params = {"w": jnp.ones((4, 1))}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> updates["w"][:, 0]
        Array([-0. , -0. , -0.2, -0.2], dtype=float32)
    """
    rule, arrays = rule_options(skip_update_rule(decay=decay), p=p)
    check_rate(learning_rate)
    return transformation(
        read_options(rule, arrays, base, **options), learning_rate, float32_updates=float32_updates, kernels=kernels
    )


@shares_arguments(magma, hints=ARGUMENTS)
def scale_by_magma(
    base: str | Base = "adam",
    *,
    p: Hyperparameter = Rule.p,
    tau: Hyperparameter = Rule.tau,
    ema: Hyperparameter = Rule.ema,
    initial_score: Hyperparameter = Rule.initial_score,
    cosine_momentum: Momentum = Rule.momentum,
    float32_updates: bool = False,
    kernels: bool | None = None,
    **options: Unpack[BaseOptions],
) -> MagmaTransformation:
    """Magma without a learning rate: updates are s·k·Δ, for other transformations to scale and negate.

    Masks, scores and moments have the bits of `magma`. The update rounds differently: `optax.scale_by_learning_rate`
    multiplies last, the contract first (lr·s). Weight decay needs ``params``.

    Returns:
        The transformation, see `by_rule`; use ``step`` only with a learning rate.

    Raises:
        ValueError, TypeError: see `by_rule`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> optimizer = optax.chain(scale_by_magma("sgd", seed=1), optax.scale_by_learning_rate(0.1))
        >>> grads = {"w": jnp.ones(2)}
        >>> updates, state = optimizer.update(grads, optimizer.init(grads))
        >>> updates["w"]
        Array([-0.05122459, -0.05122459], dtype=float32)
    """
    rule, arrays = magma_options(cosine_momentum, p=p, tau=tau, ema=ema, initial_score=initial_score)
    return transformation(
        read_options(rule, arrays, base, **options), None, float32_updates=float32_updates, kernels=kernels
    )


@shares_arguments(skip_update, hints=ARGUMENTS)
def scale_by_skip_update(
    base: str | Base = "adam",
    *,
    p: Hyperparameter = Rule.p,
    float32_updates: bool = False,
    kernels: bool | None = None,
    **options: Unpack[BaseOptions],
) -> MagmaTransformation:
    """SkipUpdate without a learning rate: updates are k·Δ/p, see `scale_by_magma`.

    Returns:
        The transformation, see `scale_by_magma`.

    Raises:
        ValueError, TypeError: see `by_rule`.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = scale_by_skip_update("sgd", block_axes=(0,))
        >>> grads = {"w": jnp.ones((4, 1))}
        >>> updates, state = optimizer.update(grads, optimizer.init(grads))
        >>> updates["w"][:, 0]
        Array([0., 0., 2., 2.], dtype=float32)
    """
    rule, arrays = rule_options(skip_update_rule(), p=p)
    return transformation(
        read_options(rule, arrays, base, **options), None, float32_updates=float32_updates, kernels=kernels
    )
