"""Shared by the tests of portable state: a few steps by the core on NumPy, and their layout in an optimizer.

Parameters have one layout in the file, in which the core steps them, and another in the optimizer under test.
"""

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from magma_numpy import namespace as xp

import magma_core
from magma_core import (
    SGD,
    Adam,
    AdamW,
    LaProp,
    RMSProp,
    Saved,
    State,
    damping,
    dense,
    magma,
    score_survival,
    write_state,
)
from magma_core import skip_update as skip
from magma_core.state_file.tensors import TensorFile

SEED, LR, SAVED, STEPS = 2**63 + 11, 0.05, 3, 6


class Layout(NamedTuple):
    """Of one parameter."""

    shape: tuple[int, ...]  # in the file
    block_axes: tuple[int, ...] | None  # likewise
    permutation: tuple[int, ...]  # for each of the optimizer's axes, which of the file's it is

    @property
    def own_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.permutation)

    @property
    def own_axes(self) -> tuple[int, ...] | None:
        return None if self.block_axes is None else tuple(self.permutation.index(axis) for axis in self.block_axes)


LAYOUTS = {
    "rows": Layout((4, 3), (0,), (1, 0)),
    "whole": Layout((3, 2), (), (1, 0)),
    "stack": Layout((2, 3, 4), (2, 0), (1, 2, 0)),
    "bias": Layout((3,), None, (0,)),
    "scalar": Layout((), (), ()),
    "empty": Layout((0, 3), (0,), (1, 0)),
}
PERMUTATIONS = {name: layout.permutation for name, layout in LAYOUTS.items()}

CASES = [
    (SGD(nesterov=True, weight_decay=0.1), skip(p=0.3)),
    (SGD(momentum=0.5), magma()),
    (RMSProp(weight_decay=0.1), magma(tau=0.5)),
    (RMSProp(), dense()),
    (Adam(), score_survival(damped=True)),
    (AdamW(), magma(momentum="before", decay="dense")),
    (LaProp(weight_decay=0.1), damping()),
    (LaProp(), skip(decay="dense")),
]
LABELS = [f"{type(base).__name__}+{rule.survival}.{rule.weight}.{rule.decay}" for base, rule in CASES]
every_case = pytest.mark.parametrize(("base", "rule"), CASES, ids=LABELS)

FORMATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def start(name: str, kind: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return np.asarray(rng.normal(size=LAYOUTS[name].shape)).astype(FORMATS[kind])


def gradient(name: str, step: int, kind: str = "float32") -> np.ndarray:
    """Of many magnitudes; one element of one parameter has moments that become infinite, and then NaN."""
    shape = LAYOUTS[name].shape
    rng = np.random.default_rng((step, len(name)))
    x = np.asarray(np.ldexp(rng.normal(size=shape), rng.integers(-10, 3, shape))).astype(FORMATS[kind])
    if name == "stack" and step <= 2:
        x[1, 2, 3] = np.inf if step == 1 else -np.inf
    return x


def own(name: str, x: np.ndarray) -> np.ndarray:
    """From the file's layout into the optimizer's."""
    return np.array(np.transpose(x, LAYOUTS[name].permutation), order="C")


@dataclass
class Core:
    """All parameters, stepped by the core."""

    base: Any
    rule: Any
    kind: str = "float32"
    done: int = 0
    names: tuple[str, ...] = tuple(LAYOUTS)
    params: dict[str, np.ndarray] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            self.params[name] = start(name, self.kind)
            options = {"base": self.base, "rule": self.rule, "block_axes": LAYOUTS[name].block_axes, "xp": xp}
            self.states[name] = magma_core.init(self.params[name], **options)

    def step(self, steps: int = 1) -> "Core":
        for _ in range(steps):
            self.done += 1
            params, states, _ = magma_core.update_all(
                [self.params[name] for name in self.names],
                [gradient(name, self.done, self.kind) for name in self.names],
                [self.states[name] for name in self.names],
                names=self.names,
                step=self.done,
                lr=LR,
                seed=SEED,
                base=self.base,
                rule=self.rule,
                block_axes={name: LAYOUTS[name].block_axes for name in self.names},
                xp=xp,
            )
            self.params, self.states = (
                dict(zip(self.names, params, strict=True)),
                dict(zip(self.names, states, strict=True)),
            )
        return self

    def saved(self) -> dict[str, Saved]:
        return {
            name: Saved(layout.shape, layout.block_axes, self.done, SEED, self.base, self.rule, self.states[name])
            for name, layout in LAYOUTS.items()
            if name in self.names
        }

    def write(self, path: Path) -> bytes:
        write_state(path, self.saved())
        return path.read_bytes()


def write_claim(path: Path, extent: int = 2**15) -> Path:
    """A sound file of one parameter "w", of ``extent``² elements, which has a few kilobytes on the disk."""
    write_state(path, {"w": Saved((1, 1), None, 0, 0, SGD(), dense(), State()).started()})
    raw = path.read_bytes()
    header = raw[8:-4].rstrip().decode()
    header = header.replace("[1,1]", f"[{extent},{extent}]").replace("[0,4]", f"[0,{4 * extent**2}]")
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    os.truncate(path, 8 + len(header) + 4 * extent**2)
    assert path.stat().st_blocks * 512 < 2**16
    return path


def no_tensor_may_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: TensorFile, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(TensorFile, "array", fail)
