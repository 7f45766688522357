"""Makes the files of vectors: ``magma-conformance vectors --write FOLDER``."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from magma_conformance.vectors import KNOWN_ANSWERS
from magma_conformance.vectors.generator import edges, errors, parts, steps
from magma_conformance.vectors.generator.answers import answer
from magma_conformance.vectors.generator.hazards import HAZARDS, flags
from magma_conformance.vectors.generator.parts import Asked
from magma_conformance.versions import SPEC_VERSION, VECTORS_VERSION

LEAST = 2
"""Vectors of a base that each applicable hazard of arithmetic must change, at least."""

_STEPS = (
    *("Contraction", "ExcessPrecision", "Complement", "Flush", "SignedZero", "Subnormal", "DroppedBits"),
    *("SumOrder", "NonFinite", "ZeroNorm", "BlockOrder"),
)
_DIVIDING = ("Reciprocal", "Root", "Reassociation")
_WANTED: dict[str, tuple[str, ...]] = {
    "sgd": _STEPS,
    "rmsprop": _STEPS + _DIVIDING,
    "adam": (*_STEPS, *_DIVIDING, "Power"),
    "adamw": (*_STEPS, *_DIVIDING, "Power"),
    "laprop": (*_STEPS, *_DIVIDING, "Power"),
}


def write(folder: Path, advance: Callable[[str], None] = lambda file: None, /) -> None:
    """Write all vector files into ``folder``; ``advance`` is called with the name of each finished file.

    Answers depend on the code alone. Flags of hazards that use a C library's exp and pow depend on the library too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {KNOWN_ANSWERS: known_answers, **{f"{name}.json": make for name, make in _FILES.items()}}
    for name, make in files.items():
        (folder / name).write_text(make(), encoding="utf-8", newline="\n")
        advance(name)


def known_answers() -> str:
    """Known answers in Random123's format: name, rounds, counter, key, output, with a comment line before each."""
    lines = ["# threefry2x32 ROUNDS COUNTER KEY OUTPUT, in hexadecimal; docs/spec.md section 7.1"]
    for asked in parts.cipher():
        output = answer(asked.kind, asked.inputs)["words"]["bits"]
        lines += [f"# {asked.comment}"]
        lines += [f"threefry2x32 20 {asked.inputs['counter']['bits']} {asked.inputs['key']['bits']} {output}"]
    return "\n".join(lines) + "\n"


def _flagged(asked: Iterable[Asked]) -> Iterator[dict[str, Any]]:
    for comment, kind, inputs in asked:
        expected = answer(kind, inputs)
        yield {
            "comment": comment,
            "flags": flags(kind, inputs, expected),
            "kind": kind,
            "input": inputs,
            "expected": expected,
        }


def _base(kind: str) -> str:
    """Single steps of a base, and enough more for every hazard to occur."""
    tests = list(_flagged(steps.singles(kind)))
    met = Counter(itertools.chain.from_iterable(test["flags"] for test in tests))
    more = _flagged(steps.more(kind))
    for flag in _WANTED[kind]:
        while met[flag] < LEAST:
            test = next((test for test in itertools.islice(more, 2000) if flag in test["flags"]), None)
            if test is None:
                raise RuntimeError(f"among 2000 more steps of {kind} none is changed by {flag}")
            tests.append(test)
            met.update(test["flags"])
    tests += _flagged(edges.unit_factors(kind))  # at the end, so that vectors keep their numbers
    return _document(f"single steps of {kind}, each from a state of its own", tests)


def _errors() -> str:
    tests = [
        {
            "comment": asked.comment,
            "flags": [],
            "kind": asked.kind,
            "input": asked.inputs,
            "expected": {"refused": reason},
        }
        for asked, reason in errors.errors()
    ]
    return _document("what an implementation must refuse (section 9)", tests)


def _document(about: str, tests: list[dict[str, Any]]) -> str:
    used = set(itertools.chain.from_iterable(test["flags"] for test in tests))
    head: dict[str, Any] = {
        "vectors": "magma-core",
        "version": VECTORS_VERSION,
        "spec": SPEC_VERSION,
        "about": about,
        "generator": "magma-conformance vectors --write FOLDER",
        "notes": {flag: {"section": h.section, "note": h.note} for flag, h in HAZARDS.items() if flag in used},
        "count": len(tests),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    entries = (json.dumps({"id": i, **test}, ensure_ascii=False) for i, test in enumerate(tests, 1))
    return "{\n" + ",\n".join(lines) + ',\n"tests": [\n' + ",\n".join(entries) + "\n]\n}\n"


_FILES: dict[str, Callable[[], str]] = {
    "coins": lambda: _document("keys, coins and keep masks (7.2, 7.3)", list(_flagged(parts.coins()))),
    "sums": lambda: _document("quantisation and integer sums (5.1, 5.2)", list(_flagged(parts.sums()))),
    "score": lambda: _document("cosine, sigmoid and score (5.3 to 5.5)", list(_flagged(parts.score()))),
    **{kind: lambda kind=kind: _base(kind) for kind in steps.BASES},  # type: ignore[misc]
    "trajectories": lambda: _document("runs of several steps and parameters", list(_flagged(steps.trajectories()))),
    "errors": _errors,
}
