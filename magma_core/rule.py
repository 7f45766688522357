"""One step of SkipUpdate or Magma (arXiv 2602.15322, Algorithm 1; docs/spec.md is normative).

For each parameter θ, cut into blocks, at step t = 1, 2, …:

    Δ, μ   = base(g, θ)                     moments are updated densely, masked or not      `propose`
    c      = cos(μ, g)                      per block, from exact integer sums              `decide`
    s      = a·s + (1−a)·sigmoid(c/τ)       per block
    k      ~ Bernoulli(p)                   per block, from a counter: f(seed, name, t, block)
    θ      = θ − (lr·w)·Δ where k           w = 1/p (SkipUpdate) or s (Magma)               `write`

`propose` and `write` go parameter by parameter; `decide` takes the blocks of all parameters at once, as one vector.
Everything is pure. The functions that check their arguments are in checked.py.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

from magma_core import bases
from magma_core.alignment import alignment_sums, cosine, update_score
from magma_core.blocks import split
from magma_core.config import Rule
from magma_core.keep import coins, keep_mask
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
        rate = real(lr, xp=xp, device=xp.device(params[0])).flush()
        proposals = [propose(*one, xp=xp) for one in zip(plans, params, grads, states, strict=True)]
        decisions = decide(plans, proposals, step=step, rate=rate)
        results = [write(*one, rate=rate, xp=xp) for one in zip(plans, params, proposals, decisions, strict=True)]
    new_params, new_states, reports = zip(*results, strict=True)
    return list(new_params), list(new_states), list(reports)


class Proposal(NamedTuple):
    """What the base optimizer would do with one parameter."""

    direction: Real  # parameter shape: Δ
    state: State  # with new moments and the old score
    sums: Array | None  # (3, *block shape), if the rule uses scores


class Decision(NamedTuple):
    """What becomes of the blocks of one masked parameter."""

    keep: Array  # block shape, bool
    scale: Real  # block shape or (), lr·w
    cosine: Array | None  # block shape, float32
    score: Array | None  # block shape, float32


def propose(plan: Plan, param: Array, grad: Array, state: State, *, xp: Namespace) -> Proposal:
    """Moments, direction and alignment sums of one parameter (spec sections 4 and 5)."""
    g = real(grad, xp=xp).flush()
    direction, new = bases.advance(g, state, base=plan.base, rule=plan.rule)
    if plan.decays == "masked":
        direction = direction + plan.base.weight_decay * real(param, xp=xp).flush()
    sums = None
    if plan.rule.uses_score:
        mu = new.mu if plan.rule.momentum == "after" else state.mu
        sums = alignment_sums(real(mu, xp=xp), g, plan.blocks)
    return Proposal(direction.flush(), new, sums)


def decide(
    plans: Sequence[Plan],
    proposals: Sequence[Proposal],
    *,
    step: int | Array,
    rate: Real,
) -> list[Decision | None]:
    """Scores, coins and weights of all blocks of all masked parameters, as one vector (spec 5.3 to 7)."""
    xp = rate.xp
    masked = [(plan, proposal) for plan, proposal in zip(plans, proposals, strict=True) if plan.masked]
    if not masked:
        return [None] * len(plans)
    rule = masked[0][0].rule
    if any(plan.rule != rule for plan, _ in masked):
        raise ValueError("plans must share one rule: update parameters of different rules in calls of their own")
    cuts = [plan.blocks for plan, _ in masked]
    c = s = None
    if rule.uses_score:
        sums = xp.concat([xp.reshape(p.sums, (3, plan.blocks.count)) for plan, p in masked], axis=1)
        old = xp.concat([xp.reshape(p.state.score, (plan.blocks.count,)) for plan, p in masked], axis=0)
        c = cosine(sums, xp=xp)
        s = update_score(old, c, rule)
    device = xp.device(proposals[0].direction.array)
    u = coins([plan.key for plan, _ in masked], cuts, step=step, xp=xp, device=device)
    keep = keep_mask(u, rule, s, xp=xp)
    scale = (rate * _weight(rule, s)).flush()

    decisions = map(
        Decision,
        split(keep, cuts, xp=xp),
        [real(x, xp=xp) for x in split(scale.array, cuts, xp=xp)] if len(scale.array.shape) else repeat(scale),
        split(c.array, cuts, xp=xp) if c is not None else repeat(None),
        split(s.array, cuts, xp=xp) if s is not None else repeat(None),
    )
    return [next(decisions) if plan.masked else None for plan in plans]


def write(
    plan: Plan,
    param: Array,
    proposal: Proposal,
    decision: Decision | None,
    *,
    rate: Real,
    xp: Namespace,
) -> tuple[Array, State, Report]:
    """Move the kept blocks; the others keep their bits, but for dense weight decay (spec section 8)."""
    theta, staying, state = real(param, xp=xp), param, proposal.state
    if plan.decays == "dense":
        theta = (theta.flush() * (1.0 - rate * plan.base.weight_decay)).flush()
        staying = theta.astype(param.dtype)
    if decision is None:
        moved = (theta - rate * proposal.direction).flush()
        return moved.astype(param.dtype), state, Report()
    blocks, scale = plan.blocks, decision.scale
    if plan.rule.weight == "score":
        scale = real(blocks.spread(scale.array, xp=xp), xp=xp)
    moved = (theta - scale * proposal.direction).flush()
    keep = blocks.spread(decision.keep, xp=xp)
    report = Report(proposal.sums, decision.cosine, decision.keep)
    if decision.score is not None:
        state = state._replace(score=decision.score)
    return xp.where(keep, moved.astype(param.dtype), staying), state, report


def _weight(rule: Rule, score: Real | None) -> Operand:
    """w: what a kept block's step is multiplied by."""
    if rule.weight == "score":
        assert score is not None
        return score
    if rule.weight == "inverse_p" and round(rule.p * 2**24):
        return 1 / rule.p
    return 1.0  # also for p = 0, where nothing is kept
