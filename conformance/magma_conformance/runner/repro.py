"""A task in a file, from `magma-conformance fuzz` to `magma-conformance run --repro`."""

import json
from dataclasses import dataclass
from pathlib import Path

from magma_conformance.task import Task
from magma_conformance.wire.task_json import describe_task, task_from
from magma_conformance.wire.untrusted import open_foreign

FORMAT = "magma-conformance repro 1"
_NOT_OF_THE_FORMAT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    NotImplementedError,
)
_MOST = 2**28  # bytes of a file; the largest random case has some ten million


@dataclass(frozen=True)
class Repro:
    """The case of one file.

    Args:
        file: written by `write_repro`.
    """

    file: Path

    @property
    def id(self) -> str:
        """The file's path, which also keys compiled programs."""
        return f"repro/{self.file}"

    @property
    def column(self) -> str:
        """The base."""
        return str(self.task().base["kind"])

    def task(self) -> Task:
        """The task.

        Raises:
            ValueError: if the file does not follow the format.
            OSError: if it cannot be read.
        """
        try:
            with open_foreign(self.file, _MOST) as stream:
                content = json.loads(stream.read(_MOST))
            if content["format"] != FORMAT:
                raise ValueError(f"format must be {FORMAT!r}, got {content['format']!r}")
            str(content["task"]["base"]["kind"])  # the column
            return task_from(content["task"], key=self.id)
        except _NOT_OF_THE_FORMAT as error:
            raise ValueError(f"{self.file} is no repro file: {type(error).__name__}: {error}") from None


def write_repro(file: Path, task: Task, found: str) -> None:
    """Write a task, in the form of docs/porting.md section 3.

    Args:
        file: overwritten.
        task: the task.
        found: the finding, for readers of the file.
    """
    content = {"format": FORMAT, "found": found, "task": describe_task(task)}
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
