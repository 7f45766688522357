"""The problems of test_sharding.py, solved by NumPy and by eight devices, and the observations of each step."""

import functools
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from magma_conformance.cases.inputs import FORMATS, KINDS, POISON, make, make_mixture
from magma_numpy import namespace as xp

from magma_core import (
    SGD,
    Adam,
    AdamW,
    Base,
    LaProp,
    RMSProp,
    Rule,
    damping,
    init,
    magma,
    score_survival,
    skip_update,
    update_all,
)

STEPS = 4
RATE, SEED = 0.05, 11
DEVICES = 8

Record = dict[str, np.ndarray]

# Shape and block axes. A device's part of a leaf is larger than three numbers for each of its blocks and each device,
# so that the size of a collective tells one from the other. Element-wise blocks have to do without any.
LEAVES: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "whole": ((32, 64), ()),
    "rows": ((8, 256), (0,)),
    "columns": ((256, 8), (1,)),
    "crossed": ((64, 32), (1, 0)),
    "elements": ((32, 64), (0, 1)),
    "experts": ((8, 16, 16), (0,)),
    "stack": ((8, 16, 16), (0,)),
    "heads": ((2, 512, 4), (2, 0)),
    "bias": ((2048,), (0,)),
    "norm": ((2048,), ()),
    "scalar": ((), ()),
    "dense": ((64, 32), None),
}
UNEVEN: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "uneven whole": ((5, 7), ()),
    "uneven columns": ((9, 3), (1,)),
    "uneven crossed": ((9, 3), (1, 0)),
}
ALL = LEAVES | UNEVEN
AXES = {name: axes for name, (_, axes) in ALL.items()}


@dataclass(frozen=True)
class Problem:
    """What all runs of it agree on."""

    rule: Rule
    base: Base
    fmt: str = "float32"
    way: str = "step"  # or "update", with an addition
    short: bool = False  # gradients are finite and have eight bits, so that a sum over devices is exact


PROBLEMS = {
    "adamw": Problem(magma(), AdamW(weight_decay=0.1)),
    "sgd": Problem(skip_update(p=0.3, decay="dense"), SGD(nesterov=True, weight_decay=0.05)),
    "rmsprop": Problem(score_survival(damped=True), RMSProp()),
    "laprop": Problem(magma(momentum="before", decay="dense", p=0.7), LaProp(weight_decay=0.1)),
    "adam": Problem(score_survival(damped=True, tau=0.5), Adam()),
    "bfloat16": Problem(magma(tau=0.5), AdamW(), "bfloat16"),
    "updates": Problem(magma(p=0.6), AdamW(), way="update"),
    "bfloat16 updates": Problem(damping(), SGD(), "bfloat16", way="update"),
    "skip updates": Problem(skip_update(), Adam(), way="update"),
    "averaged": Problem(magma(), AdamW(), short=True),
}


def start(problem: Problem, name: str) -> np.ndarray:
    """A parameter before the first step."""
    values = make_mixture(ALL[name][0], problem.fmt, np.random.default_rng(zlib.crc32(name.encode())))
    if problem.way == "update":  # an addition may lose subnormals, see `magma_jax.by_rule`
        values = np.where(np.abs(values) < 2.0**-126, np.zeros_like(values), values)
    return values


def gradient(problem: Problem, name: str, step: int) -> np.ndarray:
    """The gradient of a parameter at a step: of another kind for each, at last also of what is not finite."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {step}".encode()))
    finite = [kind for kind in KINDS if kind not in POISON]
    turn = list(ALL).index(name) + 2 * step
    kind = [*POISON, "wide"][turn % 3] if step == STEPS and not problem.short else finite[turn % len(finite)]
    return make(kind, ALL[name][0], "bfloat16" if problem.short else problem.fmt, rng).astype(FORMATS[problem.fmt])


@functools.cache
def reference(problem_name: str, names: tuple[str, ...]) -> list[Record]:
    """What magma_core on NumPy sees at every step."""
    problem = PROBLEMS[problem_name]
    options: dict[str, Any] = {"base": problem.base, "rule": problem.rule, "xp": xp}
    params = [start(problem, name) for name in names]
    states = [init(x, block_axes=AXES[name], **options) for x, name in zip(params, names, strict=True)]
    records = []
    for step in range(1, STEPS + 1):
        grads = [gradient(problem, name, step) for name in names]
        with np.errstate(all="ignore"):
            params, states, reports = update_all(
                params, grads, states, names=names, step=step, lr=RATE, seed=SEED, block_axes=AXES, **options
            )
        found: dict[str, Any] = {"count": np.int32(step)}
        for name, param, state, report in zip(names, params, states, reports, strict=True):
            found |= {field: getattr(state, field) for field in ("mu_power", "nu_power")}
            found |= {f"{name}/{field}": getattr(state, field) for field in ("mu", "nu", "score")}
            found |= {f"{name}/param": param, f"{name}/seen score": state.score}
            found |= {f"{name}/seen {field}": x for field, x in report._asdict().items()}
        records.append({key: np.asarray(x) for key, x in found.items() if x is not None})
    return records
