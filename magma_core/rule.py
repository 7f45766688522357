"""Algorithm 1 of arXiv 2602.15322: one step of SkipUpdate or Magma. Numbers refer to sections of docs/spec.md.

For each parameter θ, cut into blocks, at step t = 1, 2, …:

    μ, ν  ← base(g)                       every element, masked or not           `advance`   (4, 5)
    c     ← cos(μ, g)                     per block, from exact integer sums     `decide`    (5.3)
    s     ← a·s + (1 − a)·sigmoid(c/τ)    per block                                          (5.5)
    k     ~ Bernoulli(p)                  per block: f(seed, name, t, block)                 (7)
    θ     ← θ − lr·w·Δ  where k           w is 1/p (SkipUpdate) or s (Magma)     `write`     (6, 8)

`advance` and `write` work element by element, on any piece of a parameter; `decide` takes any number of blocks in any
shape. All three are pure. step.py runs them over many parameters. A `Real` rounds every operation once, and its
`flush` makes tiny values 0 (1.2).
"""

from typing import Any, NamedTuple, Protocol, cast

from magma_core import bases
from magma_core.alignment import alignment_sums, cosine, update_score
from magma_core.config import Base, Decay, Rule
from magma_core.hyperparameters import BaseNumbers, RuleNumbers, coin_limit
from magma_core.keep import BlockWords, coins, keep_mask
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Operand, Real, real
from magma_core.plan import Plan
from magma_core.state import State


class Formula(Protocol):
    """The arithmetic of a step, apart from its numbers: a `Plan`, or the key that a compiler specializes on."""

    @property
    def base(self) -> Base: ...
    @property
    def decays(self) -> Decay | None: ...


class Advanced(NamedTuple):
    """One parameter after `advance`."""

    state: State  # new moments, old score
    numbers: BaseNumbers  # of this step, bias corrections included
    sums: Array | None  # (3, *block shape) int64, if the rule uses scores


class Decision(NamedTuple):
    """Per-block decision: keep, scale, cosine, score; all arrays have the shape of the block words."""

    keep: Array  # bool: k
    scale: Real  # lr·w; may have shape ()
    cosine: Array | None  # float32: c
    score: Array | None  # float32: s


def advance(plan: Plan, grad: Array, state: State, *, xp: Namespace) -> Advanced:
    """New moments, and the exact sums that determine the cosine."""
    g = real(grad, xp=xp)
    new, numbers = bases.advance_powers(state, plan.numbers, xp=xp)
    new = bases.advance_moments(g.flush(), new, numbers, base=plan.base)
    if not plan.rule.uses_score:
        return Advanced(new, numbers, None)
    mu = new.mu if plan.rule.momentum == "after" else state.mu
    return Advanced(new, numbers, alignment_sums(real(mu, xp=xp), g, plan.blocks, plan.shard))


def decide(
    rule: Rule, numbers: RuleNumbers, words: BlockWords, sums: Array | None, scores: Array | None, step: Any, rate: Real
) -> Decision:
    """Score every block, toss its coin, weigh its step. ``sums`` is (3, …); the rest has the shape of ``words``.

    ``words`` tells blocks apart: the key of their parameter, and their index. ``rate`` is lr, times ``lr_scale``.
    """
    xp = rate.xp
    c = s = None
    if rule.uses_score:
        c = cosine(sums, xp=xp)
        s = update_score(scores, c, numbers)
    limit = coin_limit(cast(Real, s)) if rule.survival == "score" else numbers.limit
    # u < p·2²⁴ for 24 random bits u
    keep = keep_mask(coins(words, step, xp=xp), limit, xp=xp)
    weights: dict[str, Operand | None] = {"score": s, "inverse_p": numbers.inverse_p, "one": 1.0}
    scale = (rate * cast(Operand, weights[rule.weight])).flush()
    return Decision(keep, scale, None if c is None else c.array, None if s is None else s.array)


def write(
    formula: Formula,
    param: Array,
    grad: Array | None,
    state: State,
    numbers: BaseNumbers,
    scale: Real,
    keep: Array | None,
) -> Array:
    """The new parameter: kept blocks move, the others keep their bits (or decay, if decay is dense).

    ``scale`` and ``keep`` broadcast against θ. ``keep`` is None if every block is kept, ``grad`` if Δ does not use it.
    """
    theta, change = displaced(formula, param, grad, state, numbers, scale)
    new = (theta - change).flush().astype(param.dtype)
    if keep is None:
        return new
    return theta.xp.where(keep, new, theta.astype(param.dtype) if formula.decays == "dense" else param)


def displaced(
    formula: Formula, param: Array | None, grad: Array | None, state: State, numbers: BaseNumbers, scale: Real
) -> tuple[Real, Real]:
    """θ′ (θ after dense decay, if any) and scale·Δ. Without a parameter there must be no decay."""
    xp = scale.xp
    theta = real(grad if param is None else param, xp=xp)
    g = None if grad is None else real(grad, xp=xp).flush()
    delta, decay = bases.direction(g, state, numbers, base=formula.base, xp=xp), numbers.weight_decay
    if formula.decays == "masked":
        delta = _unless_zero(decay, delta + decay * theta.flush(), delta)
    if formula.decays == "dense":
        theta = _unless_zero(decay, (theta.flush() * (1.0 - numbers.rate * decay)).flush(), theta)
    change = scale * delta.flush()
    # a caller may compute θ as a product in the same program; a compiler would contract it with the difference
    return theta.fenced_like(change), change


def _unless_zero(decay: Operand, decayed: Real, plain: Real) -> Real:
    """No decay if λ rounds to 0 (4.5, 8); a Python number decides it ahead of time."""
    return decayed.replace(decay.xp.equal(decay.array, 0.0), plain) if isinstance(decay, Real) else decayed
