"""One step of SkipUpdate or Magma (arXiv 2602.15322, Algorithm 1; docs/spec.md is normative).

For each parameter θ, cut into blocks, at step t = 1, 2, …:

    μ, …   = base(g)                        moments are updated densely, masked or not      `advance`
    c      = cos(μ, g)                      per block, from exact integer sums              `decide`
    s      = a·s + (1−a)·sigmoid(c/τ)       per block
    k      ~ Bernoulli(p)                   per block, from a counter: f(seed, name, t, block)
    θ      = θ − (lr·w)·Δ where k           w = 1/p (SkipUpdate) or s (Magma)               `write`

`advance` and `write` go parameter by parameter, and may go piece by piece: what they do is done element by element,
but for the sums of `magma_core.alignment`, which are those of the pieces, added. `decide` takes the blocks of all
parameters at once, as one vector. Everything is pure. The functions that check their arguments are in checked.py.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

from magma_core import bases
from magma_core.alignment import alignment_sums, cosine, update_score
from magma_core.bases import Numbers
from magma_core.blocks import split
from magma_core.config import Base, Decay, Rule
from magma_core.keep import BlockWords, block_words, coins, keep_mask
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Operand, Real, real
from magma_core.plan import Plan
from magma_core.state import Report, State


def update_planned(
    plans: Sequence[Plan],
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    step: int | Array,
    lr: float | Array,
    xp: Namespace,
) -> tuple[list[Array], list[State], list[Report]]:
    """`update_all` for callers that have made `plan_all` once and step many times; what compilers should trace.

    Arguments and results are those of `update_all`, but for the plans, which must share one rule. Gradients, states,
    step and learning rate are not checked.
    """
    if not plans:
        return [], [], []
    with xp.scope():
        device = xp.device(params[0])
        rate = real(lr, xp=xp, device=device).flush()
        advanced = [advance(*one, xp=xp) for one in zip(plans, grads, states, strict=True)]
        decisions = _decide_all(plans, advanced, states, step=step, rate=rate, device=device)
        results = [
            _finish(*one, rate=rate, xp=xp) for one in zip(plans, params, grads, advanced, decisions, strict=True)
        ]
    new_params, new_states, reports = zip(*results, strict=True)
    return list(new_params), list(new_states), list(reports)


class Advanced(NamedTuple):
    """One parameter after `advance`."""

    state: State  # with new moments and the old score
    numbers: Numbers  # of this step
    sums: Array | None  # (3, *block shape), if the rule uses scores


class Decision(NamedTuple):
    """What becomes of blocks: of many parameters, or of one."""

    keep: Array  # (blocks,), bool
    scale: Real  # (blocks,) or (), lr·w
    cosine: Array | None  # (blocks,), float32
    score: Array | None  # (blocks,), float32


def advance(plan: Plan, grad: Array, state: State, *, xp: Namespace) -> Advanced:
    """Moments and alignment sums of one parameter (spec sections 4 and 5)."""
    g = real(grad, xp=xp).flush()
    new, numbers = bases.advance_powers(state, plan.numbers, xp=xp)
    new = bases.advance_moments(g, new, numbers, base=plan.base)
    if not plan.rule.uses_score:
        return Advanced(new, numbers, None)
    mu = new.mu if plan.rule.momentum == "after" else state.mu
    return Advanced(new, numbers, alignment_sums(real(mu, xp=xp), g, plan.blocks))


def decide(
    rule: Rule, words: BlockWords, sums: Array | None, scores: Array | None, *, step: int | Array, rate: Real
) -> Decision:
    """Scores, coins and weights of blocks (spec 5.3 to 7).

    Args:
        rule: of all of them.
        words: of their coins.
        sums: (3, blocks) int64, if the rule uses scores.
        scores: (blocks,) float32 before this step, likewise.
        step: t, of all of them or of each.
        rate: lr, of all of them or of each, flushed.
    """
    xp = rate.xp
    c = s = None
    if rule.uses_score:
        c = cosine(sums, xp=xp)
        s = update_score(scores, c, rule)
    keep = keep_mask(coins(words, step, xp=xp), rule, s, xp=xp)
    scale = (rate * _weight(rule, s)).flush()
    return Decision(keep, scale, None if c is None else c.array, None if s is None else s.array)


def write(
    param: Array,
    grad: Array | None,
    state: State,
    *,
    base: Base,
    numbers: Numbers,
    decays: Decay | None,
    scale: Real,
    keep: Array | None,
    rate: Real,
    xp: Namespace,
) -> Array:
    """Move the kept blocks; the others keep their bits, but for dense weight decay (spec sections 4 and 8).

    Args:
        param: θ.
        grad: g, or None where the direction does not use it (`magma_core.bases.direction_uses_gradient`).
        state: after `advance`.
        base: the base optimizer.
        numbers: its numbers at this step.
        decays: how weight decay is applied, None if there is none.
        scale: lr·w, to be broadcast against θ.
        keep: likewise, bool; None if all is kept.
        rate: lr.
        xp: the namespace of the arrays.

    Returns:
        The new parameter.
    """
    theta, staying = real(param, xp=xp), param
    g = None if grad is None else real(grad, xp=xp).flush()
    delta = bases.direction(g, state, numbers, base=base, xp=xp)
    if decays == "masked":
        delta = delta + numbers.weight_decay * theta.flush()
    if decays == "dense":
        theta = (theta.flush() * (1.0 - rate * numbers.weight_decay)).flush()
        staying = theta.astype(param.dtype)
    moved = (theta - scale * delta.flush()).flush().astype(param.dtype)
    return moved if keep is None else xp.where(keep, moved, staying)


def _decide_all(
    plans: Sequence[Plan],
    advanced: Sequence[Advanced],
    states: Sequence[State],
    *,
    step: int | Array,
    rate: Real,
    device: Any,
) -> list[Decision | None]:
    """`decide` for the blocks of all masked parameters, in block shape for each of them."""
    xp = rate.xp
    masked = [one for one in zip(plans, advanced, states, strict=True) if one[0].masked]
    if not masked:
        return [None] * len(plans)
    rule = masked[0][0].rule
    if any(plan.rule != rule for plan, _, _ in masked):
        raise ValueError("plans must share one rule: update parameters of different rules in calls of their own")
    cuts = [plan.blocks for plan, _, _ in masked]
    sums = scores = None
    if rule.uses_score:
        sums = xp.concat([xp.reshape(new.sums, (3, plan.blocks.count)) for plan, new, _ in masked], axis=1)
        scores = xp.concat([xp.reshape(state.score, (plan.blocks.count,)) for plan, _, state in masked], axis=0)
    words = block_words([plan.key for plan, _, _ in masked], cuts, xp=xp, device=device)
    keep, scale, c, s = decide(rule, words, sums, scores, step=step, rate=rate)
    decisions = map(
        Decision,
        split(keep, cuts, xp=xp),
        [real(x, xp=xp) for x in split(scale.array, cuts, xp=xp)] if len(scale.array.shape) else repeat(scale),
        split(c, cuts, xp=xp) if c is not None else repeat(None),
        split(s, cuts, xp=xp) if s is not None else repeat(None),
    )
    return [next(decisions) if plan.masked else None for plan in plans]


def _finish(
    plan: Plan,
    param: Array,
    grad: Array,
    advanced: Advanced,
    decision: Decision | None,
    *,
    rate: Real,
    xp: Namespace,
) -> tuple[Array, State, Report]:
    """`write` for one whole parameter, with what is to be remembered and reported of it."""
    state, blocks, scale, keep, report = advanced.state, plan.blocks, rate, None, Report()
    if decision is not None:
        keep, scale = blocks.spread(decision.keep, xp=xp), decision.scale
        if plan.rule.weight == "score":
            scale = real(blocks.spread(scale.array, xp=xp), xp=xp)
        report = Report(advanced.sums, decision.cosine, decision.keep)
    new = write(
        param,
        grad,
        state,
        base=plan.base,
        numbers=advanced.numbers,
        decays=plan.decays,
        scale=scale,
        keep=keep,
        rate=rate,
        xp=xp,
    )
    if decision is not None and decision.score is not None:
        state = state._replace(score=decision.score)
    return new, state, report


def _weight(rule: Rule, score: Real | None) -> Operand:
    """w: what a kept block's step is multiplied by."""
    if rule.weight == "score":
        assert score is not None
        return score
    if rule.weight == "inverse_p" and round(rule.p * 2**24):
        return 1 / rule.p
    return 1.0  # also for p = 0, where nothing is kept
