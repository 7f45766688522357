"""The recorded gradients: real, complete, and the same on every machine."""

import hashlib

import numpy as np
import pytest
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.cases.recorded import CASE, FILE, SIZES, STEPS, Recorded, record
from magma_conformance.runner.jobs import Job, open_implementation, run_case

BYTES = 1_500_000
SHA256 = "2df2f2ffe95e7d697fc66c4c5e1648190cc2e9c9efcc1291bb4d6008d0017b3b"


def test_file_is_the_one_that_reports_were_made_with():
    assert FILE.stat().st_size < BYTES
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256, "a new recording wants a new suite version"


def test_structure():
    task = Recorded().task()
    assert len(task.gradients) == len(task.learning_rates) == STEPS
    names = list(task.params)
    assert len(names) == 3 + 9 * SIZES["layers"]
    for arrays in (task.params, *task.gradients):
        assert list(arrays) == names
        for name, array in arrays.items():
            assert array.dtype == np.float32
            assert array.shape == task.params[name].shape
            assert np.isfinite(array).all()
    assert task.key == CASE
    kinds = {None if axes is None else len(axes) for axes in task.block_axes.values()}
    assert kinds == {None, 0, 1}  # not masked, a block each, a block for each row


def test_gradients_are_real():
    """Of bytes that do not occur exactly zero, over many binades, and never the same twice."""
    task = Recorded().task()
    embedding = np.stack([step["embedding"] for step in task.gradients])
    silent = (embedding == 0).all(axis=(0, 2))
    assert 0 < silent.sum() < len(silent)
    values = np.abs(embedding[embedding != 0])
    assert values.max() / values.min() > 2**20
    for name in task.params:
        assert len({step[name].tobytes() for step in task.gradients}) == STEPS


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_digest_is_pinned(backend):
    """Whatever machine, framework and version this is."""
    pytest.importorskip(backend, reason=f"{backend} computes")
    (result,) = Job(backend, "eager" if backend != "jax" else "scan", "cpu", Recorded()).run()
    assert (result.status, result.column) == ("equal", "text")
    assert result.digest == "917cee12f3f2bccdd697b08b1a2aeb4a20f077043a8322e07cfe37dc3533765e"


def test_a_changed_gradient_changes_the_digest(tmp_path):
    file = tmp_path / "changed.safetensors"
    data = bytearray(FILE.read_bytes())
    data[-1] ^= 0x80  # a sign
    file.write_bytes(data)
    results = [run_case(open_implementation("numpy", "eager", "cpu"), Recorded(path)) for path in (FILE, file)]
    assert results[0].digest != results[1].digest


def test_recording_anew_has_the_same_structure(tmp_path):
    pytest.importorskip("torch", reason="torch computes the gradients")
    losses: list[float] = []
    record(tmp_path / "new.safetensors", steps=2, advance=losses.append)
    new, old = Recorded(tmp_path / "new.safetensors").task(), Recorded().task()
    assert len(new.gradients) == len(losses) == 2
    assert {name: x.shape for name, x in new.params.items()} == {name: x.shape for name, x in old.params.items()}
    for name, array in new.params.items():  # determined by IEEE 754; the gradients are not
        np.testing.assert_array_equal(array.view(np.int32), old.params[name].view(np.int32))


def test_no_synthetic_case_has_its_name():
    assert CASE not in {case.id for case in pairwise()}
