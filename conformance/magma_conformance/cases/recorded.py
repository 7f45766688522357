"""Real gradients that are the same on every machine: a small language model's first steps, recorded in a file.

The gradients of `real_text` depend on the machine. These were recorded once, so that reports of any two machines can be
compared: the rule over AdamW, with matrices of attention and MLP masked. Replay needs only NumPy. To record anew (this
changes the bits, and so requires a new suite version and new reports):

    python -m magma_conformance.cases.recorded
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from magma_conformance.cases.real_text import COLUMN, make_task
from magma_conformance.task import Record, Task

CASE = "recorded"
FILE = Path(__file__).with_name("recorded.safetensors")
STEPS = 20
SIZES: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "hidden": 48}
"""The model's sizes: 15,000 parameters in 21 tensors, 1.3 MB for all steps."""

_PARAM, _GRADIENT = "param", "gradient"


@dataclass(frozen=True)
class Recorded:
    """The case of the recorded gradients.

    Args:
        file: written by `record`.
    """

    file: Path = FILE
    id = CASE
    column = COLUMN

    def task(self) -> Task:
        """All steps."""
        arrays = load_file(self.file)
        names = [key.partition(" ")[2] for key in arrays if key.startswith(f"{_PARAM} ")]
        steps = len(arrays) // len(names) - 1
        return make_task(
            CASE,
            {name: arrays[f"{_PARAM} {name}"] for name in names},
            [{name: arrays[f"{_GRADIENT}-{step} {name}"] for name in names} for step in range(1, steps + 1)],
        )


def record(file: Path, steps: int = STEPS, advance: Callable[[float], None] = lambda loss: None) -> None:
    """Train the model and write its initial parameters and the gradients of every step.

    Args:
        file: overwritten.
        steps: how many.
        advance: called with the loss after each step.

    Raises:
        ImportError: if torch is not installed.
    """
    from magma_conformance.cases.language_model import LanguageModel
    from magma_conformance.runner.jobs import open_implementation

    model = LanguageModel(**SIZES)
    reference = open_implementation("numpy", "eager", "cpu")
    params = model.parameters()
    state: Record | None = None
    arrays = {f"{_PARAM} {name}": array for name, array in params.items()}
    for step in range(1, steps + 1):
        loss, gradients = model.loss_and_gradients(params, step)
        arrays |= {f"{_GRADIENT}-{step} {name}": array for name, array in gradients.items()}
        (state,) = reference.run(make_task("recording", params, [gradients], step, state))
        params = {name: state[f"{name}/param"] for name in params}
        advance(loss)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)


if __name__ == "__main__":
    record(FILE, advance=lambda loss: print(f"loss {loss:.3f}"))
    print(f"written to {FILE}")
