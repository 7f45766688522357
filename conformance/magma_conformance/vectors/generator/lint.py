"""Finds mistakes in vector files that running the vectors would not reveal."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from magma_conformance.vectors import JSON_FILES, KNOWN_ANSWERS, Vector, load
from magma_conformance.vectors.files import read_text
from magma_conformance.vectors.generator.hazards import HAZARDS
from magma_conformance.versions import SPEC_VERSION, VECTORS_VERSION
from magma_conformance.wire.hex_arrays import from_json

SCHEMA = Path(__file__).with_name("vectors.schema.json")


def lint(folder: Path, /) -> tuple[int, list[str]]:
    """The number of vectors in ``folder``, and all mistakes in its files.

    Raises:
        OSError: if a file is missing, or not a regular file.
    """
    documents = {}
    mistakes: list[str] = []
    for file in JSON_FILES:
        try:
            text = read_text(folder / f"{file}.json")
            documents[file] = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            mistakes.append(f"{file}.json: {error}")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    validator = Draft202012Validator(schema)
    for file, document in documents.items():
        errors = sorted(validator.iter_errors(document), key=lambda error: error.json_path)
        mistakes += [f"{file}.json, {error.json_path}: {error.message[:200]}" for error in errors[:5]]
        if not errors:
            mistakes += [f"{file}.json: {mistake}" for mistake in _mistakes(document)]
    if odd := sorted({path.name for path in folder.iterdir() if path.suffix in (".json", ".txt")} - _names()):
        mistakes.append(f"{odd[0]} is no file of vectors")
    if mistakes:
        return 0, mistakes
    try:
        vectors = load(folder)
    except ValueError as error:
        return 0, [str(error)]
    met = {flag for vector in vectors for flag in vector.flags}
    mistakes += [f"no vector has the flag {flag}" for flag in HAZARDS if flag not in met]
    questions = Counter(map(_asked, vectors))
    mistakes += [f"{vector.name} asks what another asks" for vector in vectors if questions[_asked(vector)] > 1]
    return len(vectors), mistakes


def _mistakes(document: Mapping[str, Any]) -> Iterator[str]:
    """Mistakes that a schema cannot express."""
    tests = document["tests"]
    for name, value in (("version", VECTORS_VERSION), ("spec", SPEC_VERSION), ("count", len(tests))):
        if document[name] != value:
            yield f"{name} must be {value}, got {document[name]}"
    if [test["id"] for test in tests] != list(range(1, len(tests) + 1)):
        yield "ids must count from 1"
    used = {flag for test in tests for flag in test["flags"]}
    for flag in sorted(used ^ document["notes"].keys()):
        yield f"the flag {flag} {'has no note' if flag in used else 'has a note, but no vector'}"
    for flag, note in document["notes"].items():
        hazard = HAZARDS.get(flag)
        if hazard is None or note != {"section": hazard.section, "note": hazard.note}:
            yield f"the note of {flag} is not what magma_conformance.vectors.generator.hazards says"
    for test in tests:
        for array in _arrays([test["input"], test["expected"]]):
            try:
                from_json(array)
            except ValueError as error:
                yield f"test {test['id']}: {error}"


def _arrays(tree: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(tree, dict) and "bits" in tree:
        yield tree
    elif isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _arrays(part)


def _asked(vector: Vector) -> str:
    return json.dumps([vector.kind, vector.input])


def _names() -> set[str]:
    return {KNOWN_ANSWERS, *(f"{file}.json" for file in JSON_FILES)}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} is there twice in one object")
    return dict(pairs)


def _no_constant(text: str) -> None:
    raise ValueError(f"JSON has no {text}")
