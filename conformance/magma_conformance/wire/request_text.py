"""Text files of questions to a program and of its answers; docs/porting.md has the format.

White space separates words, so ``scanf("%s")`` is enough to read it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from magma_conformance.wire.untrusted import shown
from magma_core import State

VERSION = 1
"""Version of the format."""

Verdict = Literal["given", "refused", "unsupported"]


class Question(NamedTuple):
    """A question to an implementation."""

    kind: str  # a part of a step, or "steps"
    inputs: Mapping[str, Any]  # JSON types: arrays by name, or for "steps" the description of a task


class Answer(NamedTuple):
    """A program's answer to a question."""

    verdict: Verdict
    text: str  # the reason, if nothing is given
    given: Mapping[str, Any]  # JSON types: arrays by name, or for "steps" the description of the records

    @property
    def steps(self) -> Mapping[str, Any]:
        """The description of the records; an empty one if there is none."""
        return self.given if "steps" in self.given else {"steps": []}


def write_request(questions: Iterable[Question], /) -> str:
    """The text of a request, its questions numbered from 1."""
    lines = [f"magma-request {VERSION}"]
    for number, (kind, inputs) in enumerate(questions, 1):
        lines += [f"question {number} {kind}", *(_steps(inputs) if kind == "steps" else _arrays(inputs)), "end"]
    return "\n".join(lines) + "\n"


class Unreadable(ValueError):
    """An answer file that violates the format at some line; ``answers`` are those before it."""

    def __init__(self, message: str, answers: dict[int, Answer]) -> None:
        super().__init__(message)
        self.answers = answers


def read_answers(lines: Iterable[str], /) -> dict[int, Answer]:
    """The answers by question number, without an unfinished one at the end.

    Args:
        lines: such as an open file. Memory holds one line at a time, and the answers.

    Raises:
        Unreadable: if the lines violate the format; the message says where.
    """
    answers: dict[int, Answer] = {}
    try:
        _read(enumerate(lines, 1), answers)
    except ValueError as error:
        raise Unreadable(str(error), answers) from None
    return answers


def _read(lines: Iterator[tuple[int, str]], answers: dict[int, Answer]) -> None:
    number, first = next(lines, (1, ""))
    if first.split() != ["magma-answer", str(VERSION)]:
        raise ValueError(f"line {number}: must be 'magma-answer {VERSION}', got {first[:60]!r}")
    for number, line in lines:
        match line.split(maxsplit=3):
            case []:
                continue
            case ["answer", name, ("given" | "refused" | "unsupported") as verdict, *rest] if _count(name):
                if int(name) in answers:
                    raise ValueError(f"line {number}: question {name} is answered twice")
                given = _read_body(lines)
                if given is not None:
                    answers[int(name)] = Answer(verdict, shown("".join(rest)), given)
            case _:
                raise ValueError(
                    f"line {number}: must be 'answer NUMBER given', 'refused' or 'unsupported', got {line[:60]!r}"
                )


def _read_body(lines: Iterator[tuple[int, str]]) -> dict[str, Any] | None:
    """The fields before the word ``end``; None if the text ends first."""
    fields: dict[str, Any] = {}
    steps: list[list[dict[str, Any]]] = []
    for number, line in lines:
        match line.split(maxsplit=3):
            case []:
                continue
            case ["end"]:
                return {"steps": steps} if steps else fields
            case ["answer", *_]:
                raise ValueError(f"line {number}: must be 'end' before the next answer, got {line[:60]!r}")
            case ["step"]:
                steps.append([])
            case ["parameter"] if steps:
                steps[-1].append({})
            case [field, dtype, rank, *rest]:
                target = steps[-1][-1] if steps and steps[-1] else fields
                if field in target:
                    raise ValueError(f"line {number}: {field!r} is there twice")
                target[field] = _read_array(number, dtype, rank, "".join(rest))
            case _:
                raise ValueError(f"line {number}: must be an array, 'step', 'parameter' or 'end', got {line[:60]!r}")
    return None


def _read_array(line: int, dtype: str, rank: str, rest: str) -> dict[str, Any]:
    """An array, from its extents and words; the words are validated when used."""
    if not _count(rank) or int(rank) > 64:
        raise ValueError(f"line {line}: the rank must be an integer up to 64, got {rank[:60]!r}")
    *extents, bits = [*rest.split(maxsplit=int(rank)), ""][: int(rank) + 1]
    if len(extents) < int(rank) or not all(map(_count, extents)):
        raise ValueError(f"line {line}: there must be {rank} extents, got {' '.join(extents)[:60]!r}")
    return {"dtype": dtype, "shape": [int(extent) for extent in extents], "bits": bits.rstrip()}


def _count(word: str) -> bool:
    """Whether it is a non-negative integer that fits in 63 bits, as all counts do."""
    return word.isdecimal() and len(word) < 20 and int(word) < 2**63


def _steps(inputs: Mapping[str, Any]) -> Iterator[str]:
    yield _options("base", inputs["base"])
    yield _options("rule", inputs["rule"])
    yield f"seed {inputs['seed']}"
    yield f"first_step {inputs['first_step']}"
    for parameter in inputs["parameters"]:
        axes = parameter["block_axes"]
        name = parameter["name"].encode("utf-8").hex() or "-"
        yield f"parameter {name} " + ("unmasked" if axes is None else " ".join(map(str, ["masked", len(axes), *axes])))
        yield from _arrays({field: parameter[field] for field in ("param", *State._fields) if field in parameter})
    for step in inputs["steps"]:
        yield f"step {_number(step['lr'])}"
        for gradient in step["gradients"]:
            yield _array("gradient", gradient)


def _arrays(arrays: Mapping[str, Any]) -> Iterator[str]:
    return (_array(name, array) for name, array in arrays.items())


def _array(name: str, array: Mapping[str, Any]) -> str:
    return " ".join([name, array["dtype"], *map(str, [len(array["shape"]), *array["shape"]]), array["bits"]]).rstrip()


def _options(label: str, values: Mapping[str, Any]) -> str:
    return " ".join([label, str(len(values)), *(f"{name} {_number(value)}" for name, value in values.items())])


def _number(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value).lower()
    return repr(float(value))  # the shortest decimal that is read as this binary64; of NumPy's numbers, too
