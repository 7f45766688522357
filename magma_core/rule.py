"""One step of SkipUpdate or Magma (arXiv 2602.15322, Algorithm 1; docs/spec.md is normative).

For each parameter θ, cut into blocks, at step t = 1, 2, …:

    μ, …   = base(g)                        moments are updated densely, masked or not      `advance`
    c      = cos(μ, g)                      per block, from exact integer sums              `decide`
    s      = a·s + (1−a)·sigmoid(c/τ)       per block
    k      ~ Bernoulli(p)                   per block, from a counter: f(seed, name, t, block)
    θ      = θ − (lr·w)·Δ where k           w = 1/p (SkipUpdate) or s (Magma)               `write`

`advance` and `write` go parameter by parameter, and may go piece by piece: what they do is done element by element,
but for the sums of `magma_core.alignment`, which are those of the pieces, added. `decide` takes any
number of blocks at once, in any shape. What `write` gives may also be had as an update to add, see `Outcome`.
Everything is pure. The functions that check their arguments are in checked.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from magma_core import bases
from magma_core.alignment import alignment_sums, cosine, update_score
from magma_core.bases import Numbers
from magma_core.config import SMALLEST, Base, Decay, Rule
from magma_core.hyperparameters import RuleNumbers, coin_limit
from magma_core.keep import BlockWords, block_index, coins, keep_mask, key_vectors
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
    return step_planned(moved, plans, params, grads, states, step=step, lr=lr, xp=xp)


def step_planned(
    outcome: "Outcome",
    plans: Sequence[Plan],
    params: Sequence[Array | None],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    step: int | Array,
    lr: float | Array,
    xp: Namespace,
    stages: "Stages | None" = None,
) -> tuple[list[Array], list[State], list[Report]]:
    """`update_planned` that gives another outcome than new parameters: `displacement` or `directed`.

    ``stages`` are those of a backend that knows another way to the same bits.
    """
    if not plans:
        return [], [], []
    stages = stages or Stages(advance, finish)
    with xp.scope():
        device = xp.device(grads[0])
        rate = real(lr, xp=xp, device=device).flush()
        advanced = [stages.advance(*one, xp=xp) for one in zip(plans, grads, states, strict=True)]
        decisions = decide_all(plans, advanced, states, step=step, rate=rate, device=device)
        results = [
            _finish(stages, outcome, *one, rate=rate, xp=xp)
            for one in zip(plans, params, grads, advanced, decisions, strict=True)
        ]
    outcomes, new_states, reports = zip(*results, strict=True)
    return list(outcomes), list(new_states), list(reports)


class Stages(NamedTuple):
    """What a step does parameter by parameter: `advance` before, and `finish` after it is decided about blocks."""

    advance: Callable[..., "Advanced"]
    finish: Callable[..., Array]


class Advanced(NamedTuple):
    """One parameter after `advance`."""

    state: State  # with new moments and the old score
    numbers: Numbers  # of this step
    sums: Array | None  # (3, *block shape), if the rule uses scores


class Decision(NamedTuple):
    """What becomes of blocks: of one parameter, or of many; all arrays have the shape of their words."""

    keep: Array  # bool
    scale: Real  # or (), lr·w
    cosine: Array | None  # float32
    score: Array | None  # float32


def advance(plan: Plan, grad: Array, state: State, *, xp: Namespace) -> Advanced:
    """Moments and alignment sums of one parameter (spec sections 4 and 5)."""
    g = real(grad, xp=xp)
    new, numbers = bases.advance_powers(state, plan.numbers, xp=xp)
    new = bases.advance_moments(g.flush(), new, numbers, base=plan.base)
    if not plan.rule.uses_score:
        return Advanced(new, numbers, None)
    mu = new.mu if plan.rule.momentum == "after" else state.mu
    return Advanced(new, numbers, alignment_sums(real(mu, xp=xp), g, plan.blocks, plan.shard))


def decide(
    rule: Rule,
    numbers: RuleNumbers,
    words: BlockWords,
    sums: Array | None,
    scores: Array | None,
    *,
    step: int | Array,
    rate: Real,
) -> Decision:
    """Scores, coins and weights of blocks (spec 5.3 to 7), element by element.

    Args:
        rule: of all of them.
        numbers: of the rule.
        words: of their coins; the other arrays have the shape to which these broadcast.
        sums: (3, …) int64, if the rule uses scores.
        scores: float32, before this step, likewise.
        step: t, of all of them or of each.
        rate: lr, of all of them or of each, flushed.
    """
    xp = rate.xp
    c = s = None
    if rule.uses_score:
        c = cosine(sums, xp=xp)
        s = update_score(scores, c, numbers)
    limit = coin_limit(cast(Real, s)) if rule.survival == "score" else numbers.limit
    keep = keep_mask(coins(words, step, xp=xp), limit, xp=xp)
    scale = (rate * _weight(rule, numbers, s)).flush()
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
    return moved(param, _move(param, grad, state, base, numbers, decays, scale, keep, rate, xp))


class Move(NamedTuple):
    """What is to become of one parameter."""

    theta: Real  # θ′, which is θ but for dense decay
    change: Real  # scale ⊗ Δ
    keep: Array | None  # None if all is kept
    decays: Decay | None


Outcome: TypeAlias = Callable[[Array, Move], Array]
"""What a step gives of a parameter and its move: `moved`, `displacement` or `directed`."""


def moved(param: Array, move: Move) -> Array:
    """The new parameter."""
    theta, change, keep, decays = move
    new = (theta - change).flush().astype(param.dtype)
    if keep is None:
        return new
    return theta.xp.where(keep, new, theta.astype(param.dtype) if decays == "dense" else param)


def displacement(param: Array, move: Move) -> Array:
    """u in float32 such that θ ⊕ u, rounded to the parameter's format, is what `moved` gives.

    θ ⊕ (−x) is θ ⊖ x. Where that is flushed, u is −θ, and where the block is not kept it is −0: θ ⊕ −θ is +0 and
    θ ⊕ −0 is θ, whatever θ and its sign. Two things cannot be had by an addition. A subnormal θ is lost where the
    hardware flushes operands. Dense decay is a rounding of its own: u is then the difference of new and old, which
    gives the new parameter if the two are within a factor of two, and one close to it elsewhere.
    """
    theta, change, keep, decays = move
    xp, new = theta.xp, theta - change
    if decays == "dense":
        new = new.flush() if keep is None else new.flush().replace(xp.logical_not(keep), theta)
        return (new - real(param, xp=xp)).fenced()  # else θ ⊕ (y ⊖ θ) might become y, or not
    u = (-change).replace(abs(new) < SMALLEST, -theta).array
    return u if keep is None else xp.where(keep, u, xp.asarray(-0.0, dtype=xp.float32, device=xp.device(u)))


def directed(param: Array | None, move: Move) -> Array:
    """(lr·w)·k·Δ in float32, for callers that do the rest; dense decay has no place in it."""
    if move.keep is None:
        return move.change.array
    return move.change.replace(move.change.xp.logical_not(move.keep), 0.0).array


def _move(
    param: Array | None,
    grad: Array | None,
    state: State,
    base: Base,
    numbers: Numbers,
    decays: Decay | None,
    scale: Real,
    keep: Array | None,
    rate: Real,
    xp: Namespace,
) -> Move:
    """Spec sections 4 and 8; without a parameter there must be no decay."""
    theta = real(grad if param is None else param, xp=xp)
    g = None if grad is None else real(grad, xp=xp).flush()
    delta = bases.direction(g, state, numbers, base=base, xp=xp)
    if decays == "masked":
        delta = _unless_zero(numbers.weight_decay, delta + numbers.weight_decay * theta.flush(), delta)
    if decays == "dense":
        shrunk = (theta.flush() * (1.0 - rate * numbers.weight_decay)).flush()
        theta = _unless_zero(numbers.weight_decay, shrunk, theta)
    change = scale * delta.flush()
    # a caller may have computed θ in the same program, as a product, which would be contracted with the difference
    return Move(theta.fenced_like(change), change, keep, decays)


def _unless_zero(decay: Operand, decayed: Real, plain: Real) -> Real:
    """There is no decay at all where [λ] is 0 (spec 4.5, 8); of a number this is known before."""
    if not isinstance(decay, Real):
        return decayed
    return decayed.replace(decay.xp.equal(decay.array, 0.0), plain)


def decide_all(
    plans: Sequence[Plan],
    advanced: Sequence[Advanced],
    states: Sequence[State],
    *,
    step: int | Array,
    rate: Real,
    device: Any,
) -> list[Decision | None]:
    """`decide` for all masked parameters, in block shape for each of them.

    Those that are one block each are decided together, as one vector. The others are decided each in its block shape:
    nothing as large as a parameter is joined or reshaped, so that its blocks may be spread over devices.
    """
    decisions: list[Decision | None] = [None] * len(plans)
    masked = [i for i, plan in enumerate(plans) if plan.masked]
    if not masked:
        return decisions
    xp, rule, numbers = rate.xp, plans[masked[0]].rule, plans[masked[0]].rule_numbers
    if any(plans[i].rule != rule for i in masked):
        raise ValueError("plans must share one rule: update parameters of different rules in calls of their own")

    def words(members: Sequence[int], index: Array) -> BlockWords:
        return BlockWords(*key_vectors([plans[i].key for i in members], xp=xp, device=device), index)

    single = [i for i in masked if not plans[i].blocks.axes]
    if single:
        sums = scores = None
        if rule.uses_score:
            sums = xp.stack([cast(Array, advanced[i].sums) for i in single], axis=1)
            scores = xp.stack([cast(Array, states[i].score) for i in single])
        index = xp.asarray(0, dtype=xp.int64, device=device)
        together = decide(rule, numbers, words(single, index), sums, scores, step=step, rate=rate)
        for place, i in enumerate(single):
            decisions[i] = _pick(together, place)
    for i in masked:
        if plans[i].blocks.axes:
            index = block_index(plans[i].blocks, plans[i].shard, xp=xp, device=device)
            decisions[i] = decide(
                rule, numbers, words([i], index), advanced[i].sums, states[i].score, step=step, rate=rate
            )
    return decisions


def _pick(decision: Decision, place: int) -> Decision:
    """One entry of a vector of decisions, in arrays of shape ()."""

    def pick(x: Array | None) -> Array | None:
        return None if x is None else x[place, ...]

    keep, scale, c, s = decision
    return Decision(
        pick(keep), Real(pick(scale.array), xp=scale.xp) if len(scale.array.shape) else scale, pick(c), pick(s)
    )


def finish(
    outcome: Outcome,
    plan: Plan,
    param: Array | None,
    grad: Array,
    state: State,
    numbers: Numbers,
    scale: Real,
    keep: Array | None,
    *,
    rate: Real,
    xp: Namespace,
) -> Array:
    """The outcome for one parameter; arguments are those of `write`, and ``keep`` is None if all is kept."""
    move = _move(param, grad, state, plan.base, numbers, plan.decays, scale, keep, rate, xp)
    return outcome(cast(Array, param), move)


def _finish(
    stages: Stages,
    outcome: Outcome,
    plan: Plan,
    param: Array | None,
    grad: Array,
    advanced: Advanced,
    decision: Decision | None,
    *,
    rate: Real,
    xp: Namespace,
) -> tuple[Array, State, Report]:
    """The outcome for one whole parameter, with what is to be remembered and reported of it."""
    state, blocks, scale, keep, report = advanced.state, plan.blocks, rate, None, Report()
    if decision is not None:
        keep, scale = blocks.spread(decision.keep, xp=xp), decision.scale
        if plan.rule.weight == "score":
            scale = real(blocks.spread(scale.array, xp=xp), xp=xp)
        report = Report(advanced.sums, decision.cosine, decision.keep)
    result = stages.finish(outcome, plan, param, grad, state, advanced.numbers, scale, keep, rate=rate, xp=xp)
    if decision is not None and decision.score is not None:
        state = state._replace(score=decision.score)
    return result, state, report


def _weight(rule: Rule, numbers: RuleNumbers, score: Real | None) -> Operand:
    """w: what a kept block's step is multiplied by."""
    if rule.weight == "score":
        assert score is not None
        return score
    return numbers.inverse_p if rule.weight == "inverse_p" else 1.0
