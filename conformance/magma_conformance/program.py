"""An implementation that is a program: it reads a request file and writes an answer file (docs/porting.md)."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from magma_conformance.description import describe_task, records_from
from magma_conformance.exchange import Answer, Question, read_answers, write_request
from magma_conformance.task import Record, Task

TIMEOUT = 600.0  # seconds for one run of the program


class Program:
    """A program under test, started anew for every request.

    Args:
        command: the program and its first arguments; the paths of request and answer follow.
        name: for the report.
        timeout: seconds that one run may take.
    """

    def __init__(self, command: Sequence[str], name: str, *, timeout: float = TIMEOUT) -> None:
        self.name, self._command, self._timeout = name, list(command), timeout

    def refuses(self, task: Task) -> str | None:
        """Nothing beforehand: the program says so when it is asked."""
        return None

    def run(self, task: Task) -> list[Record]:
        """The record after each step.

        Raises:
            NotImplementedError: if the program says that steps are unsupported.
            ValueError: if it refuses the task, or its answer cannot be read.
            RuntimeError, TimeoutError: if it ends without an answer, or does not end.
        """
        (answer,) = self.ask([Question("steps", describe_task(task))])
        if isinstance(answer, Exception):
            raise answer
        if answer.verdict == "unsupported":
            raise NotImplementedError(answer.text or "steps are unsupported")
        if answer.verdict == "refused":
            raise ValueError(f"refused: {answer.text}")
        return records_from(answer.given if "steps" in answer.given else {"steps": []}, list(task.params))

    def ask(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """All questions in one request; where the program ends before its time, it is asked anew for what follows.

        Returns:
            For each question the answer, or what went wrong: RuntimeError, TimeoutError or ValueError.
        """
        found: list[Answer | Exception] = []
        while len(found) < len(questions):
            answers, trouble = self._once(questions[len(found) :])
            for number in range(1, len(questions) - len(found) + 1):
                if number not in answers:
                    break
                found.append(answers[number])
            else:
                break
            # the first question without an answer is the one that the program stopped at
            found.append(trouble or RuntimeError("no answer, though the program ended with status 0"))
        return found

    def _once(self, questions: Sequence[Question]) -> tuple[dict[int, Answer], Exception | None]:
        """One run: what it answered, and what was wrong with it."""
        trouble: Exception | None = None
        with tempfile.TemporaryDirectory(prefix="magma-") as folder:
            request, answer = Path(folder) / "request.txt", Path(folder) / "answer.txt"
            request.write_text(write_request(questions), encoding="ascii")
            try:
                done = subprocess.run(
                    [*self._command, str(request), str(answer)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=self._timeout,
                    check=False,
                )
                if done.returncode:
                    said = done.stderr.decode("utf-8", "replace").strip()[-300:]
                    trouble = RuntimeError(f"ended with status {done.returncode}{f': {said}' if said else ''}")
            except subprocess.TimeoutExpired:
                trouble = TimeoutError(f"no answer in {self._timeout:.0f} s")
            except OSError as error:
                return {}, RuntimeError(f"{self._command[0]} cannot be started: {error}")
            try:
                return read_answers(answer.read_text(encoding="utf-8", errors="replace")), trouble
            except FileNotFoundError:
                return {}, trouble or RuntimeError("wrote no answer file")
            except ValueError as error:
                return {}, trouble or error
