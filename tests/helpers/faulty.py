"""An implementation with a fault."""

from collections.abc import Callable

import numpy as np
from magma_conformance.implementations.core import implementation
from magma_conformance.runner.jobs import open_mode
from magma_conformance.task import Record, Task


class Faulty:
    """magma_core on NumPy with one fault planted in its records."""

    name = "faulty"

    def __init__(self, plant: Callable[[list[Record]], object]) -> None:
        self._plant = plant

    def refuses(self, task: Task) -> str | None:
        return None

    def run(self, task: Task) -> list[Record]:
        records = implementation(open_mode("numpy", "eager", "cpu")).run(task)
        records = [{name: np.array(array) for name, array in record.items()} for record in records]
        self._plant(records)
        return records
