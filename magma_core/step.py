"""One step over many parameters: advance each, decide all blocks, write each."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from magma_core.config import LR_SCALE
from magma_core.hyperparameters import masked_rate
from magma_core.keep import BlockWords, block_index, key_vectors
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real, real
from magma_core.plan import Plan
from magma_core.rule import Advanced, Decision, advance, decide, write
from magma_core.state import Report, State

Advance: TypeAlias = Callable[..., Advanced]
Write: TypeAlias = Callable[..., Array]


def update_planned(
    plans: Sequence[Plan],
    params: Sequence[Any],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    step: int | Array,
    lr: float | Array,
    lr_scale: float | Array = LR_SCALE,
    xp: Namespace,
    advance: Advance = advance,
    write: Write = write,
) -> tuple[list[Array], list[State], list[Report]]:
    """`update_all` without validation, for callers that reuse the plans of `plan_all`; trace this function.

    A backend may pass its own ``advance`` or ``write``, with the signatures of `magma_core.rule`, to compute the same
    bits faster or to return something other than parameters.
    """
    if not plans:
        return [], [], []
    with xp.scope():
        device = xp.device(grads[0])
        rate = real(lr, xp=xp, device=device).flush()
        masked = masked_rate(rate, lr_scale)
        advanced = [advance(*one, xp=xp) for one in zip(plans, grads, states, strict=True)]
        decisions = decide_all(plans, advanced, states, step=step, rate=masked, device=device)
        results = [
            _write_one(write, *one, masked if one[0].masked else rate)
            for one in zip(plans, params, grads, advanced, decisions, strict=True)
        ]
    written, new_states, reports = zip(*results, strict=True)
    return list(written), list(new_states), list(reports)


def decide_all(
    plans: Sequence[Plan],
    advanced: Sequence[Advanced],
    states: Sequence[State],
    *,
    step: int | Array,
    rate: Real,
    device: Any,
) -> list[Decision | None]:
    """`decide` for all masked parameters, in block shape; None for the others. ``rate`` is the masked rate.

    Single-block parameters are decided together, as one vector. The rest are decided one by one in block shape: no
    parameter-sized array is joined or reshaped, so blocks may be sharded.
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
        together = decide(rule, numbers, words(single, index), sums, scores, step, rate)
        for place, i in enumerate(single):
            decisions[i] = _entry(together, place)
    for i in masked:
        if plans[i].blocks.axes:
            index = block_index(plans[i].blocks, plans[i].shard, xp=xp, device=device)
            decisions[i] = decide(rule, numbers, words([i], index), advanced[i].sums, states[i].score, step, rate)
    return decisions


def _entry(decision: Decision, place: int) -> Decision:
    """One entry of a vector of decisions, in arrays of shape ()."""

    def pick(x: Array | None) -> Array | None:
        return None if x is None else x[place, ...]

    keep, scale, c, s = decision
    one = Real(pick(scale.array), xp=scale.xp) if len(scale.array.shape) else scale
    return Decision(cast(Array, pick(keep)), one, pick(c), pick(s))


def _write_one(
    write: Write, plan: Plan, param: Array, grad: Array, advanced: Advanced, decision: Decision | None, rate: Real
) -> tuple[Array, State, Report]:
    """The result for one whole parameter, with its new state and report."""
    xp, state, numbers = rate.xp, advanced.state, advanced.numbers._replace(rate=rate)
    if decision is None:
        return write(plan, param, grad, state, numbers, rate, None), state, Report()
    keep, scale = plan.blocks.spread(decision.keep, xp=xp), decision.scale
    if plan.rule.weight == "score":
        scale = real(plan.blocks.spread(scale.array, xp=xp), xp=xp)
    written = write(plan, param, grad, state, numbers, scale, keep)
    if decision.score is not None:
        state = state._replace(score=decision.score)
    return written, state, Report(advanced.sums, decision.cosine, decision.keep)
