"""The transformations that users make, in the two layers of optax: ``scale_by_…`` has no learning rate.

The arguments are described once, at `by_rule`.
"""

import jax
from optax import ScalarOrSchedule

from magma_core import Base, Rule
from magma_core import skip_update as skip_update_rule
from magma_core.config import SEED, Decay, Momentum
from magma_jax.names import Name
from magma_jax.optimizer import MagmaTransformation, transformation
from magma_jax.options import BlockAxes, Hyperparameter, Own, Specs, check_rate, magma_options, rule_options


def by_rule(
    learning_rate: ScalarOrSchedule,
    rule: Rule,
    base: str | Base = "adamw",
    *,
    b1: Hyperparameter | None = None,
    b2: Hyperparameter | None = None,
    eps: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    seed: int | jax.Array = SEED,
    block_axes: BlockAxes = (),
    name: Name | None = None,
    specs: Specs | None = None,
    float32_updates: bool = False,
    kernels: bool = False,
) -> MagmaTransformation:
    """Any rule over any base, as an optimizer: θ ← θ − lr·w·k·Δ (docs/spec.md).

    Updates are what `optax.apply_updates` adds to the parameters. For float32 parameters that addition gives the very
    bits of the contract, with two exceptions: a subnormal parameter in a block that is not kept, where the platform
    flushes subnormals, and ``decay="dense"`` with weight decay. For bfloat16 and float16, updates are rounded to the
    parameters' format as is the custom, and the sum is rounded again; ``float32_updates`` avoids that.
    `MagmaTransformation.step` has no exceptions.

    Leaves are parameters. They are float32, bfloat16 or float16; float64 leaves are computed in float32, outside of
    the contract. A leaf without a gradient (None) stays as it is, and so do leaves that are not floats.

    Hyper-parameters are Python numbers, or float arrays of shape () as `optax.inject_hyperparams` makes them; an array
    has the bits of the Python number that it is in float32. Arrays are not checked.

    Args:
        learning_rate: lr ≥ 0: a number, an array of shape (), or a schedule, which is called with the number of steps
            done before.
        rule: how blocks are kept and weighted, e.g. `magma_core.damping()`.
        base: "sgd", "rmsprop", "adam", "adamw", "laprop", or a configuration such as ``magma_core.SGD(momentum=0.8)``.
        b1: decay rate of the first moment, in [0, 1); None for the base's own, as for the next three.
        b2: decay rate of the second moment, in [0, 1).
        eps: ε ≥ 2⁻¹⁰⁰, added outside the square root.
        weight_decay: coefficient λ ≥ 0 of decoupled decay; inside the update, or see `magma_core.Rule.decay`.
        seed: of the keep masks: an integer in [0, 2⁶⁴), or an integer array of shape ().
        block_axes: the axes that *index* blocks, for all leaves: ``()`` makes each leaf a block, ``(0,)`` each row, or
            each layer or expert of a stack. Or a function of a leaf's name and the leaf that gives its axes, or None
            for a leaf whose update is that of the base alone.
        name: makes the name that keys a leaf's masks of its path, which is joined by dots: "params.dense.kernel".
        specs: inside `jax.shard_map` only, a function of a leaf's name and the leaf that gives its PartitionSpec, so
            that blocks are those of the whole tensor. Under ``jit`` the sharding is found without.
        float32_updates: return float32 whatever the parameters' format.
        kernels: on CUDA, compute large blocks by the kernels of `magma_jax.gpu`, faster and in place: donate parameters
            and state. They are for one device, or for a device's part inside `jax.shard_map` with ``specs``; nothing
            can be derived through them. Elsewhere this changes nothing.

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
    own = Own(base, b1, b2, eps, weight_decay, seed, block_axes, name, specs)
    check_rate(learning_rate)
    return transformation(own.options(rule, {}), learning_rate, float32_updates=float32_updates, kernels=kernels)


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
    b1: Hyperparameter | None = None,
    b2: Hyperparameter | None = None,
    eps: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    seed: int | jax.Array = SEED,
    block_axes: BlockAxes = (),
    name: Name | None = None,
    specs: Specs | None = None,
    float32_updates: bool = False,
    kernels: bool = False,
) -> MagmaTransformation:
    """Magma: uniform masks, kept blocks damped by their alignment score (arXiv 2602.15322).

    Start from 3.2 to 3.6 times the base's learning rate: with τ = 2 a score lies in [0.378, 0.622] and pure noise gives
    0.554, so that with p = 0.5 the mean step is 0.28 of the dense one.

    Args:
        learning_rate: see `by_rule`.
        base: see `by_rule`.
        p: survival probability in [0, 1].
        tau: temperature τ ≥ 2⁻¹⁰⁰ of the sigmoid.
        ema: decay rate in [0, 1) of the score.
        initial_score: s₀ in [0, 1].
        cosine_momentum: the cosine sees μ "after" this step's update or "before" it.
        decay: "masked" puts weight decay inside the update, "dense" applies it to every element at every step.
        b1: see `by_rule`.
        b2: see `by_rule`.
        eps: see `by_rule`.
        weight_decay: see `by_rule`.
        seed: see `by_rule`.
        block_axes: see `by_rule`.
        name: see `by_rule`.
        specs: see `by_rule`.
        float32_updates: see `by_rule`.
        kernels: see `by_rule`.

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
    own = Own(base, b1, b2, eps, weight_decay, seed, block_axes, name, specs)
    check_rate(learning_rate)
    return transformation(own.options(rule, arrays), learning_rate, float32_updates=float32_updates, kernels=kernels)


def skip_update(
    learning_rate: ScalarOrSchedule,
    base: str | Base = "adamw",
    *,
    p: Hyperparameter = Rule.p,
    decay: Decay = Rule.decay,
    b1: Hyperparameter | None = None,
    b2: Hyperparameter | None = None,
    eps: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    seed: int | jax.Array = SEED,
    block_axes: BlockAxes = (),
    name: Name | None = None,
    specs: Specs | None = None,
    float32_updates: bool = False,
) -> MagmaTransformation:
    """SkipUpdate: uniform masks, unbiased by the weight 1/p, so that the base's learning rate is right.

    Args:
        learning_rate: see `by_rule`.
        base: see `by_rule`.
        p: survival probability in [0, 1].
        decay: see `magma`.
        b1: see `by_rule`.
        b2: see `by_rule`.
        eps: see `by_rule`.
        weight_decay: see `by_rule`.
        seed: see `by_rule`.
        block_axes: see `by_rule`.
        name: see `by_rule`.
        specs: see `by_rule`.
        float32_updates: see `by_rule`.

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
    own = Own(base, b1, b2, eps, weight_decay, seed, block_axes, name, specs)
    check_rate(learning_rate)
    return transformation(own.options(rule, arrays), learning_rate, float32_updates=float32_updates)


def scale_by_magma(
    base: str | Base = "adam",
    *,
    p: Hyperparameter = Rule.p,
    tau: Hyperparameter = Rule.tau,
    ema: Hyperparameter = Rule.ema,
    initial_score: Hyperparameter = Rule.initial_score,
    cosine_momentum: Momentum = Rule.momentum,
    b1: Hyperparameter | None = None,
    b2: Hyperparameter | None = None,
    eps: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    seed: int | jax.Array = SEED,
    block_axes: BlockAxes = (),
    name: Name | None = None,
    specs: Specs | None = None,
    float32_updates: bool = False,
) -> MagmaTransformation:
    """Magma without a learning rate: updates are s·k·Δ, for other transformations to scale and negate.

    Masks, scores and moments have the bits of `magma`; the update has other roundings, because
    `optax.scale_by_learning_rate` multiplies last what the contract multiplies first (lr·s). Parameters are needed if
    there is weight decay.

    Args:
        base: see `by_rule`.
        p: see `magma`.
        tau: see `magma`.
        ema: see `magma`.
        initial_score: see `magma`.
        cosine_momentum: see `magma`.
        b1: see `by_rule`.
        b2: see `by_rule`.
        eps: see `by_rule`.
        weight_decay: see `by_rule`; masked and weighted with the rest.
        seed: see `by_rule`.
        block_axes: see `by_rule`.
        name: see `by_rule`.
        specs: see `by_rule`.
        float32_updates: see `by_rule`.

    Returns:
        The transformation, see `by_rule`; ``step`` is for those with a learning rate.

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
    own = Own(base, b1, b2, eps, weight_decay, seed, block_axes, name, specs)
    return transformation(own.options(rule, arrays), None, float32_updates=float32_updates)


def scale_by_skip_update(
    base: str | Base = "adam",
    *,
    p: Hyperparameter = Rule.p,
    b1: Hyperparameter | None = None,
    b2: Hyperparameter | None = None,
    eps: Hyperparameter | None = None,
    weight_decay: Hyperparameter | None = None,
    seed: int | jax.Array = SEED,
    block_axes: BlockAxes = (),
    name: Name | None = None,
    specs: Specs | None = None,
    float32_updates: bool = False,
) -> MagmaTransformation:
    """SkipUpdate without a learning rate: updates are k·Δ/p, see `scale_by_magma`.

    Args:
        base: see `by_rule`.
        p: see `skip_update`.
        b1: see `by_rule`.
        b2: see `by_rule`.
        eps: see `by_rule`.
        weight_decay: see `scale_by_magma`.
        seed: see `by_rule`.
        block_axes: see `by_rule`.
        name: see `by_rule`.
        specs: see `by_rule`.
        float32_updates: see `by_rule`.

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
    own = Own(base, b1, b2, eps, weight_decay, seed, block_axes, name, specs)
    return transformation(own.options(rule, arrays), None, float32_updates=float32_updates)
