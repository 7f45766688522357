"""Steps with a separate learning rate for masked parameters, by the core on NumPy.

The core does not see ``lr_scale``: each parameter gets the rate that docs/spec.md, 1.3, gives it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from magma_numpy import namespace as xp

import magma_core
from magma_core import SGD, AdamW, Base, RMSProp, Rule, magma, score_survival
from magma_core import skip_update as skip

Arrays = dict[str, np.ndarray]

LR_SCALE = 2.5
RATES = [0.01, 0.03, 0.02, 0.003]
"""Of the steps, as a schedule gives them. The product of the binary64 numbers has other bits for each."""

AXES: dict[str, Any] = {"rows": (0,), "whole": (), "plain": None}
SHAPES = {"rows": (4, 3), "whole": (5,), "plain": (5,)}

CASES = [
    (AdamW(weight_decay=0.1), magma()),
    (AdamW(weight_decay=0.1), magma(decay="dense")),
    (SGD(nesterov=True, weight_decay=0.1), skip(p=0.3)),
    (RMSProp(), score_survival()),
]
every_case = pytest.mark.parametrize(("base", "rule"), CASES, ids=["magma", "dense decay", "skip", "score survival"])

BAD = [0.0, -1.0, 2.0**-101, float("inf"), float("nan"), 1e39, "2", None, True]
every_bad_one = pytest.mark.parametrize("bad", BAD, ids=repr)


def start() -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(step: int) -> Arrays:
    rng = np.random.default_rng(step)
    return {
        name: np.ldexp(rng.normal(size=shape), rng.integers(-8, 2, shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def rate(name: str, lr: float) -> float:
    """[lr], or [lr] ⊗ [lr_scale]."""
    product = np.float32(lr) * np.float32(LR_SCALE)
    assert product != np.float32(lr * LR_SCALE)
    return float(np.float32(lr) if AXES[name] is None else product)


def expected(base: Base, rule: Rule) -> Iterator[tuple[int, float, Arrays, Arrays]]:
    """For each step its number, learning rate and gradients, and the parameters after it."""
    params, options = start(), {"base": base, "rule": rule, "xp": xp}
    states = {name: magma_core.init(x, block_axes=AXES[name], **options) for name, x in params.items()}
    for step, lr in enumerate(RATES, 1):
        grads = gradients(step)
        for name, axes in AXES.items():
            options |= {"name": name, "step": step, "lr": rate(name, lr), "block_axes": axes, "seed": 0}
            params[name], states[name], _ = magma_core.update(params[name], grads[name], states[name], **options)
        yield step, lr, grads, dict(params)
