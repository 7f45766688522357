"""An external program as an implementation: it reads a request file and writes an answer file (docs/porting.md)."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from magma_conformance.external.answer_file import most_bytes, read_answer_file
from magma_conformance.external.supervised import run_supervised
from magma_conformance.task import Record, Task
from magma_conformance.wire.request_text import Answer, Question, Unreadable, write_request
from magma_conformance.wire.task_json import describe_task, records_from
from magma_conformance.wire.untrusted import shown

TIMEOUT = 600.0  # seconds for one run of the program
_ALIKE = 3  # consecutive runs without an answer, after which the program is not started again


class Program:
    """A program under test, started anew for every request.

    Args:
        command: the program and its first arguments; the paths of request and answer follow.
        name: for the report.
        timeout: seconds per run.
    """

    def __init__(self, command: Sequence[str], name: str, *, timeout: float = TIMEOUT) -> None:
        self.name, self._command, self._timeout = name, list(command), timeout

    def refuses(self, task: Task) -> str | None:
        """None: the program refuses when asked."""
        return None

    def run(self, task: Task) -> list[Record]:
        """The record after each step.

        Raises:
            NotImplementedError: if the program does not support steps.
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
        return records_from(answer.steps, list(task.params))

    def ask(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """Ask all questions in one request; if the program ends early, ask again from the first one without an answer.

        Returns:
            For each question the answer, or the error: RuntimeError, TimeoutError or ValueError. After a run that times
            out, the remaining questions are not asked.
        """
        found: list[Answer | Exception] = []
        alike = 0
        while len(found) < len(questions):
            answers, trouble = self._once(questions[len(found) :])
            for number in range(1, len(questions) - len(found) + 1):
                if number not in answers:
                    break
                found.append(answers[number])
            else:
                break
            # the program stopped at the first question without an answer
            other = f" (question {min(answers)} was answered)" if answers else ""
            found.append(trouble or RuntimeError(f"no answer, though the program ended with status 0{other}"))
            left = len(questions) - len(found)
            if isinstance(trouble, TimeoutError):
                found += [TimeoutError("not asked: the run before took too long")] * left
            alike = 0 if answers else alike + 1
            if alike == _ALIKE:  # the program is at fault, not the questions
                found += [found[-1]] * left
        return found

    def _once(self, questions: Sequence[Question]) -> tuple[dict[int, Answer], Exception | None]:
        """One run: its answers, and its error if any."""
        with tempfile.TemporaryDirectory(prefix="magma-", ignore_cleanup_errors=True) as folder:
            request, answer = Path(folder) / "request.txt", Path(folder) / "answer.txt"
            request.write_text(write_request(questions), encoding="ascii")
            most = most_bytes(questions)
            trouble = self._execute(request, answer, most)
            try:
                return read_answer_file(answer, most), trouble
            except FileNotFoundError:
                return {}, trouble or RuntimeError("wrote no answer file")
            except Unreadable as error:
                return error.answers, trouble or error
            except OSError as error:
                return {}, trouble or ValueError(f"its answer file cannot be read: {error.strerror}")

    def _execute(self, request: Path, answer: Path, most: int) -> Exception | None:
        """Run the program to its end; the error if any."""

        def check() -> None:
            with suppress(OSError):
                if os.lstat(answer).st_size > most:
                    raise ValueError(f"its answer file cannot be read: more than {most:,} bytes")

        try:
            status, said = run_supervised([*self._command, str(request), str(answer)], self._timeout, check)
        except OSError as error:
            return RuntimeError(f"{self._command[0]} cannot be started: {error}")
        except ValueError as error:
            return error
        said = f": {shown(said, lines=True)}" if said.strip() else ""
        if status is None:
            return TimeoutError(f"not done after {self._timeout:g} s, which is all that one run may take{said}")
        return RuntimeError(f"ended with status {status}{said}") if status else None
