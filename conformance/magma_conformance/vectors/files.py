"""Reads the vector files.

They are in this folder; docs/porting.md section 4 describes them. `magma_conformance.vectors.generator` writes them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from magma_conformance.wire.hex_arrays import to_json
from magma_conformance.wire.untrusted import open_foreign

FOLDER = Path(__file__).parent
"""The folder of the files."""

PARTS = ("threefry", "coins", "sums", "score")
"""The files about parts of a step, which are also the kinds of their questions."""

FILES = (*PARTS, "sgd", "rmsprop", "adam", "adamw", "laprop", "trajectories", "errors")
"""All files, in the order in which a port needs them."""

JSON_FILES = FILES[1:]
"""The JSON files."""

KNOWN_ANSWERS = "threefry.txt"
"""The text file."""

_WORD = re.compile("[0-9a-f]{8}")
_MOST = 2**26  # bytes of a file; ours have a few hundred thousand


@dataclass(frozen=True)
class Vector:
    """One question and its answer.

    Attributes:
        file: the name of its file, without the extension.
        id: its number in the file, from 1.
        comment: its subject.
        flags: the hazards that would change the answer, explained in the file's notes.
        kind: see docs/porting.md, section 2.
        input: JSON types.
        expected: JSON types; ``{"refused": reason}`` if the input must be refused.
    """

    file: str
    id: int
    comment: str
    flags: tuple[str, ...]
    kind: str
    input: Mapping[str, Any]
    expected: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name for `magma-conformance run --case`."""
        return f"vectors/{self.file}/{self.id}"

    @property
    def column(self) -> str:
        """Its column in the matrix. Files of bases share "steps": the cases have the columns of the bases."""
        if self.file in (*PARTS, "errors"):
            return self.file
        return "runs" if self.file == "trajectories" else "steps"

    @property
    def names(self) -> list[str]:
        """The parameter names of a question about steps."""
        return [parameter["name"] for parameter in self.input["parameters"]]


def load(folder: Path = FOLDER, /) -> list[Vector]:
    """Load all vectors.

    Args:
        folder: the folder of the files.

    Raises:
        OSError: if one of `FILES` is missing, or not a regular file.
        ValueError: if one is not JSON, or does not have the form of vectors.

    Example:
        >>> load()[0].comment
        'zeros, the first known answer of Random123'
    """
    vectors = known_answers(read_text(folder / KNOWN_ANSWERS))
    for file in JSON_FILES:
        try:
            tests = json.loads(read_text(folder / f"{file}.json"))["tests"]
            vectors += [
                Vector(file, test["id"], test["comment"], tuple(test["flags"]), *_question(test)) for test in tests
            ]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / file}.json is no file of vectors: {error!r}") from error
    return vectors


def read_text(file: Path, /) -> str:
    """The text of a vector file, which may be foreign."""
    with open_foreign(file, _MOST) as stream:
        return stream.read(_MOST)


def known_answers(text: str, /) -> list[Vector]:
    """Parse Random123's format, each line with the comment before it; ValueError for any other line."""
    found: list[Vector] = []
    comment = ""
    for number, line in enumerate(text.splitlines(), 1):
        match line.split():
            case ["#", *words]:
                comment = " ".join(words)
            case ["threefry2x32", "20", *digits] if len(digits) == 6 and all(map(_WORD.fullmatch, digits)):
                counter, key, output = (
                    to_json(np.array([int(word, 16) for word in digits[i : i + 2]], np.uint32)) for i in (0, 2, 4)
                )
                inputs = {"key": key, "counter": counter}
                found.append(Vector("threefry", len(found) + 1, comment, (), "threefry", inputs, {"words": output}))
            case _:
                wanted = "must be 'threefry2x32 20' and six words of 8 digits"
                raise ValueError(f"{KNOWN_ANSWERS}, line {number}: {wanted}, got {line[:60]!r}")
    return found


def notes(folder: Path = FOLDER, /) -> dict[str, str]:
    """The meaning of each flag, from all files."""
    found: dict[str, str] = {}
    for file in JSON_FILES:
        document = json.loads(read_text(folder / f"{file}.json"))
        found |= {flag: entry["note"] for flag, entry in document["notes"].items()}
    return found


def _question(test: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    return test["kind"], test["input"], test["expected"]
