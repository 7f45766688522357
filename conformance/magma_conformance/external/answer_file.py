"""The answer file of a program under test: its size limit, and a reader that trusts nothing in it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from magma_conformance.wire.request_text import Answer, Question, read_answers
from magma_conformance.wire.untrusted import open_foreign

_SPARE = 2**20  # bytes for the file
_HEADS = 2**14  # bytes per question, and per parameter in a step: reasons, names, extents and scalars
_ELEMENT = 27  # of param, mu and nu
_BLOCK = 72  # of score, cosine, sums and keep
_PART = 16  # per input element of a part of a step
_EMPTY_BLOCKS = 2**20  # blocks without elements that an answer may list


def most_bytes(questions: Sequence[Question], /) -> int:
    """Size limit of an answer file: twice the bytes of a correct answer with single spaces, plus a megabyte."""
    return _SPARE + sum(
        _HEADS + 2 * (_of_steps(inputs) if kind == "steps" else _PART * sum(map(_elements, inputs.values())))
        for kind, inputs in questions
    )


def _of_steps(inputs: Mapping[str, Any]) -> int:
    size = 0
    for parameter in inputs["parameters"]:
        shape, elements = parameter["param"]["shape"], _elements(parameter["param"])
        axes = [axis for axis in parameter["block_axes"] or () if axis in range(len(shape))]
        blocks = min(math.prod(shape[axis] for axis in axes), max(elements, _EMPTY_BLOCKS))
        size += _HEADS + _ELEMENT * elements + _BLOCK * blocks
    return size * len(inputs["steps"])


def _elements(array: Mapping[str, Any]) -> int:
    """Bounded by its words: some questions have extents that must be refused."""
    return min(math.prod(array["shape"]), len(array["bits"]) // 2)


def read_answer_file(file: Path, most: int, /) -> dict[int, Answer]:
    """The answers by question number.

    Args:
        file: may have been written by a program that has ended.
        most: its size limit in bytes.

    Raises:
        OSError: if it is missing, cannot be opened, is not a regular file or is too large.
        Unreadable: if it does not follow the format.
    """
    with open_foreign(file, most, links=False, errors="replace") as stream:
        return read_answers(_lines(stream, most))


def _lines(stream: TextIO, left: int) -> Iterator[str]:
    """At most ``left`` characters: a process that outlived the program might still be writing."""
    while line := stream.readline(left):
        left -= len(line)
        yield line
