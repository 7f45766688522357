"""Two minutes of random cases, always the same: many for modes that compile nothing, one configuration for others.

`magma-conformance fuzz` runs as many as time allows.
"""

import warnings
from pathlib import Path

import pytest
from magma_conformance.fuzz.hunt import configurations, hunt
from magma_conformance.fuzz.rows import rows
from magma_conformance.processes.worker import end_all
from magma_conformance.runner.jobs import open_implementation
from required import find

SEED = 15
MANY = {"c port": 1000, "oracle scalar": 250, "strict eager": 300, "torch eager": 600, "magma_torch eager": 500}
MANY |= {"tensorflow eager": 60, "magma_torch ddp": 40, "magma_torch fsdp2": 40}
MANY |= {"magma_keras tensorflow-eager": 60, "magma_keras torch-eager": 100}
MANY |= {"magma_native numpy": 20}
"""Configurations where nothing is compiled, or in half a second."""

AT_ONE = 31
"""The configuration for compiled modes, of seed 0: AdamW where 1 − β₂ rounds to 1, under Magma."""

CUDA = ("magma_torch graph", "magma_jax kernels")
ROWS = [row for row in rows("cpu", Path()) if row.backend != "numpy" and row.label not in CUDA]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
@pytest.mark.filterwarnings("ignore")  # of frameworks, about values that overflow
def test_random_cases(row, tmp_path):
    if row.backend == "c":
        find("cc", variable="MAGMA_CC", remedy="apt-get install gcc")
        row = rows("cpu", tmp_path)[0]
    try:
        candidate = row.open()
    except ImportError as error:
        pytest.skip(str(error))
    many = MANY.get(row.label)
    cases = configurations(row, seed=SEED, most=many) if many else configurations(row, seed=0, first=AT_ONE, most=1)
    try:
        with warnings.catch_warnings():
            *_, tally = hunt(row, candidate, open_implementation("numpy", "eager", "cpu"), cases)
    finally:
        end_all()
    if not tally.cases and (missing := [reason for reason in tally.not_run if "compiler" in reason]):
        pytest.skip(missing[0])
    assert [f"{case.id}: {result.status}: {result.reason}" for case, result in tally.different] == []
    assert tally.equal > 0
