"""Faults within a leg of the relay, or between two, are found and named."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from magma_conformance.relay.folder import Folder
from magma_conformance.relay.legs.leg import run_leg
from magma_conformance.relay.verdict import at_station, distance, of_masks
from relay_runs import TINY, needs_jax, needs_torch, nothing

from magma_core import read_state, write_state


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Folder:
    """The run that never moves, in this process."""
    pytest.importorskip("torch", reason="torch is not installed")
    from magma_conformance.relay.reference import run_reference

    folder = Folder(tmp_path_factory.mktemp("relay") / "reference")
    folder.write_plan(TINY)
    run_reference(folder, nothing)
    return folder


@pytest.fixture
def before(reference, tmp_path) -> Callable[[int], Folder]:
    """A folder of its own, where both relays stand at the beginning of a leg, counted from 1."""

    def make(leg: int) -> Folder:
        folder = Folder(tmp_path / f"before-{leg}")
        shutil.copytree(reference.root, folder.root)
        for kind in ("exact", "free"):
            folder.start(kind, (leg - 1) * TINY.steps)
        return folder

    return make


@needs_torch
def test_a_leg_ends_where_the_run_that_never_moved_stands(before):
    folder = before(4)
    run_leg(folder, 3, nothing)
    assert at_station(folder, "exact", 8) is None
    assert of_masks(folder, "exact", range(7, 9)) == of_masks(folder, "free", range(7, 9)) == (14, None)


@needs_torch
def test_an_ulp_in_a_weight_is_found(before):
    folder = before(4)
    station = folder.station("exact", 6)
    weights = station.read_weights()
    weights["norm"][3] = np.nextafter(weights["norm"][3], np.float32(2))
    station.write_weights(weights)
    run_leg(folder, 3, nothing)
    found = at_station(folder, "exact", 8)
    assert (found.step, found.array) == (8, "weights/norm")
    assert (found.difference.index, found.difference.count) == ((3,), 1)
    assert 1 <= found.difference.ulp <= 2


@needs_torch
def test_a_score_that_is_lost_is_found(before):
    folder = before(4)
    tamper(folder, "layers.0.mlp.up", lambda state: state._replace(score=np.float32(0.5)))
    run_leg(folder, 3, nothing)
    found = at_station(folder, "exact", 8)
    assert found.array in ("weights/layers.0.mlp.up", "state/layers.0.mlp.up/score")
    assert of_masks(folder, "exact", range(7, 9))[1] is None  # they do not depend on it


@needs_torch
def test_an_ulp_in_a_moment_is_found(before):
    """In a moment which no later step forgets, but where the weights do not show it."""
    folder = before(4)

    def one_ulp(state):
        nu = state.nu.copy()
        nu[1, 2] = np.nextafter(nu[1, 2], np.float32(1))
        return state._replace(nu=nu)

    tamper(folder, "layers.0.mlp.up", one_ulp)
    run_leg(folder, 3, nothing)
    found = at_station(folder, "exact", 8)
    assert found.array == "state/layers.0.mlp.up/nu"
    assert found.difference.index == (1, 2)


@needs_torch
def test_a_step_that_is_not_counted_is_found(before):
    folder = before(4)
    station = folder.station("exact", 6)
    saved = {name: replace(one, step=one.step - 1) for name, one in read_state(station.state).items()}
    write_state(station.state, saved)
    run_leg(folder, 3, nothing)
    assert of_masks(folder, "exact", range(7, 9))[1] is not None
    assert at_station(folder, "exact", 8) is not None


@needs_torch
def test_a_state_that_is_equal_in_a_file_that_is_not_is_found(reference, before):
    """Other settings, for example."""
    folder = before(4)
    station = folder.station("exact", 6)
    saved = {name: replace(one, seed=one.seed + 1) for name, one in read_state(station.state).items()}
    write_state(station.state, saved)
    assert at_station(folder, "exact", 6).array == "state.safetensors"
    del saved["norm"]
    write_state(station.state, saved)
    found = at_station(folder, "exact", 6)
    assert found.array.startswith("state/norm/")
    assert str(found).endswith("array missing, expected there")


def tamper(folder: Folder, name: str, change: Callable) -> None:
    """Change the state of one parameter before the last leg."""
    station = folder.station("exact", 6)
    saved = read_state(station.state)
    write_state(station.state, saved | {name: replace(saved[name], state=change(saved[name].state))})


@needs_torch
@needs_jax
def test_axes_that_are_not_told_are_found(before, monkeypatch):
    """A square matrix: its shape says nothing, and the file is taken as it is."""
    from magma_conformance.relay.legs import jax_leg

    def forgetful(*arguments, axes):
        return load(*arguments, axes=lambda name, shape: None if name.endswith("wo") else axes(name, shape))

    load = jax_leg.load_state
    monkeypatch.setattr(jax_leg, "load_state", forgetful)
    folder = before(2)
    run_leg(folder, 1, nothing)
    found = at_station(folder, "exact", 4)
    assert (found.step, found.array) == (4, "weights/layers.0.attention.wo")


@needs_torch
@needs_jax
def test_block_axes_of_another_layout_are_refused(before, monkeypatch):
    from magma_conformance.relay.legs import jax_leg

    monkeypatch.setattr(jax_leg.layout, "own_block_axes", lambda name, shape: jax_leg.layout.block_axes(name))
    with pytest.raises(ValueError, match=r"'layers.0.attention.wq' was saved with block_axes \(1,\)"):
        run_leg(before(2), 1, nothing)


@needs_torch
def test_a_name_that_is_another_is_found(before, monkeypatch):
    """The file has the right one, and masks are keyed by a wrong one. The rows of wq are enough coins to tell."""
    from magma_conformance.relay.legs import torch_leg

    wrong, right = "layers.1.attention.wq", "layers.0.attention.wq"
    make, load, save = torch_leg.Magma, torch_leg.load_state, torch_leg.save_state

    def renamed(groups, **options):
        return make(
            [
                {**group, "params": [(wrong if name == right else name, p) for name, p in group["params"]]}
                for group in groups
            ],
            **options,
        )

    monkeypatch.setattr(torch_leg, "Magma", renamed)
    monkeypatch.setattr(torch_leg, "load_state", lambda *given: load(*given, names={wrong: right}))
    monkeypatch.setattr(torch_leg, "save_state", lambda *given: save(*given, names={wrong: right}))
    folder = before(4)
    run_leg(folder, 3, nothing)
    assert at_station(folder, "exact", 8).array == f"weights/{right}"
    count, found = of_masks(folder, "exact", range(7, 9))
    assert count == 0
    assert (found.step, found.array) == (7, f"mask/{right}")


@needs_torch
def test_distance(reference, before):
    folder = before(1)
    assert distance(folder, 0) == 0
    station = folder.station("free", 0)
    station.write_weights({name: array * np.float32(1.5) for name, array in station.read_weights().items()})
    assert distance(folder, 0) == pytest.approx(0.5, rel=1e-6)  # a norm, summed in floating point; no promise of bits


@needs_torch
def test_folder_keeps_what_is_written(reference):
    assert reference.plan() == TINY
    assert sorted(reference.batches()) == list(range(1, 9))
    assert reference.batches()[1].shape == (2, 13)
    assert reference.gradients(3).keys() == reference.station("reference", 4).read_weights().keys()
    assert {name: mask.shape for name, mask in reference.masks("reference", 1).items()}["layers.0.attention.wq"] == (
        16,
    )
