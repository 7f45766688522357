"""Implementations that share no code with magma_core: the scalar oracle, and the C port."""

import shutil
import subprocess
from pathlib import Path

import numpy as np

from magma_conformance.external.program import Program
from magma_conformance.task import Implementation, Record, Task
from magma_conformance.vectors.generator.answers import answer
from magma_conformance.wire.task_json import describe_task, records_from

SOURCE = Path(__file__).parents[3] / "ports" / "c" / "magma.c"


class Oracle:
    """`magma_conformance.vectors.oracle`, one element at a time."""

    name = "oracle scalar"
    MOST = 3_000
    """Limit of elements times steps: about a second."""

    def refuses(self, task: Task) -> str | None:
        """Refuse tasks of many elements."""
        if sum(x.size for x in task.params.values()) * len(task.gradients) > self.MOST:
            return f"more than {self.MOST} elements and steps take the oracle too long"
        return None

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        with np.errstate(invalid="ignore"):  # widens signalling NaNs
            return records_from(answer("steps", describe_task(task)), list(task.params))


def c_port(folder: Path, /) -> Implementation:
    """The C port, built in ``folder`` from the repository that this package was installed from.

    Raises:
        LookupError: without the repository or a C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise LookupError("there is no C compiler (cc)")
    if not SOURCE.exists():
        raise LookupError("ports/c is part of the repository, not of the wheel: build it there and give it by --exec")
    target = folder / "magma"
    command = [compiler, "-O2", "-std=c11", "-ffp-contract=off", "-o", str(target), str(SOURCE), "-lm"]
    if not target.exists():
        subprocess.run(command, check=True)
    return Program([str(target)], "c port")
