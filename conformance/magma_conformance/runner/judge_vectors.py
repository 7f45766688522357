"""Asks an implementation the vectors and judges the answers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from magma_conformance.bits import first_difference
from magma_conformance.runner.result import Mismatch, Result, Status, compare
from magma_conformance.task import Arrays, Implementation, WithParts
from magma_conformance.vectors import Vector
from magma_conformance.wire import hex_arrays
from magma_conformance.wire.digest import digest
from magma_conformance.wire.request_text import Answer, Question
from magma_conformance.wire.task_json import records_from, task_from


@runtime_checkable
class Answering(Protocol):
    """An implementation that answers many questions at a time, in their own form."""

    def ask(self, questions: Sequence[Question]) -> Sequence[Answer | Exception]:
        """For each question the answer, or the error."""


def judge_vectors(candidate: Implementation, vectors: Sequence[Vector], /) -> Iterator[Result]:
    """The verdict on each vector, in order."""
    if isinstance(candidate, Answering):
        started = time.perf_counter()
        answers = candidate.ask([Question(vector.kind, vector.input) for vector in vectors])
        seconds = (time.perf_counter() - started) / max(1, len(vectors))
        for vector, answer in zip(vectors, answers, strict=True):
            yield _result(candidate.name, vector, seconds, _said(vector, answer))
        return
    for vector in vectors:
        started = time.perf_counter()
        try:
            said = _by_calling(candidate, vector)
        except NotImplementedError as error:
            said = _Said("not run", str(error) or "not implemented")
        except Exception as error:  # whatever an implementation raises, the run goes on
            said = _Said("failed", f"{type(error).__name__}: {error}")
        yield _result(candidate.name, vector, time.perf_counter() - started, said)


class _Said(NamedTuple):
    status: Status
    reason: str = ""
    mismatch: Mismatch | None = None
    digest: str = ""


def _result(name: str, vector: Vector, seconds: float, said: _Said) -> Result:
    steps = len(vector.input["steps"]) if vector.kind == "steps" else 0
    return Result(
        name,
        vector.name,
        vector.column,
        said.status,
        seconds,
        steps,
        said.reason,
        said.mismatch,
        vector.flags,
        said.digest,
    )


def _by_calling(candidate: Implementation, vector: Vector) -> _Said:
    if vector.kind != "steps":
        if not isinstance(candidate, WithParts):
            return _Said("not run", "no parts of a step")
        given = candidate.part(vector.kind, {name: hex_arrays.from_json(array) for name, array in vector.input.items()})
        return _compared(_parts_mismatch(given, vector), [given])
    task = task_from(vector.input, key=vector.name)
    if "refused" in vector.expected:
        try:
            candidate.run(task)
        except (ValueError, TypeError):
            return _Said("equal")
        return _Said("failed", f"accepted what must be refused: {vector.comment}")
    if reason := candidate.refuses(task):
        return _Said("not run", reason)
    records = candidate.run(task)
    return _compared(compare(records, records_from(vector.expected, vector.names), task.first_step), records)


def _said(vector: Vector, answer: Answer | Exception) -> _Said:
    """The verdict on a program's answer."""
    if isinstance(answer, Exception):
        return _Said("failed", str(answer))
    if answer.verdict == "unsupported":
        return _Said("not run", answer.text or f"{vector.kind} is unsupported")
    if ("refused" in vector.expected) != (answer.verdict == "refused"):
        if answer.verdict == "refused":
            return _Said("failed", f"refused what is right: {answer.text}")
        return _Said("failed", f"accepted what must be refused: {vector.comment}")
    if answer.verdict == "refused":
        return _Said("equal")
    try:
        return _given(vector, answer)
    except (ValueError, KeyError, TypeError) as error:
        return _Said("failed", f"the answer cannot be read: {error}")


def _given(vector: Vector, answer: Answer) -> _Said:
    if vector.kind != "steps":
        given = {name: hex_arrays.from_json(array) for name, array in answer.given.items()}
        return _compared(_parts_mismatch(given, vector), [given])
    records = records_from(answer.steps, vector.names)
    expected = records_from(vector.expected, vector.names)
    return _compared(compare(records, expected, vector.input["first_step"]), records)


def _parts_mismatch(given: Mapping[str, Any], vector: Vector) -> Mismatch | None:
    if odd := sorted(given.keys() ^ vector.expected.keys()):
        raise ValueError(f"the answer to {vector.kind} must have {', '.join(vector.expected)}; {odd[0]!r} is odd")
    for name, array in vector.expected.items():
        if (difference := first_difference(given[name], hex_arrays.from_json(array))) is not None:
            return Mismatch(0, name, difference)
    return None


def _compared(mismatch: Mismatch | None, computed: Sequence[Arrays]) -> _Said:
    found = digest(computed)
    return _Said("equal", digest=found) if mismatch is None else _Said("different", str(mismatch), mismatch, found)
