"""Whole steps in compiled modes with numbers of the rule that are exactly 0, 1, −1 or a power of two in binary32.

A compiler then removes operations, such as 1·x and x·2·0.5, or might believe that it can, such as 0·x. The operations
that they separated become adjacent. All configurations of a mode form one program, in which every number is a constant.
"""

from typing import Any

import numpy as np
import pytest
from fence_tasks import mode
from magma_conformance.bits import assert_bits_equal
from magma_conformance.implementations.modes import Mode
from stacked_fences import MODES, XLA, opened, xor_fence

from magma_core import (
    SGD,
    Adam,
    AdamW,
    Base,
    LaProp,
    RMSProp,
    Rule,
    State,
    damping,
    dense,
    init,
    magma,
    numerics,
    plan_all,
    score_survival,
    skip_update,
    update_planned,
)
from magma_core.config import LARGEST_BETA

ABOVE_0 = 2.0**-25
"""The largest number that leaves 1 of 1 − x in binary32."""

CASES: dict[str, tuple[Base, Rule, float]] = {
    "β = 0: 0·μ + g, g + 0·μ; λ = 1: Δ + 1·θ; τ = 1: 1·c; a = 0: 0·s + 1·σ; lr = 1: 1·s": (
        SGD(momentum=0.0, nesterov=True, weight_decay=1.0),
        magma(tau=1.0, ema=0.0),
        1.0,
    ),
    "β above 0: tiny·μ + g; p below 1 that keeps all, 1/p = 1; lr = 2": (
        SGD(momentum=ABOVE_0),
        skip_update(p=1 - ABOVE_0),
        2.0,
    ),
    "p above 0 that keeps nothing: 1/p is 1; lr = 0: 0·Δ": (SGD(momentum=0.5), skip_update(p=1e-9), 0.0),
    "β = 0: 0·ν + 1·g², 0·μ + 1·g; ε = 1; dense λ = 1, lr = 1: θ·(1 − 1) = θ·0; s₀ = 0": (
        RMSProp(beta2=0.0, momentum=0.0, eps=1.0, weight_decay=1.0),
        magma(p=1.0, ema=0.5, initial_score=0.0, decay="dense"),
        1.0,
    ),
    "β above 0: tiny·ν + 1·g²; a above 0: tiny·s + 1·σ; τ = 1/2: 2·c; s₀ = 1; ε = 2^-100": (
        RMSProp(beta2=1e-8, momentum=1e-8, eps=2.0**-100),
        magma(tau=0.5, ema=ABOVE_0, initial_score=1.0),
        0.125,
    ),
    "β = 0, so 1/(1 − 0) = 1: 1·μ, 1·ν; dense λ = 1, lr = 2: θ·(1 − 2) = θ·−1": (
        AdamW(beta1=0.0, beta2=0.0, weight_decay=1.0),
        score_survival(ema=0.0, decay="dense"),
        2.0,
    ),
    "β above 0: tiny·μ + 1·g, tiny·ν + 1·g²; dense λ·lr tiny: θ·1; damping, τ = 2^-100: 2^100·c": (
        AdamW(beta1=ABOVE_0, beta2=ABOVE_0, weight_decay=2.0**-30),
        damping(tau=2.0**-100, decay="dense"),
        0.25,
    ),
    "β = 1/2: ½·μ + ½·g, ½·ν + ½·g²; p = 1/2: 1/p = 2": (Adam(beta1=0.5, beta2=0.5), skip_update(), 0.5),
    "the largest β: 1 − β = 2^-24; the largest a": (
        Adam(beta1=LARGEST_BETA, beta2=LARGEST_BETA),
        magma(ema=LARGEST_BETA),
        1.0,
    ),
    "β above 0; masked λ = 2: Δ + 2·θ; w = 1: 1·lr": (
        LaProp(beta1=ABOVE_0, beta2=ABOVE_0, eps=1.0, weight_decay=2.0),
        dense(),
        1.0,
    ),
}
"""By the edges that each hits: base, rule, learning rate."""

FOR_INDUCTOR = [name for name, (_, rule, _) in CASES.items() if not rule.uses_score]
"""Scores take it ten seconds each, and it contracts nothing on the CPU."""

SHAPE = (8, 48)


def gradients() -> list[np.ndarray]:
    """Ordinary ones, then zeros of both signs and tiny numbers, then some that are not finite: 0·∞ is not 0."""
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(SHAPE, dtype=np.float32) for _ in range(4)]
    grads[1][:, :4] = [0.0, -0.0, 1e-35, -1e-40]
    grads[2][0, 0], grads[2][1, 1], grads[2][2, 2] = np.nan, np.inf, -np.inf
    grads[2][3], grads[2][4] = 0.0, -0.0
    return grads


def run(m: Mode, names: list[str]) -> list[dict[str, np.ndarray]]:
    """What every step gives, by case and array."""
    start = m.put(np.random.default_rng(1).standard_normal(SHAPE, dtype=np.float32))
    plans, states = {}, {}
    for name in names:
        base, rule, _ = CASES[name]
        options: dict[str, Any] = {"base": base, "rule": rule, "xp": m.xp}
        plans[name] = plan_all([start], names=[name], seed=3, block_axes={name: (0,)}, **options)
        states[name] = init(start, block_axes=(0,), name=name, **options)
    fields = {name: [field for field, x in states[name]._asdict().items() if x is not None] for name in names}

    def program(step: Any, grad: Any, *flat: Any) -> tuple[Any, ...]:
        given, made = iter(flat), []
        for name in names:
            param, state = next(given), State(**{field: next(given) for field in fields[name]})
            params, states, _ = update_planned(
                plans[name], [param], [grad], [state], step=step, lr=CASES[name][2], xp=m.xp
            )
            made += [params[0], *(getattr(states[0], field) for field in fields[name])]
        return tuple(made)

    compiled, history = m.compile(program), []
    labels = [f"{name}: {field}" for name in names for field in ("param", *fields[name])]
    arrays = [x for name in names for x in (start, *(getattr(states[name], field) for field in fields[name]))]
    for step, grad in enumerate(gradients(), 1):
        with m.xp.scope():
            arrays = list(compiled(m.put(np.asarray(step, np.int32)), m.put(grad), *arrays))
        history.append({label: m.get(x) for label, x in zip(labels, arrays, strict=True)})
    return history


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own, from Inductor's imports
@pytest.mark.parametrize("where", MODES, ids=" ".join)
def test_steps_are_those_of_numpy(where: tuple[str, str]) -> None:
    m = opened(where)
    names = FOR_INDUCTOR if m.backend == "torch" else list(CASES)
    for step, (actual, expected) in enumerate(zip(run(m, names), run(mode("numpy", "eager"), names), strict=True), 1):
        for label, x in expected.items():
            assert_bits_equal(actual[label], x, f"{label} after step {step}")


@pytest.mark.parametrize("where", XLA, ids=" ".join)
def test_the_xor_fails_where_a_factor_is_1(monkeypatch: pytest.MonkeyPatch, where: tuple[str, str]) -> None:
    monkeypatch.setattr(numerics, "fence", xor_fence)
    names = [name for name, (base, *_) in CASES.items() if 0 < getattr(base, "beta2", 0) <= ABOVE_0]
    actual, expected = (run(m, names)[1] for m in (mode(*where), mode("numpy", "eager")))
    different = {label for label, x in expected.items() if (actual[label].view(np.int32) != x.view(np.int32)).any()}
    assert {label.rpartition(": ")[0] for label in different if label.endswith(": nu")} == set(names)
