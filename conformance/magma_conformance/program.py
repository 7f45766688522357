"""An implementation that is a program: it reads a request file and writes an answer file (docs/porting.md)."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from magma_conformance.description import describe_task, records_from
from magma_conformance.exchange import Answer, Question, Unreadable, read_answers, write_request
from magma_conformance.task import Record, Task

TIMEOUT = 600.0  # seconds for one run of the program
_ALIKE = 3  # runs without any answer, after which the program is not started any more


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
        return records_from(answer.steps, list(task.params))

    def ask(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """All questions in one request; where the program ends before its time, it is asked anew for what follows.

        Returns:
            For each question the answer, or what went wrong: RuntimeError, TimeoutError or ValueError. After a run
            that did not end, the questions that follow are not asked any more.
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
            # the first question without an answer is the one that the program stopped at
            other = f" (question {min(answers)} was answered)" if answers else ""
            found.append(trouble or RuntimeError(f"no answer, though the program ended with status 0{other}"))
            left = len(questions) - len(found)
            if isinstance(trouble, TimeoutError):
                found += [TimeoutError("not asked after a question without an end")] * left
            alike = 0 if answers else alike + 1
            if alike == _ALIKE:  # it is the program that is wrong, not the questions
                found += [found[-1]] * left
        return found

    def _once(self, questions: Sequence[Question]) -> tuple[dict[int, Answer], Exception | None]:
        """One run: what it answered, and what was wrong with it."""
        with tempfile.TemporaryDirectory(prefix="magma-", ignore_cleanup_errors=True) as folder:
            request, answer = Path(folder) / "request.txt", Path(folder) / "answer.txt"
            request.write_text(write_request(questions), encoding="ascii")
            trouble = self._execute(str(request), str(answer))
            try:
                return read_answers(answer.read_text(encoding="utf-8", errors="replace")), trouble
            except FileNotFoundError:
                return {}, trouble or RuntimeError("wrote no answer file")
            except Unreadable as error:
                return error.answers, trouble or error

    def _execute(self, *paths: str) -> Exception | None:
        """Start the program and wait for its end; what was wrong."""
        try:
            process = subprocess.Popen(
                [*self._command, *paths],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a group of its own, so that what it has started ends with it
            )
        except OSError as error:
            return RuntimeError(f"{self._command[0]} cannot be started: {error}")
        try:
            _, said = process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            return TimeoutError(f"no answer in {self._timeout:.0f} s")
        finally:
            _end(process)
        if process.returncode:
            text = said.decode("utf-8", "replace").strip()
            text = text if len(text) < 700 else f"{text[:300]} … {text[-300:]}"
            return RuntimeError(f"ended with status {process.returncode}{f': {text}' if text else ''}")
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """The program and whatever it has started, if it has not ended."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()
