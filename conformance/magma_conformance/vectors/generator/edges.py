"""Hand-made single steps: mistakes that show only with numbers that nobody would draw.

Each is a step of few elements that depends on one rounding, flush, test or option.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from magma_conformance.task import Task
from magma_conformance.vectors.generator.draws import Draws
from magma_conformance.vectors.generator.parts import Asked
from magma_conformance.wire.hex_arrays import DTYPES
from magma_conformance.wire.task_json import describe_task
from magma_core import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule, damping, dense, magma, skip_update, state_fields
from magma_core.state_file.config import base_to_plain, rule_to_plain

TINY = 2.0**-100
"""The smallest magnitude that `flush` keeps."""

_ONE = [1.0]
_MIXED = [0.1, -0.2, 0.3, 0.0]


def edges(kind: str) -> Iterator[Asked]:
    """The edge cases of one base."""
    yield from _EDGES[kind]()


def unit_factors(kind: str) -> Iterator[Asked]:
    """Steps with 1 − β₂ equal to 1, and β₂ν still some units in the last place of g²."""
    make: dict[str, type[RMSProp | Adam | LaProp]] = {
        "rmsprop": RMSProp,
        "adam": Adam,
        "adamw": AdamW,
        "laprop": LaProp,
    }
    for beta in (2.0**-25, 1e-8) if kind in make else ():
        draws = Draws(f"1 − {beta!r}")
        gradient, nu = ([abs(draws.real(*exponents)) for _ in range(16)] for exponents in ((-3, 1), (0, 6)))
        yield _step(f"β₂ = {beta!r}, so that 1 − β₂ is 1", make[kind](beta2=beta), [1.0] * 16, gradient, nu=nu)


def _sgd() -> Iterator[Asked]:
    plain = SGD(momentum=0.0)
    yield _step("a momentum that decays below 2^-100", SGD(), _ONE, [0.0], mu=[TINY])
    yield _step("a gradient below 2^-100, and a huge rate", plain, _ONE, [TINY / 2], lr=2.0**100)
    yield _step("lr is flushed", plain, _ONE, [2.0**127], lr=1e-40)
    yield _step("an lr just below 2^-100", plain, _ONE, [2.0**110], lr=TINY * 0.75)
    yield _step("the smallest lr that is not flushed", plain, _ONE, [2.0**110], lr=TINY)
    small = damping(tau=0.5, ema=1 - 2.0**-24)  # the score after the first step from 0 is near 2^-24
    yield _step("lr·w is flushed, lr and w are not", plain, _ONE, [2.0**120], lr=2.0**-80, rule=small, s=[0.0])
    yield _step("a new parameter below 2^-100", plain, [2.0**-99], [2.0**-99], lr=0.75)
    for value in (TINY, TINY * (1 - 2.0**-24)):
        yield _step(f"a parameter of {value!r}, and no gradient", plain, [value, -value], [0.0, 0.0])
    yield from _decay()
    yield from _weights()
    yield from _binary16()


def _decay() -> Iterator[Asked]:
    zeros = [0.0, 0.0]
    blocks: dict[str, Any] = {"axes": (0,), "s": [0.5, 0.5], "seed": 1}  # keeps the first block, not the second
    for lr, decay, theta, what in (
        (0.1, 0.5, [TINY * 1.01, -TINY * 1.01], "shrinks below 2^-100"),
        (1e5, 1e5, [TINY / 2, -TINY / 2], "is flushed before it is multiplied"),
        (float(np.float32(1 / 3)), 3.0, [1.0, -3.0], "is multiplied by 1 ⊖ (lr ⊗ [λ]), where lr·λ is nearly 1"),
        (1.0, 1e-40, [TINY / 2, 2.0**-140], "has no decay at all if [λ] is 0"),
    ):
        base, rule = SGD(momentum=0.0, weight_decay=decay), magma(decay="dense")
        comment = f"with dense decay a parameter {what}, in blocks kept and not kept"
        yield _step(comment, base, theta, zeros, lr=lr, rule=rule, **blocks)
    heavy, none = (SGD(momentum=0.0, weight_decay=decay) for decay in (2.0**20, 1e-40))
    yield _step("masked decay of a parameter below 2^-100", heavy, [TINY / 2, -TINY / 2], zeros, lr=2.0**60)
    yield _step("masked decay of an infinite parameter, where [λ] is 0", none, [np.inf, 1.0], zeros)


def _weights() -> Iterator[Asked]:
    plain = SGD(momentum=0.0)
    blocks: dict[str, Any] = {"axes": (0,), "seed": 5}  # for p = 0.5 keeps three of six
    theta, gradient = [1.0] * 6, [0.1] * 6
    for p in (0.13, 0.55, 0.7, 0.05):
        yield _step(f"the weight 1/p of p = {p}", plain, theta, gradient, rule=skip_update(p=p), **blocks)
    unscaled = Rule(survival="p", weight="one", p=0.5)
    yield _step("survival p with the weight one", plain, theta, gradient, rule=unscaled, **blocks)
    for p in (0.3, 0.0, 2.0**-26):
        rule = Rule(survival="score", weight="inverse_p", p=p)
        comment = f"survival by score with the weight 1/p, p = {p!r}"
        yield _step(comment, SGD(), theta, gradient, rule=rule, mu=[0.5] * 6, s=[0.9] * 6, **blocks)


def _binary16() -> Iterator[Asked]:
    plain, smallest = SGD(momentum=0.0), 2.0**-24
    for gradient, what in (
        (-16.0, "65520 is halfway and becomes infinite"),
        (-24.0, "65528 becomes infinite"),
        (-8.0, "65512 does not"),
    ):
        theta = [65504.0, -65504.0]
        yield _step(f"binary16: {what}", plain, theta, [gradient, -gradient], lr=1.0, format="float16")
    for theta, lr, what in (
        ([8 * smallest, -5 * smallest], 2.5, "subnormal results"),
        ([smallest, -smallest], 0.75, "results that round to zeros of either sign"),
    ):
        yield _step(f"binary16: {what}", plain, theta, [smallest, -smallest], lr=lr, format="float16")


def _rmsprop() -> Iterator[Asked]:
    base = RMSProp()
    yield _step("a second moment that decays below 2^-100", base, _ONE, [0.0], nu=[TINY])
    extra: dict[str, Any] = {"rule": magma(), "mu": [TINY], "nu": _ONE, "s": [0.5]}
    yield _step("an extra average that decays below 2^-100", base, _ONE, [0.0], **extra)
    yield _step("no second moment: a quotient by ε", base, _ONE, [TINY], nu=[0.0], lr=2.0**60)
    yield _step("a direction below 2^-100", base, _ONE, [2.0**-90], nu=[2.0**40], lr=2.0**118)


def _adam(make: type[Adam] | type[LaProp]) -> Iterator[Asked]:
    base, half = make(), (0.5, 0.5)
    yield _step("running products that decay below 2^-100", base, _ONE, [0.5], powers=(TINY, TINY))
    yield _step("running products of 0", base, _ONE, [0.5], powers=(0.0, 0.0))
    small: dict[str, Any] = {"nu": [2.0**-60], "powers": half, "lr": 2.0**70}
    yield _step("a first moment that decays below 2^-100", base, _ONE, [0.0], mu=[TINY], **small)
    yield _step("a second moment that decays below 2^-100", base, _ONE, [0.0], mu=[2.0**-60], nu=[TINY], powers=half)
    direction: dict[str, Any] = {"mu": [2.0**-99 if make is LaProp else 2.0**-90], "nu": [2.0**40]}
    yield _step("a direction about or below 2^-100", base, _ONE, [0.0], powers=half, lr=2.0**118, **direction)
    for s0 in (0.0, 0.3, 1.0):
        fresh: dict[str, Any] = {"rule": magma(initial_score=s0), "axes": (0,), "seed": 5}
        yield _step(f"the first step, from scores of {s0}", base, [1.0] * 4, _MIXED, **fresh)
    for beta, what in ((0.0, "decay rates of 0"), (1 - 2.0**-24, "the largest decay rates")):
        yield _step(what, make(beta1=beta, beta2=beta), [1.0] * 4, _MIXED)


def _step(
    comment: str,
    base: Base,
    theta: Sequence[float],
    gradient: Sequence[float],
    *,
    lr: float = 0.1,
    rule: Rule | None = None,
    axes: tuple[int, ...] | None = None,
    mu: Sequence[float] = (),
    nu: Sequence[float] = (),
    powers: tuple[float, float] | None = None,
    s: Sequence[float] = (),
    format: str = "float32",
    seed: int = 0,
) -> Asked:
    """One step of a vector "w": not masked without a rule, one block with a rule but no axes.

    It starts from the initial state, or from one with the given ``mu``, ``nu``, ``powers`` and ``s``, and zeros.
    """
    own = axes if axes is not None or rule is None else ()
    made = rule or dense()
    state: dict[str, object] = {}
    if mu or nu or s or powers:
        zeros, (first, second) = [0.0] * len(theta), powers or (1.0, 1.0)
        given = {"mu": mu or zeros, "nu": nu or zeros, "mu_power": first, "nu_power": second}
        state = {field: given[field] for field in state_fields(base, made if own is not None else dense())}
        if s:
            state["score"] = s if own else s[0]
    task = Task(
        key="",
        params={"w": np.array(theta, np.float32).astype(DTYPES[format])},
        gradients=[{"w": np.array(gradient, np.float32).astype(DTYPES[format])}],
        learning_rates=[lr],
        base=base_to_plain(base),
        rule=rule_to_plain(made),
        block_axes={"w": own},
        seed=seed,
        state={f"w/{field}": np.array(x, np.float32) for field, x in state.items()} or None,
    )
    return Asked(comment, "steps", describe_task(task))


_EDGES: dict[str, Callable[[], Iterator[Asked]]] = {
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "adam": lambda: _adam(Adam),
    "adamw": lambda: _adam(AdamW),
    "laprop": lambda: _adam(LaProp),
}
