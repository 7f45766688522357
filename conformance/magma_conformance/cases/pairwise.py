"""The synthetic cases: combinations of options, each run on a trajectory of hard values."""

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from allpairspy import AllPairs

from magma_conformance.cases import inputs
from magma_conformance.task import Task
from magma_core import (
    SGD,
    Adam,
    AdamW,
    Axes,
    Base,
    LaProp,
    RMSProp,
    Rule,
    config,
    damping,
    dense,
    magma,
    score_survival,
    skip_update,
)
from magma_core.state_file.config import base_to_plain, rule_to_plain

BASES: dict[str, Base] = {name: kind() for name, kind in config.BASES.items()}
OTHER_BASES: dict[str, Base] = {
    "sgd": SGD(momentum=0.5, nesterov=True),
    "rmsprop": RMSProp(beta2=0.9, eps=1e-3, momentum=0.0),
    "adam": Adam(beta1=0.0, beta2=0.5, eps=1e-20),
    "adamw": AdamW(beta1=0.7, beta2=0.95, eps=1e-6),
    "laprop": LaProp(beta1=0.5, beta2=0.95, eps=1e-12),
}
RULES: dict[str, Rule] = {
    "dense": dense(),
    "skip-update": skip_update(),
    "magma": magma(),
    "damping": damping(),
    "survival": score_survival(),
    "survival-damped": score_survival(damped=True),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "empty": (3, 0),
    "vector": (37,),
    "matrix": (12, 20),
    "stack": (3, 5, 7),
}
FACTORS: dict[str, list[str]] = {
    "base": list(BASES),
    "rule": list(RULES),
    "shape": list(SHAPES),
    "blocks": ["tensor", "rows", "columns", "elements", "reversed"],
    "format": list(inputs.FORMATS),
    "start": ["s0=0.5", "s0=0", "s0=1"],
    "momentum": ["after", "before"],
    "decay": ["none", "masked", "dense"],
    "options": ["default", "other"],
}


@dataclass(frozen=True)
class Case:
    """One combination of options; ``id`` names it and seeds its values."""

    base: str
    rule: str
    shape: str
    blocks: str
    format: str
    start: str
    momentum: str
    decay: str
    options: str

    @property
    def id(self) -> str:
        return "/".join(getattr(self, factor) for factor in FACTORS)

    @property
    def column(self) -> str:
        """Its column in the matrix."""
        return self.base

    def task(self) -> Task:
        """Twelve steps: each finite kind of gradient once, in an order of the case's own; then the kinds that leave
        infinities and NaNs; then an ordinary one."""
        rng = np.random.default_rng(zlib.crc32(self.id.encode()))
        shape = SHAPES[self.shape]
        kinds = list(rng.permutation([kind for kind in inputs.KINDS if kind not in inputs.POISON]))
        kinds += [*inputs.POISON, "normal"]
        return Task(
            key=self.id,
            params={"w": inputs.make_mixture(shape, self.format, rng)},
            gradients=[{"w": inputs.make(kind, shape, self.format, rng)} for kind in kinds],
            learning_rates=[float(10 ** rng.uniform(-4, 0)) for _ in kinds],
            base=base_to_plain(self._base()),
            rule=rule_to_plain(self._rule()),
            block_axes={"w": self._block_axes(len(shape))},
            seed=int(rng.integers(2**63)),
        )

    def _base(self) -> Base:
        base: Any = (BASES if self.options == "default" else OTHER_BASES)[self.base]
        if self.base == "adam":  # has no weight decay
            return base
        return replace(base, weight_decay=0.0 if self.decay == "none" else 0.05)

    def _rule(self) -> Rule:
        options: dict[str, Any] = {
            "initial_score": float(self.start.removeprefix("s0=")),
            "momentum": self.momentum,
            "decay": "dense" if self.decay == "dense" else "masked",
        }
        rule = RULES[self.rule]
        if self.options == "other":
            options |= {"tau": 0.02, "ema": 0.25}
            if rule.p == 0.5:
                options["p"] = 0.3
        return replace(rule, **options)

    def _block_axes(self, rank: int) -> Axes:
        axes = tuple(range(rank))
        return {
            "tensor": (),
            "rows": axes[:1],
            "columns": axes[-1:],
            "elements": axes,
            "reversed": axes[:0:-1],  # all axes but the first, last first
        }[self.blocks]


def pairwise() -> list[Case]:
    """Cases that cover every pair of values of two factors."""
    return [Case(*values) for values in AllPairs(list(FACTORS.values()))]


def product() -> Iterator[Case]:
    """Every combination of factors."""
    return (Case(*values) for values in itertools.product(*FACTORS.values()))
