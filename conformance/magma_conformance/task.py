"""The door of an implementation: NumPy arrays in, NumPy arrays out. Ours go through it as everybody's.

docs/porting.md tells how to plug one in, and has the names used here beside the symbols of docs/spec.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from magma_core import Axes

Arrays: TypeAlias = Mapping[str, np.ndarray]
Record: TypeAlias = dict[str, np.ndarray]
"""What one step left and saw: ``"name/field"`` with the fields ``param``, those of `magma_core.State` and those
of `magma_core.Report`, where they are not None; in the shapes, dtypes and order that these document."""
Plain: TypeAlias = Mapping[str, float | bool | str]


@dataclass(frozen=True)
class Task:
    """A trajectory to compute: some steps for some parameters.

    Attributes:
        key: names the configuration. Tasks of one key differ in values and in ``first_step`` only, so what
            was compiled for one serves the others.
        params: initial parameters by name: float32, bfloat16 (of ml_dtypes) or float16.
        gradients: for each step the gradients by name.
        learning_rates: for each step.
        base: ``kind`` and all numbers, unchecked: see `magma_core.state_file.config.base_to_plain`.
        rule: the same of the rule: see `magma_core.state_file.config.rule_to_plain`.
        block_axes: for each name the axes that index blocks; None for a parameter that is not masked.
        seed: of the masks.
        first_step: t of the first step.
        state: None to start afresh, else the record of the step before ``first_step``.
    """

    key: str
    params: Arrays
    gradients: Sequence[Arrays]
    learning_rates: Sequence[float]
    base: Plain
    rule: Plain
    block_axes: Mapping[str, Axes | None]
    seed: int
    first_step: int = 1
    state: Record | None = None


class Implementation(Protocol):
    """Something that can compute tasks."""

    name: str

    def refuses(self, task: Task) -> str | None:
        """Why this task cannot be run here, or None; it is then reported as not run."""

    def run(self, task: Task) -> list[Record]:
        """The record after each step of the task; ValueError or TypeError for a task that spec section 9 refuses."""


@runtime_checkable
class WithParts(Protocol):
    """What an implementation may have besides: the parts of a step by themselves, so that a failure is located."""

    def part(self, kind: str, inputs: Arrays) -> Arrays:
        """The outputs of one part, as in `implementations.core_parts`; NotImplementedError if it is absent."""
