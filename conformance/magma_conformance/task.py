"""The interface every implementation provides, ours included: NumPy arrays in, NumPy arrays out.

docs/porting.md shows how to plug one in, and defines the names that docs/spec.md does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from magma_core import Axes

Arrays: TypeAlias = Mapping[str, np.ndarray]
Record: TypeAlias = dict[str, np.ndarray]
"""The arrays after one step, by ``"name/field"``: ``param``, the fields of `magma_core.State` and those of
`magma_core.Report` that are not None, in the shapes, dtypes and order documented there."""
Plain: TypeAlias = Mapping[str, float | bool | str]


@dataclass(frozen=True)
class Task:
    """A trajectory to compute: some steps for some parameters.

    Attributes:
        key: names the configuration. Tasks with the same key differ only in values and ``first_step``, so a program
            compiled for one serves the others.
        params: initial parameters by name: float32, bfloat16 (of ml_dtypes) or float16.
        gradients: for each step, the gradients by name.
        learning_rates: one per step.
        base: ``kind`` and all numbers, not validated: see `magma_core.state_file.config.base_to_plain`.
        rule: the same for the rule: see `magma_core.state_file.config.rule_to_plain`.
        block_axes: for each name the axes that index blocks; None if it is not masked.
        seed: of the masks.
        first_step: t of the first step.
        state: the record of the step before ``first_step``, or None for the initial state.
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
    """Anything that computes tasks."""

    name: str

    def refuses(self, task: Task) -> str | None:
        """Why this task cannot run here, or None; a refused task is reported as not run."""

    def run(self, task: Task) -> list[Record]:
        """The record after each step; raises ValueError or TypeError for a task that spec section 9 refuses."""


@runtime_checkable
class WithParts(Protocol):
    """Optional: the parts of a step on their own, which help to locate a failure."""

    def part(self, kind: str, inputs: Arrays) -> Arrays:
        """The outputs of one part, as in `implementations.core_parts`; NotImplementedError if missing."""
