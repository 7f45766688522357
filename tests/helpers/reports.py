"""Reports for tests: one with every possible result of a case, and the committed ones."""

import json
from typing import Any

import numpy as np
from magma_conformance.bits import first_difference
from magma_conformance.report.report import RunReport
from magma_conformance.runner.result import Mismatch, Result
from paths import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"
COMMITTED = [RESULTS / "cpu-amd-epyc.json", *sorted(RESULTS.glob("cpu-amd-epyc-*.json"))]
"""In the order in which docs/results/matrix.html shows them."""

FIXED = {"suite", "date", "inputs", "status", "what", "digest"}
"""Fields of reports that are of a few values or a pattern."""

HOSTILE = "\"'><script>alert(1)</script><img/src=x/onerror=alert(1)>{{7*7}}</style></title>&amp;\ud800"
"""Without a space, which would make another kind of thing of some names."""

ACTUAL, EXPECTED = np.float32([[1, 2], [3, 4]]), np.float32([[1, 2], [np.nextafter(np.float32(3), 4), 4]])


def mixed() -> dict[str, Any]:
    """Every status and every kind of difference, an absent mode and column, and losses with a gap."""
    report = RunReport(
        versions={"mine": "1.0", "yours": "2.0"},
        devices={"mine": "", "yours": "Accelerator 9"},
        drivers={"mine": "", "yours": "CUDA 12.8, driver 570.86"},
        absent={"their jit": "no device cuda", "text": "torch is not installed"},
        absent_details={"their": "found no driver"},
        failures=["the loss did not fall"],
        losses=[5.5, 4.0, float("nan"), 3.0, 2.5],
        date="2026-11-25T13:19:04Z",
    )

    def add(mode: str, column: str, status: Any, reason: str = "", mismatch: Mismatch | None = None) -> None:
        case = f"{column}/{len(report.results)}"
        report.results.append(Result(mode, case, column, status, 0.5, 12, reason, mismatch))

    def differ(mode: str, column: str, actual: Any, expected: Any) -> None:
        difference = first_difference(actual, expected)
        assert difference is not None
        mismatch = Mismatch(3, "w/second_moment", difference)
        add(mode, column, "different", str(mismatch), mismatch)

    for mode in ("mine eager", "yours jit"):
        for _ in range(6):
            add(mode, "sgd", "equal")
    add("mine eager", "adamw", "equal")
    add("mine eager", "adamw", "not run", "no bfloat16")
    add("mine eager", "adamw", "not run", "no float16")
    differ("yours jit", "adamw", ACTUAL, EXPECTED)
    differ("yours jit", "adamw", np.zeros(2), np.zeros(3))
    differ("yours jit", "adamw", np.float32(0), np.float64(0))
    add("yours jit", "adamw", "failed", "ValueError: no")
    add("mine eager", "steps", "not run", "no vectors")
    return through_json(report)


def equal() -> dict[str, Any]:
    """One mode, and all is well."""
    return through_json(RunReport([Result("mine eager", f"sgd/{i}", "sgd", "equal", 0.5, 12) for i in range(6)]))


def through_json(report: RunReport) -> dict[str, Any]:
    """As a program reads it: tuples have become lists."""
    return json.loads(json.dumps(report.to_json(), allow_nan=False))


def extended(value: Any, end: str) -> Any:
    """Every string with ``end`` at its end, but for names of fields and what the schema leaves no freedom."""
    if isinstance(value, str):
        return value + end
    if isinstance(value, list):
        return [extended(element, end) for element in value]
    if not isinstance(value, dict):
        return value
    return {name: entry if name in FIXED else extended(entry, end) for name, entry in value.items()}


def spoilt(report: dict[str, Any]) -> dict[str, Any]:
    """Something hostile in every string, also in keys that are names of things."""
    report = extended(report, HOSTILE)
    texts = [report["environment"][name] for name in ("versions", "devices", "drivers")]
    for names in (*texts, report["absent"], report["absent_details"]):
        for name in list(names):
            names[name + HOSTILE] = names.pop(name)
    return report
