"""The C port, and other programs under test."""

import sys
import textwrap
import time
from pathlib import Path

import magma_conformance.cli as cli
from magma_conformance.external.program import Program
from magma_conformance.vectors import load
from magma_conformance.wire.request_text import Question
from paths import REPOSITORY
from typer.testing import CliRunner

SOURCE = REPOSITORY / "ports" / "c" / "magma.c"

STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]

QUESTIONS = [Question(vector.kind, vector.input) for vector in load()[:5]]


def command(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})


def script(tmp_path: Path, body: str) -> str:
    """A program in Python that finds the request's path in ``request`` and the answer's in ``answer``."""
    file = tmp_path / "program.py"
    file.write_text(f"import pathlib, sys, time\nrequest, answer = map(pathlib.Path, sys.argv[1:])\n{body}")
    return f"{sys.executable} {file}"


def answers(tmp_path: Path, body: str, *, timeout: float = 60.0):
    program = Program(script(tmp_path, textwrap.dedent(body)).split(), "program", timeout=timeout)
    return program.ask(QUESTIONS)


UNSUPPORTED = """
numbers = [line.split()[1] for line in request.read_text().splitlines() if line.startswith("question")]
lines = ["magma-answer 1"] + [f"answer {n} unsupported so far\\nend" for n in numbers]
answer.write_text("\\n".join(lines))
"""


def ended(process: int) -> bool:
    for _ in range(100):
        status = Path(f"/proc/{process}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":  # nobody has waited for it yet
            return True
        time.sleep(0.05)
    return False
