"""Questions about whole steps: single ones of every base from their own state, and trajectories from the start."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from magma_conformance.task import Record, Task
from magma_conformance.vectors import oracle
from magma_conformance.vectors.generator.answers import STATE_NAMES, oracle_rule
from magma_conformance.vectors.generator.draws import VALUES, Draws, values
from magma_conformance.vectors.generator.edges import edges
from magma_conformance.vectors.generator.parts import Asked
from magma_conformance.wire.hex_arrays import DTYPES
from magma_conformance.wire.task_json import describe_task
from magma_core import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule, damping, dense, magma, score_survival, skip_update
from magma_core.state_file.config import base_to_plain, rule_to_plain

Axes: TypeAlias = tuple[int, ...] | None

BASES: dict[str, list[Base]] = {
    "sgd": [SGD(weight_decay=0.01), SGD(momentum=0.5, nesterov=True), SGD(momentum=0.0)],
    "rmsprop": [RMSProp(), RMSProp(beta2=0.9, eps=1e-3, momentum=0.0, weight_decay=0.1)],
    "adam": [Adam(), Adam(beta1=0.0, beta2=0.5, eps=1e-20)],
    "adamw": [AdamW(), AdamW(beta1=0.7, beta2=0.95, eps=1e-6, weight_decay=0.1)],
    "laprop": [LaProp(), LaProp(beta1=0.5, beta2=0.95, eps=1e-12, weight_decay=0.05)],
}
"""The configurations in the vectors, by kind."""

_RULES: dict[str, Callable[..., Rule]] = {
    "dense": dense,
    "SkipUpdate": skip_update,
    "Magma": magma,
    "damping": damping,
    "score survival": score_survival,
    "score survival, damped": lambda **options: score_survival(damped=True, **options),
}
_BLOCKS: dict[str, Axes] = {
    "one block": (),
    "a block for each row": (0,),
    "a block for each column": (1,),
    "a block for each element, columns first": (1, 0),
    "not masked": None,
}
_LEVELS = ["ordinary values", "tiny and subnormal values", "values over sixty orders of magnitude"]
"""Levels of the moments in a state."""

_LAYOUTS: list[dict[str, tuple[tuple[int, ...], Axes]]] = [
    {"layers.0.w": ((4, 5), (0,)), "layers.0.norm": ((5,), None), "head": ((3, 5), ())},
    {"stack": ((2, 3, 4), (0,)), "experts": ((2, 3, 4), (2, 0)), "scalar": ((), ())},
    {"rows": ((6, 3), (0,)), "columns": ((6, 3), (1,)), "elements": ((2, 2), (0, 1)), "empty": ((0, 4), (1,))},
]


def singles(kind: str) -> Iterator[Asked]:
    """Steps of one base: every kind of gradient, ordinary ones often."""
    for number, what in enumerate([*VALUES, *_LEVELS * 4]):
        yield single(f"{kind} {number}", kind, what)
    yield from edges(kind)
    if kind == "sgd":
        yield from ties()


def ties() -> Iterator[Asked]:
    """Parameters halfway between two numbers of their format: 1 − ε/4 rounds to 1, 1 − 3ε/4 to 1 − ε."""
    for format, unit in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
        for steps in (1, 3):
            task = Task(
                key="",
                params={"w": np.array([1.0, -1.0, 1.0 + 4 * unit, 1.0 - 2 * unit]).astype(DTYPES[format])},
                gradients=[{"w": np.array([1.0, -1.0, 2.0, 1.0]).astype(DTYPES[format])}],
                learning_rates=[steps * unit / 2],
                base=base_to_plain(SGD(momentum=0.0)),
                rule=rule_to_plain(dense()),
                block_axes={"w": None},
                seed=0,
            )
            yield Asked(f"dense, {format}: new parameters halfway between two numbers", "steps", describe_task(task))


def single(label: str, kind: str, what: str) -> Asked:
    """A step from a state with gradients of ``what``; the rest is drawn."""
    draws, shape = Draws(label), (3, 4)
    base, name, blocks = draws.one_of(BASES[kind]), draws.one_of([*_RULES]), draws.one_of([*_BLOCKS])
    format, level = draws.one_of(_FORMATS), draws.one_of(_LEVELS)
    t, axes = draws.one_of([1, 2, 10, 1000, 2**32 - 1]), _BLOCKS[blocks]
    rule = _rule(name, draws)
    task = Task(
        key="",
        params={"w": _array(draws.one_of([what, "ordinary values"]), shape, format, draws)},
        gradients=[{"w": _array(what, shape, format, draws)}],
        learning_rates=[abs(draws.real(-14, 0))],
        base=base_to_plain(base),
        rule=rule_to_plain(rule),
        block_axes={"w": axes},
        seed=draws.word(),
        first_step=t,
        state=_state(base, rule, shape, axes, t, level, draws),
    )
    return Asked(f"{name}, {blocks}, {format}, step {t}: {what}; moments of {level}", "steps", describe_task(task))


def trajectories() -> Iterator[Asked]:
    """Runs from the initial state."""
    for number in range(15):
        yield trajectory(f"trajectory {number}", [*BASES][number % 5], poison=number % 3 == 0)


def trajectory(label: str, kind: str, *, poison: bool = False) -> Asked:
    """A few steps of several parameters with various masks or none; with ``poison``, infinities at the end."""
    draws = Draws(label)
    base, name = draws.one_of(BASES[kind]), draws.one_of([*_RULES])
    format, layout = draws.one_of(_FORMATS), draws.one_of(_LAYOUTS)
    finite = [what for what in VALUES if what not in ("infinities and NaNs", "values whose squares overflow")]
    kinds = [draws.one_of(finite) for _ in range(5)] + ["infinities and NaNs", "ordinary values"] * poison

    def arrays(what: str) -> dict[str, np.ndarray]:
        return {parameter: _array(what, shape, format, draws) for parameter, (shape, _) in layout.items()}

    task = Task(
        key="",
        params=arrays("ordinary values"),
        gradients=[arrays(what) for what in kinds],
        learning_rates=[abs(draws.real(-10, -1)) for _ in kinds],
        base=base_to_plain(base),
        rule=rule_to_plain(_rule(name, draws)),
        block_axes={parameter: axes for parameter, (_, axes) in layout.items()},
        seed=draws.word() << 32 | draws.word(),
    )
    comment = f"{name} over {kind}, {format}, {len(kinds)} steps of {', '.join(layout)}"
    return Asked(comment, "steps", describe_task(task))


_FORMATS = ("float32", "float32", "bfloat16", "float16")


def _rule(name: str, draws: Draws) -> Rule:
    options: dict[str, Any] = {"decay": draws.one_of(["masked", "masked", "dense"])}
    if name in ("SkipUpdate", "Magma"):
        options["p"] = draws.one_of([0.5, 0.3, 0.13, 0.55])
    if _RULES[name]().uses_score:
        options["initial_score"] = draws.one_of([0.5, 0.0, 0.3, 1.0])
    if _RULES[name]().uses_score and draws.word() & 1:
        options |= {"momentum": "before", "tau": 0.05, "ema": 0.5}
    return _RULES[name](**options)


def _state(base: Base, rule: Rule, shape: Sequence[int], axes: Axes, t: int, level: str, draws: Draws) -> Record:
    """A state before step ``t`` with moments of ``level``."""
    plain = base_to_plain(base)
    own = oracle.init(shape=shape, block_axes=axes, base=plain, rule=oracle_rule(rule_to_plain(rule)))
    state: Record = {}
    for field, name in STATE_NAMES.items():
        if name not in own:
            continue
        if field in ("mu", "nu"):
            drawn = [oracle.flush(x) for x in values(level, math.prod(shape), "float32", draws)]
            if field == "nu":  # an average of squares
                drawn = [oracle.flush(oracle.mul(x, x)) for x in drawn]
            state[f"w/{field}"] = np.array(drawn, np.float32).reshape(tuple(shape))
        elif field == "score":
            score = np.array([abs(draws.real(-3, -1)) for _ in own[name]], np.float32)
            state["w/score"] = score.reshape([shape[axis] for axis in axes or ()])
        else:
            beta, product = oracle.const(float(plain["beta1" if field == "mu_power" else "beta2"])), 1.0
            for _ in range(min(t - 1, 1000)):
                product = oracle.flush(oracle.mul(product, beta))
            state[f"w/{field}"] = np.array(product, np.float32)
    return state


def _array(kind: str, shape: Sequence[int], format: str, draws: Draws) -> np.ndarray:
    made = values(kind, math.prod(shape), format, draws)
    return np.array(made, np.float64).astype(np.float32).astype(DTYPES[format]).reshape(tuple(shape))


def more(file: str) -> Iterator[Asked]:
    """More questions for a file, without end; the generator takes those that a hazard changes."""
    for number in itertools.count():
        if file == "trajectories":
            yield trajectory(f"more trajectories {number}", [*BASES][number % 5])
        else:
            yield single(f"more {file} {number}", file, [*VALUES][number % len(VALUES)])
