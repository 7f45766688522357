"""The row of the conformance matrix for `magma_native`: that it runs, and that it sees what is wrong."""

import numpy as np
import pytest
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.implementations import native_adapter
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.runner.jobs import open_implementation, run_case
from magma_conformance.runner.judge_vectors import judge_vectors
from magma_conformance.vectors import load

CASES = [case for case in pairwise() if case.rule == "magma"]


def row():
    return open_implementation("magma_native", "numpy", "cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_row_is_equal_to_the_reference(case):
    result = run_case(row(), case)
    assert result.status == "equal", result.reason


def test_vectors_of_steps_are_equal_and_parts_are_not_run():
    vectors = [next(x for x in load() if x.kind == kind) for kind in ("steps", "sums", "coins", "score")]
    results = list(judge_vectors(row(), vectors))
    assert [result.status for result in results] == ["equal", "not run", "not run", "not run"]
    assert {result.reason for result in results[1:]} == {"no parts of a step"}


def test_a_wrong_step_is_found(monkeypatch):
    """The smallest step that is not the rule's: one parameter off by one unit in the last place."""
    step = native_adapter.magma_native.update_planned

    def wrong(*arguments, **options):
        params, states, reports = step(*arguments, **options)
        return [np.nextafter(params[0], params[0].dtype.type(np.inf)), *params[1:]], states, reports

    monkeypatch.setattr(native_adapter.magma_native, "update_planned", wrong)
    result = run_case(native_adapter.implementation("numpy", "cpu"), CASES[0])
    assert (result.status, result.mismatch.step) == ("different", 1)
    assert result.mismatch.array.endswith("/param")


def test_without_a_compiler_it_is_not_run(afresh):
    afresh(CC="no-such-compiler")
    result = run_case(row(), CASES[0])
    assert (result.status, "no C compiler" in result.reason) == ("not run", True)


def test_it_is_for_the_cpu():
    with pytest.raises(LookupError, match="magma_native is for the CPU"):
        ADAPTERS["magma_native"].open("numpy", "cuda")
