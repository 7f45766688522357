"""Tests of the checkers: they must find every planted fault, and name it correctly."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from faulty import Faulty
from magma_conformance.bits import assert_bits_equal, first_difference
from magma_conformance.cases.pairwise import FACTORS, pairwise, product
from magma_conformance.implementations.core import implementation
from magma_conformance.processes import pulse
from magma_conformance.processes.worker import STUCK
from magma_conformance.runner import lanes
from magma_conformance.runner.jobs import Job, VectorJob, open_mode, run_case, run_jobs
from magma_conformance.runner.lanes import deal
from magma_conformance.runner.result import Result, Status, compare
from magma_conformance.task import Record
from magma_conformance.vectors import load

CASE = next(c for c in pairwise() if c.rule == "magma" and c.shape == "matrix" and c.base != "sgd")


def verdict(plant: Callable[[list[Record]], object]) -> Result:
    return run_case(Faulty(plant), CASE)


@pytest.mark.parametrize("field", ["param", "mu", "nu", "score", "cosine"])
def test_one_ulp_is_found(field):
    def plant(records: list[Record]) -> None:
        x = records[3][f"w/{field}"]
        bits = x.view(f"i{x.itemsize}")
        bits[tuple(np.argwhere(np.isfinite(x) & (x != 0))[0])] += 1

    result = verdict(plant)
    assert (result.status, result.mismatch.step, result.mismatch.array) == ("different", 4, f"w/{field}")
    assert (result.mismatch.difference.ulp, result.mismatch.difference.count) == (1, 1)


def test_negative_zero_is_found():
    def plant(records: list[Record]) -> None:
        mu = next(record["w/mu"] for record in records if (record["w/mu"] == 0).any())
        mu[tuple(np.argwhere(mu == 0)[0])] = -0.0

    result = verdict(plant)
    assert result.status == "different"
    assert "-0.0 0x80000000, expected 0.0 0x00000000" in result.reason


@pytest.mark.parametrize("field", ["keep", "sums"])
def test_flipped_coin_and_sum_off_by_one_are_found(field):
    def plant(records: list[Record]) -> None:
        values = records[2][f"w/{field}"].reshape(-1)
        values[0] ^= 1

    result = verdict(plant)
    assert (result.status, result.mismatch.array, result.mismatch.step) == ("different", f"w/{field}", 3)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda x: x.astype(np.float64), "dtype float64, expected float32"),
        (lambda x: x[None], "shape"),
        (lambda x: np.full_like(x, np.nan), "nan"),
    ],
)
def test_wrong_dtype_shape_and_values_are_found(fault, what):
    result = verdict(lambda records: records[0].update({"w/mu": fault(records[0]["w/mu"])}))
    assert result.status == "different"
    assert what in result.reason


def test_missing_and_superfluous_arrays_are_failures():
    assert verdict(lambda records: records[0].pop("w/score")).status == "failed"
    assert verdict(lambda records: records[0].update(extra=np.zeros(1))).status == "failed"
    assert verdict(lambda records: records.pop()).status == "failed"


def test_stale_result_is_found():
    """An implementation that answers with the step before."""
    assert verdict(lambda records: records.__setitem__(5, records[4])).status == "different"


def test_exception_is_a_failure_with_its_text():
    def plant(records: list[Record]) -> None:
        raise RuntimeError("out of order")

    result = verdict(plant)
    assert (result.status, result.reason) == ("failed", "RuntimeError: out of order")


def test_refusal_is_not_a_pass():
    candidate = Faulty(lambda records: None)
    candidate.refuses = lambda task: "no such dtype"
    assert run_case(candidate, CASE).status == "not run"


def test_unspoilt_records_are_equal():
    assert verdict(lambda records: None).status == "equal"


def test_compare_treats_nans_as_equal_whatever_their_payload():
    quiet = np.array([0x7FC00000], np.uint32).view(np.float32)
    other = np.array([0xFFC00001], np.uint32).view(np.float32)
    assert compare([{"w/mu": quiet}], [{"w/mu": other}]) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_first_difference_counts_ulp_across_zero(dtype):
    one = np.array([1, 1], f"u{np.dtype(dtype).itemsize}").view(dtype)  # the smallest subnormal
    difference = first_difference(-one, one)
    assert (difference.ulp, difference.count, difference.index) == (2, 2, (0,))


def test_assert_bits_equal_names_index_hex_and_distance():
    a = np.ones((2, 3), np.float32)
    b = a.copy()
    b[1, 2] = np.nextafter(b[1, 2], np.float32(2))
    with pytest.raises(AssertionError, match=r"grad: \[1, 2\] 1\.0000001.* 0x3f800001, .*0x3f800000 \(1 ulp\)"):
        assert_bits_equal(b, a, "grad")


def test_pairwise_covers_every_pair_of_options():
    cases = pairwise()
    for first in FACTORS:
        for second in FACTORS:
            if first < second:
                seen = {(getattr(case, first), getattr(case, second)) for case in cases}
                assert len(seen) == len(FACTORS[first]) * len(FACTORS[second]), (first, second)
    assert len({case.id for case in cases}) == len(cases)


def test_product_is_every_combination():
    assert sum(1 for _ in product()) == np.prod([len(values) for values in FACTORS.values()])


def test_case_task_is_reproducible_and_differs_between_cases():
    one, again = CASE.task(), CASE.task()
    for a, b in zip(one.gradients, again.gradients, strict=True):
        assert_bits_equal(a["w"], b["w"])
    assert one.seed != replace(CASE, decay="none" if CASE.decay != "none" else "dense").task().seed


def test_scalars_of_numpy_are_arrays():
    """Some frameworks hand out ``np.float32`` for an array of shape ()."""
    numpy = implementation(open_mode("numpy", "eager", "cpu"))
    case = next(c for c in pairwise() if c.shape == "scalar" and c.base == "adamw")
    whole, task = numpy.run(case.task()), case.task()
    state = {name: x[()] for name, x in whole[0].items()}
    assert isinstance(state["w/mu_power"], np.float32)
    rest = replace(
        task,
        params={"w": state["w/param"]},
        gradients=[{"w": step["w"][()]} for step in task.gradients[1:]],
        learning_rates=task.learning_rates[1:],
        first_step=2,
        state=state,
    )
    assert compare(numpy.run(rest), whole[1:], first_step=2) is None


class Slow:
    """A job that sleeps, or ends its process."""

    size = 1

    def __init__(self, backend: str, seconds: float = 0.0, exit: bool = False) -> None:
        self.backend, self.mode, self.seconds, self.exit = backend, "eager", seconds, exit

    def run(self) -> list[Result]:
        if self.exit:
            os._exit(3)
        time.sleep(self.seconds)
        return self.unanswered("equal", "")

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        return [Result(f"{self.backend} {self.mode}", "case", "sgd", status, self.seconds, reason=reason)]


@pytest.mark.parametrize("processes", [1, 2])
def test_after_its_seconds_no_job_is_begun(processes):
    jobs = [Slow(name, 0.6) for name in ("a", "a", "b", "b")]
    results = list(run_jobs(jobs, processes, seconds=0.3 + 10 * (processes - 1)))
    if processes == 1:
        assert [result.status for result in results] == ["equal", "not run", "not run", "not run"]
        assert results[1].reason == "0.3 seconds were over"
    else:  # there was time enough
        assert [result.status for result in results] == ["equal"] * 4


def test_nobody_waits_for_a_job_without_end(monkeypatch):
    """It is too slow: that is no failure."""
    late = 0.0
    monkeypatch.setattr(lanes, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))
    monkeypatch.setattr(pulse, "LOOK", 0.05)
    results = []
    for result in run_jobs([Slow("a"), *(Slow("b", 3000.0) for _ in range(4))], 2, seconds=1000):
        results.append(result)
        late = 1000 + lanes.GRACE + 1  # from the first result on
    assert [(r.mode, r.status, r.reason) for r in results] == [
        ("a eager", "equal", ""),
        ("b eager", "not run", "too slow: begun, but not done when 1000 + 60 seconds were over"),
        *[("b eager", "not run", "1000 seconds were over")] * 3,
    ]


def test_a_process_that_dies_fails_its_job_and_no_other():
    results = list(run_jobs([Slow("a"), Slow("a"), Slow("b", exit=True), Slow("b")], 2))
    assert [(r.mode, r.status) for r in sorted(results, key=lambda r: r.mode)] == [
        *[("a eager", "equal")] * 2,
        ("b eager", "failed"),
        ("b eager", "equal"),
    ]
    assert {r.reason for r in results if r.status == "failed"} == {"its process died (exit status 3)"}


def test_a_process_that_does_nothing_is_stuck(monkeypatch):
    monkeypatch.setattr(pulse, "LOOK", 0.05)
    monkeypatch.setattr(pulse, "_LEAST", 1e9)  # nothing that it does is work
    results = list(run_jobs([Slow("a", 3000.0), Slow("b", 3000.0)], 2))
    assert {(r.status, r.reason) for r in results} == {("failed", STUCK)}
    assert STUCK.startswith("stuck: ")


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_being_done_is_told(processes):
    told: list[list[str]] = []
    jobs = [Slow("a"), Slow("b")]
    list(run_jobs(jobs, processes, working=lambda at_hand: told.append([job.backend for job in at_hand])))
    assert told[0] == ["a"]
    assert told[-1][-1] == "b"


def test_unanswered_jobs_have_all_their_verdicts():
    vectors = tuple(load()[:3])
    for job in (Job("numpy", "eager", "cpu", CASE), VectorJob("numpy", "eager", "cpu", vectors)):
        answered, unanswered = job.run(), job.unanswered("not run", "no time")
        assert [(r.mode, r.case, r.column) for r in answered] == [(r.mode, r.case, r.column) for r in unanswered]
        assert {(r.status, r.reason, r.digest) for r in unanswered} == {("not run", "no time", "")}


@pytest.mark.parametrize("processes", [1, 2, 3, 8, 40])
def test_lanes_hold_every_job_once(processes):
    """Modes that compile each case are divided where there are processes enough; others are not."""
    jobs = [Job("jax", "jit", "cpu", case) for case in pairwise()[:9]]
    jobs += [Job("magma_torch", "compile", "cpu", case) for case in pairwise()[:9]]
    dealt = deal(jobs, processes)
    assert sorted(map(id, jobs)) == sorted(id(job) for lane in dealt for job in lane)
    assert len(dealt) == min(processes, len(dealt))
    assert sum(any(job.backend == "magma_torch" for job in lane) for lane in dealt) == 1
    assert sum(any(job.backend == "jax" for job in lane) for lane in dealt) > 1 or processes < 3
