"""`magma_native` under test: the core's steps, as C, for NumPy arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import magma_native

from magma_conformance.implementations.core import CoreImplementation
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.task import Arrays, Implementation, Record, Task
from magma_core import Plan


class NativeImplementation(CoreImplementation):
    """`magma_native.update_planned`, one call for each step."""

    def run(self, task: Task) -> list[Record]:
        """The record after each step; a formula that the compiler here cannot make is not run."""
        try:
            return super().run(task)
        except magma_native.CompilerMissing as error:
            raise NotImplementedError(str(error)) from error

    def part(self, kind: str, inputs: Arrays) -> Arrays:
        """A library has whole steps only: what NumPy gives would prove nothing."""
        raise NotImplementedError("no parts of a step")

    def _one_step(self, plans: Sequence[Plan]) -> Callable[..., Any]:
        def one_step(params: Any, grads: Any, states: Any, step: Any, lr: Any) -> Any:
            return magma_native.update_planned(plans, params, grads, states, step=step, lr=lr)

        return one_step


def implementation(mode: str, device: str) -> Implementation:
    """The step in one of the modes of `magma_conformance.implementations.adapters.ADAPTERS`."""
    if device != "cpu":
        raise LookupError("magma_native is for the CPU")
    (numpy,) = BACKENDS["numpy"][1]("cpu")
    found = NativeImplementation(numpy)
    found.name = f"magma_native {mode}"
    return found
