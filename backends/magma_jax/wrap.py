"""Keep masks and scores around any optax transformation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, Unpack, cast

import jax
import jax.numpy as jnp
import optax

from magma_core import Plan, RMSProp, Rule, State
from magma_core import skip_update as skip_update_rule
from magma_core.alignment import alignment_sums
from magma_core.arguments import short
from magma_core.bases import advance_moments
from magma_core.config import Momentum
from magma_core.hyperparameters import masked_rate
from magma_core.namespace import Namespace
from magma_core.numerics import real
from magma_core.rule import Advanced, Decision
from magma_core.signatures import shares_arguments
from magma_core.step import decide_all
from magma_jax import namespace
from magma_jax.mistakes import WRAP_ARGUMENTS
from magma_jax.names import is_none
from magma_jax.optimizer import Leaves, MagmaTransformation, check_state_type, initial_state
from magma_jax.options import (
    Hyperparameter,
    MaskOptions,
    Options,
    is_array,
    magma_options,
    rule_options,
)
from magma_jax.variants import magma, skip_update

_XP = cast(Namespace, namespace)
_STAND_IN = RMSProp()
"""Supplies a gradient average (spec 4.2) when the wrapped transformation has no first moment."""

MOMENTS = ("mu", "trace")
"""Field names of the first moment in optax's states."""

Moment: TypeAlias = Callable[[Any], Any]


class WrappedState(NamedTuple):
    """The state of a wrapped transformation, and the state that masking adds."""

    inner_state: Any
    count: jax.Array  # (), int32: completed steps
    mu: Any  # gradient average, float32, leaves of the parameters' shapes; None if the inner state has a moment
    score: Any  # float32, leaves of block shape; None if the rule does not use scores


@shares_arguments(Options, hints=WRAP_ARGUMENTS)
def wrap(
    inner: optax.GradientTransformation,
    rule: Rule,
    *,
    moment: Moment | None = None,
    **options: Unpack[MaskOptions],
) -> optax.GradientTransformationExtraArgs:
    """Any rule over any transformation: its updates u become (lr_scale·w)·k·u.

    The wrapped transformation computes the whole update, with its own moments, arithmetic, weight decay and learning
    rate. A kept block's update is multiplied by lr_scale·w in float32 and rounded once to its format (if the factor is
    1, it keeps its bits). Every other block's update is −0, which leaves all parameters unchanged except subnormal
    ones.

    The cosine compares the gradient with the first moment in the inner state: the tree that ``moment`` finds, or else
    the only field named "mu" or "trace" with a tree like the parameters'. Without one, the wrapper keeps a gradient
    average with decay rate 0.9 (spec 4.2). Given these, sums, cosines, scores and masks have the bits of `magma_core`.

    Args:
        inner: any optax transformation; best a whole optimizer, so that it stays at the end of a chain.
        rule: the rule that keeps and weights blocks; its decay must be "masked".
        moment: finds the tree of first moments in the state of ``inner``.

    Returns:
        The transformation.

    Raises:
        ValueError: if the rule's decay is dense, or ``moment`` finds a tree of another shape.
        TypeError: if ``rule`` is not a rule, or ``inner`` not a transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from magma_core import damping
        >>> optimizer = wrap(optax.lion(0.1), damping())
        >>> grads = {"w": jnp.ones(2)}
        >>> updates, state = optimizer.update(grads, optimizer.init(grads), grads)
        >>> updates["w"]
        Array([-0.05127582, -0.05127582], dtype=float32)
    """
    return _wrap(inner, Options(_STAND_IN, rule, {}, {}, **options), moment)


@shares_arguments(wrap, magma, hints=WRAP_ARGUMENTS)
def wrap_magma(
    inner: optax.GradientTransformation,
    *,
    p: Hyperparameter = Rule.p,
    tau: Hyperparameter = Rule.tau,
    ema: Hyperparameter = Rule.ema,
    initial_score: Hyperparameter = Rule.initial_score,
    cosine_momentum: Momentum = Rule.momentum,
    moment: Moment | None = None,
    **options: Unpack[MaskOptions],
) -> optax.GradientTransformationExtraArgs:
    """Magma around any transformation; see `wrap`, and `magma_jax.magma` for the learning rate.

    Returns:
        The transformation; errors: see `wrap`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> optimizer = wrap_magma(optax.nadam(0.1), seed=1)
        >>> grads = {"w": jnp.ones(2)}
        >>> updates, state = optimizer.update(grads, optimizer.init(grads), grads)
        >>> updates["w"]
        Array([-0.07548836, -0.07548836], dtype=float32)
    """
    rule, arrays = magma_options(cosine_momentum, p=p, tau=tau, ema=ema, initial_score=initial_score)
    return _wrap(inner, Options(_STAND_IN, rule, {}, arrays, **options), moment)


@shares_arguments(wrap, skip_update, hints=WRAP_ARGUMENTS)
def wrap_skip_update(
    inner: optax.GradientTransformation,
    *,
    p: Hyperparameter = Rule.p,
    **options: Unpack[MaskOptions],
) -> optax.GradientTransformationExtraArgs:
    """SkipUpdate around any transformation, see `wrap`.

    Returns:
        The transformation; errors: see `wrap`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> optimizer = wrap_skip_update(optax.sgd(0.1), block_axes=(0,))
        >>> grads = {"w": jnp.ones((4, 1))}
        >>> updates, state = optimizer.update(grads, optimizer.init(grads))
        >>> updates["w"][:, 0]
        Array([-0. , -0. , -0.2, -0.2], dtype=float32)
    """
    rule, arrays = rule_options(skip_update_rule(), p=p)
    return _wrap(inner, Options(_STAND_IN, rule, {}, arrays, **options), None)


def _wrap(
    inner: optax.GradientTransformation, options: Options, moment: Moment | None
) -> optax.GradientTransformationExtraArgs:
    if options.rule.decay != "masked":
        raise ValueError(f'decay must be "masked", got {options.rule.decay!r}: weight decay is part of what is wrapped')
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"inner must be an optax transformation such as optax.adamw(1e-3), got {short(inner)}: MultiSteps belongs "
            "around the wrapper, not into it"
        )
    if isinstance(inner, MagmaTransformation):
        raise TypeError("inner must be another optimizer, got one that masks already: leave the wrapper out")
    if moment is not None and not callable(moment):
        raise TypeError(f"moment must be a function of the wrapped state, got {short(moment)}")
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> WrappedState:
        inner_state = inner.init(params)
        own = initial_state(options, params)
        found = _moment(moment, inner_state, params) if options.rule.uses_score else None
        return WrappedState(inner_state, own.count, own.mu if found is None else None, own.score)

    def update(grads: Any, state: WrappedState, params: Any = None, **extra: Any) -> tuple[Any, WrappedState]:
        check_state_type(state, WrappedState, (grads, params), "update(grads, state, params)")
        updates, inner_state = inner.update(grads, state.inner_state, params, **extra)
        leaves = Leaves(options, grads, params)
        count = optax.safe_increment(state.count)
        with _XP.scope():
            mus, kept = _moments(options, leaves, grads, state, inner_state, moment)
            scores = leaves.pick(state.score)
            advanced = [
                _measure(plan, grad, mu) for plan, grad, mu in zip(leaves.plans, leaves.grads, mus, strict=True)
            ]
            rate = masked_rate(real(1.0, xp=_XP), options.factor)
            states = [State(score=score) for score in scores]
            decisions = decide_all(leaves.plans, advanced, states, step=count, rate=rate, device=None)
            weighted = [
                _weight(plan, decision, u, options.lr_scale)
                for plan, decision, u in zip(leaves.plans, decisions, leaves.pick(updates), strict=True)
            ]
        new_scores = [old if d is None else d.score for d, old in zip(decisions, scores, strict=True)]
        score = None if state.score is None else leaves.put(state.score, new_scores)
        mu = None if state.mu is None else leaves.put(state.mu, kept)
        return leaves.put(updates, weighted), WrappedState(inner_state, count, mu, score)

    return optax.GradientTransformationExtraArgs(init, update)


def _moment(moment: Moment | None, inner_state: Any, like: Any) -> Any:
    """The tree of first moments in the inner state; None unless there is exactly one."""
    if moment is not None:
        found = moment(inner_state)
        if not _alike(found, like):
            raise ValueError(f"moment must find a tree like the parameters', got {jax.tree.structure(found)}")
        return found
    trees = [tree for key in MOMENTS for _, tree in optax.tree.get_all_with_path(inner_state, key)]
    trees = [tree for tree in trees if _alike(tree, like)]
    return trees[0] if len(trees) == 1 else None


def _alike(tree: Any, like: Any) -> bool:
    """Whether two trees have the same structure, and the same shapes where both have leaves."""
    (mine, one), (theirs, other) = (jax.tree.flatten(x, is_leaf=is_none) for x in (tree, like))
    pairs = zip(mine, theirs, strict=False)
    return one == other and all(jnp.shape(a) == jnp.shape(b) for a, b in pairs if a is not None and b is not None)


def _moments(
    options: Options, leaves: Leaves, like: Any, state: WrappedState, inner_state: Any, moment: Moment | None
) -> tuple[Sequence[Any], Sequence[Any]]:
    """The momentum of each leaf for the cosine, and the gradient averages to keep."""
    nothing = [None] * len(leaves.plans)
    if not options.rule.uses_score:
        return nothing, nothing
    before = options.rule.momentum == "before"
    if state.mu is None:
        seen = state.inner_state if before else inner_state
        return leaves.pick(_moment(moment, seen, like)), nothing
    olds = leaves.pick(state.mu)
    news = [
        old
        if old is None
        else advance_moments(real(grad, xp=_XP).flush(), State(mu=old), plan.numbers, base=_STAND_IN).mu
        for plan, grad, old in zip(leaves.plans, leaves.grads, olds, strict=True)
    ]
    return olds if before else news, news


def _measure(plan: Plan, grad: Any, mu: Any) -> Advanced:
    sums = None
    if plan.rule.uses_score:
        sums = alignment_sums(real(mu, xp=_XP).flush(), real(grad, xp=_XP), plan.blocks, plan.shard)
    return Advanced(State(), plan.numbers, sums)


def _weight(plan: Plan, decision: Decision | None, update: Any, lr_scale: Hyperparameter) -> Any:
    """(lr_scale·w)·k·u; −0 where k is 0."""
    if decision is None:
        return update
    update = jnp.asarray(update)
    keep, weighted = plan.blocks.spread(decision.keep, xp=_XP), update
    if plan.rule.weight != "one" or is_array(lr_scale) or lr_scale != 1:
        scale = decision.scale.array
        if plan.rule.weight == "score":
            scale = plan.blocks.spread(scale, xp=_XP)
        # its last operation may be a multiplication, e.g. by the learning rate: (x·c₁)·c₂ would become x·(c₁·c₂)
        rounded = real(real(update, xp=_XP).fenced(), xp=_XP)
        weighted = (real(scale, xp=_XP) * rounded).array.astype(update.dtype)
    return _XP.where(keep, weighted, jnp.asarray(-0.0, update.dtype))
