"""The table of docs/fuzz.md sums the reports in docs/results/fuzz, which found no difference."""

import json
from collections import Counter
from pathlib import Path

import pytest
from magma_conformance.fuzz.rows import rows
from paths import REPOSITORY

DOCS = REPOSITORY / "docs"
REPORTS = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((DOCS / "results/fuzz").glob("*.json"))]


def test_reports_are_of_different_cases():
    """Else a case would be counted twice."""
    seen = [(report["seed"], row["backend"], row["mode"]) for report in REPORTS for row in report["rows"]]
    assert seen
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: f"seed {report['seed']}")
def test_nothing_differed(report):
    assert [row["different"] for row in report["rows"] if row["different"]] == []


def test_table_is_the_sum_of_the_reports():
    configurations, cases = Counter[str](), Counter[str]()
    for report in REPORTS:
        for row in report["rows"]:
            label = f"{row['backend']} {row['mode']}"
            configurations[label] += row["configurations"]
            cases[label] += row["equal"]
    order = [row.label for row in rows("cpu", Path())]
    lines = [f"| {label} | {configurations[label]:,} | {cases[label]:,} |" for label in sorted(cases, key=order.index)]
    text = (DOCS / "fuzz.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in text
    assert f"{sum(cases.values()):,} cases" in text
