"""Reports of a few cases, for comparison."""

from typing import Any

from magma_conformance.report.report import RunReport
from magma_conformance.runner.result import Result, Status
from reports import through_json

A, B = "a" * 64, "b" * 64
CASES = ("sgd/1", "adamw/2", "vectors/coins/1", "text")


def report(mode: str = "numpy eager", digest: str = A, status: Status = "equal", **inputs: str) -> dict[str, Any]:
    results = [Result(mode, case, case.partition("/")[0], status, 0.0, digest=digest) for case in CASES]
    given = {"sgd/1": A, "adamw/2": A, "text": A} | inputs
    return through_json(RunReport(results, inputs=given))


def changed(what: dict[str, Any], case: str, **entries: Any) -> dict[str, Any]:
    for result in what["results"]:
        if result["case"] == case:
            result.update(entries)
    return what
