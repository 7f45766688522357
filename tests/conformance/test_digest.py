"""Digests: equal for equal records, different for all others, and the same on every machine."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from faulty import Faulty
from magma_conformance.cases import real_text
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.runner.jobs import Job, VectorJob, open_implementation
from magma_conformance.runner.result import compare
from magma_conformance.task import Record
from magma_conformance.vectors import load
from magma_conformance.wire.digest import digest, digest_task
from magma_conformance.wire.task_json import task_from

X = np.float32([[1, -0.0, 3], [np.inf, 2.0**-140, np.nan]])
FORMATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def test_pinned():
    """Anybody can compute it: the layout is part of the report's format."""
    record = {"w/param": X, "w/keep": np.asarray([True, False])}
    assert digest([record]) == "5ffc756e87173489515ad36fc7b777fa26d17c37524e16fc66a401b7d15d5285"


OTHERS = {
    "a sign of zero": [{"w": np.where(X == 0, np.float32(0), X)}],
    "a last place": [{"w": np.where(X == 1, np.nextafter(np.float32(1), np.float32(2)), X)}],
    "a dtype": [{"w": X.astype(np.float64)}],
    "a shape": [{"w": X.reshape(3, 2)}],
    "a transposition": [{"w": X.T.reshape(2, 3)}],
    "a name": [{"v": X}],
    "an array more": [{"w": X, "v": X}],
    "a step more": [{"w": X}, {"w": X}],
    "an empty array": [{"w": X[:0]}],
    "no step": [],
}


@pytest.mark.parametrize("other", OTHERS)
def test_every_difference_changes_it(other):
    assert digest(OTHERS[other]) != digest([{"w": X}])


def test_they_differ_from_each_other():
    assert len({digest(records) for records in OTHERS.values()}) == len(OTHERS)


def test_steps_are_in_order():
    one, other = {"w": X}, {"w": -X}
    assert digest([one, other]) != digest([other, one])
    assert digest([{"b": X}, {"w": X}]) != digest([{"b": X, "w": X}])


@pytest.mark.parametrize("dtype", FORMATS)
def test_nans_are_one(dtype):
    """x86 makes negative ones, CUDA 0x7fffffff; the comparison takes them for equal, and so must the digest."""
    bits = {2: "u2", 4: "u4", 8: "u8"}[np.dtype(dtype).itemsize]
    quiet = np.array([np.nan, 1], dtype)
    other = quiet.copy()
    other.view(bits)[0] |= np.array(1, bits) << (8 * other.itemsize - 1) | np.array(1, bits)
    assert other.view(bits)[0] != quiet.view(bits)[0]
    assert compare([{"w": other}], [{"w": quiet}]) is None
    assert digest([{"w": other}]) == digest([{"w": quiet}])


def test_memory_order_and_the_order_of_names_do_not_matter():
    y = np.asfortranarray(X)
    assert digest([{"w": X, "b": y}]) == digest([{"b": X.copy(), "w": y}])
    big = X.astype(">f4")
    assert digest([{"w": big.astype("<f4")}]) == digest([{"w": X}])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_results_have_the_digest_of_what_ran(backend):
    pytest.importorskip(backend, reason=f"{backend} computes")
    case = pairwise()[3]
    (result,), (reference,) = (Job(name, "eager", "cpu", case).run() for name in (backend, "numpy"))
    assert result.status == "equal"
    assert len(result.digest) == 64
    assert result.digest == reference.digest != Job("numpy", "eager", "cpu", pairwise()[4]).run()[0].digest


def test_tasks_have_digests_of_everything():
    task = pairwise()[0].task()
    changed = [
        replace(task, seed=task.seed + 1),
        replace(task, learning_rates=[0.5, *task.learning_rates[1:]]),
        replace(task, first_step=2),
        replace(task, rule={**task.rule, "p": 0.25}),
        replace(task, base={**task.base, "weight_decay": 0.25}),
        replace(task, params={"w": task.params["w"] + np.asarray(1, task.params["w"].dtype)}),
        replace(task, gradients=[*task.gradients[:-1], {"w": -task.gradients[-1]["w"]}]),
        replace(task, block_axes={"w": None}),
    ]
    assert len({digest_task(one) for one in (task, *changed)}) == len(changed) + 1
    assert digest_task(task) == digest_task(pairwise()[0].task())


def test_vectors_have_digests_of_what_was_given():
    """Those that must be refused have none."""
    some = [next(v for v in load() if v.file == file) for file in ("threefry", "sums", "score", "adamw", "errors")]
    results = VectorJob("numpy", "eager", "cpu", tuple(some)).run()
    assert [len(result.digest) for result in results] == [64, 64, 64, 64, 0]
    assert len({result.digest for result in results}) == 5
    given = open_implementation("numpy", "eager", "cpu").run(task_from(some[3].input, key="a vector"))
    assert results[3].digest == digest(given)


def test_real_text_has_digests(tmp_path):
    """Of all that was computed, until the first difference; and of the gradients."""
    pytest.importorskip("torch", reason="torch computes the gradients")
    recording, _ = real_text.record(tmp_path, 3, lambda loss: None)
    numpy = open_implementation("numpy", "eager", "cpu")

    def plant(records: list[Record]) -> None:
        records[1]["head/mu"].view(np.int32)[0, 0] ^= 1

    mismatch, right = real_text.follow(numpy, recording)
    assert mismatch is None
    planted, wrong = real_text.follow(Faulty(plant), recording)
    assert (planted.step, planted.array) == (2, "head/mu")
    assert right != wrong
    inputs = recording.inputs()
    gradients = dict(np.load(tmp_path / "gradients-2.npz"))
    np.savez(tmp_path / "gradients-2.npz", *[x + 1 for x in gradients.values()])
    assert recording.inputs() != inputs
