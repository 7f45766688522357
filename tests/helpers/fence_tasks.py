"""A step that every fence affects, and a mode's difference from NumPy in it."""

import magma_conformance.implementations.core as core
import numpy as np
import pytest
from magma_conformance.cases import inputs
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.runner.result import Mismatch, compare
from magma_conformance.task import Task

import magma_core
from magma_core.state_file.config import base_to_plain, rule_to_plain

KINDS = ["tiny", "normal", "wide", "threshold", "outlier"]


def mode(backend: str, name: str) -> Mode:
    try:
        modes = BACKENDS[backend][1]("cpu")
    except ImportError as error:
        pytest.skip(str(error))
    return next(mode for mode in modes if mode.name == name)


def task(fmt: str = "float32", kinds: list[str] = KINDS) -> Task:
    rng = np.random.default_rng(3)
    shape = (48, 40)
    return Task(
        key=f"fence {fmt}",
        params={"w": inputs.make("normal", shape, fmt, rng)},
        gradients=[{"w": inputs.make(kind, shape, fmt, rng)} for kind in kinds],
        learning_rates=[0.02] * len(kinds),
        base=base_to_plain(magma_core.AdamW(beta1=0.7, weight_decay=0.1)),
        rule=rule_to_plain(magma_core.magma() if fmt == "float32" else magma_core.dense()),
        block_axes={"w": (0,)},
        seed=5,
    )


def mismatch(where: Mode, what: Task) -> Mismatch | None:
    reference = core.implementation(mode("numpy", "eager"))
    return compare(core.implementation(where).run(what), reference.run(what))
