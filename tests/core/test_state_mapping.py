"""Mapping between a file and an optimizer: names, axes, and whether the two match."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal

from magma_core import SGD, AdamW, LaProp, Saved, State, dense, magma, write_state
from magma_core.blocks import cut
from magma_core.state_file.mapping import from_file, to_file
from magma_core.state_file.matching import shared_history

SHAPE = (2, 3, 4)
PLAIN = {"names": None, "axes": None}


def saved(shape: tuple[int, ...] = SHAPE, axes: Any = (2, 0), **changes: Any) -> Saved:
    """With values that are all different."""
    start = Saved(shape, axes, 0, 5, AdamW(), magma(), State()).started()
    fields = {
        field: (np.arange(x.size, dtype=np.float32).reshape(x.shape) + 1) / (100 * (1 + i))
        for i, (field, x) in enumerate(start.state._asdict().items())
        if x is not None
    }
    return replace(start, step=3, state=State(**fields), **changes)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def loaded(found: dict[str, Saved], own: dict[str, Saved], **options: Any) -> dict[str, Saved]:
    """``found`` through a file called "f"."""
    write_state("f", found)
    return dict(from_file("f", own, **options))


def check_same(actual: Saved, expected: Saved) -> None:
    assert (actual.shape, actual.block_axes, actual.step) == (expected.shape, expected.block_axes, expected.step)
    for field, value in expected.state._asdict().items():
        if value is not None:
            assert_bits_equal(getattr(actual.state, field), value, field)


@pytest.mark.parametrize("permutation", list(itertools.permutations(range(3))), ids=str)
def test_axes_mean_what_transpose_means(permutation):
    """Own = file.transpose(axes), whichever way it goes; blocks keep their index, and so their score and coins."""
    own = saved()
    options = {"names": None, "axes": {"w": permutation}}
    there = to_file({"w": own}, **options)["w"]
    assert_bits_equal(there.state.mu.transpose(permutation), own.state.mu, "mu")
    assert_bits_equal(there.state.nu.transpose(permutation), own.state.nu, "nu")
    assert there.shape == there.state.mu.shape
    assert there.state.score is own.state.score
    assert_bits_equal(there.state.mu_power, np.asarray(own.state.mu_power), "mu_power")
    for index in np.ndindex(4, 2):  # each block has the same elements
        blocks = [
            x.state.mu[tuple(index[x.block_axes.index(a)] if a in x.block_axes else slice(None) for a in range(3))]
            for x in (own, there)
        ]
        assert set(blocks[0].flat) == set(blocks[1].flat)
    check_same(loaded({"w": there}, {"w": own}, **options, strict=True)["w"], own)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1), (1, 0), None])
def test_block_axes_are_translated_in_their_order(axes):
    there = to_file({"w": saved((2, 3), axes)}, names=None, axes=lambda name, shape: (1, 0))["w"]
    assert there.block_axes == (None if axes is None else tuple(1 - axis for axis in axes))
    if axes is not None:
        blocks = cut((2, 3), axes, name="w"), cut((3, 2), there.block_axes, name="w")
        assert blocks[0].block_shape == blocks[1].block_shape


def test_axes_are_asked_for_by_own_name_and_shape():
    asked = []

    def axes(name: str, shape: tuple[int, ...]) -> Any:
        asked.append((name, shape))
        return [np.int64(1), 0] if name == "w" else None

    own = {"w": saved((2, 3), ()), "b": saved((3,), ())}
    there = to_file(own, names={"w": "W"}, axes=axes)
    assert asked == [("w", (2, 3)), ("b", (3,))]
    assert (there["W"].shape, there["b"].shape) == ((3, 2), (3,))


@pytest.mark.parametrize("names", [{"a": "x/a", "b": "a"}, lambda name: {"a": "x/a", "b": "a"}[name]])
def test_names_are_mapped_both_ways(names):
    own = {"a": saved((2,), ()), "b": saved((3,), ())}
    there = to_file(own, names=names, axes=None)
    assert {name: one.shape for name, one in there.items()} == {"x/a": (2,), "a": (3,)}
    back = loaded(there, own, names=names, axes=None, strict=True)
    assert {name: one.shape for name, one in back.items()} == {"a": (2,), "b": (3,)}


BAD_MAPPINGS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "names of no kind": ("w", None, TypeError, "names must map"),
    "a name that is none": ({"w": 3}, None, TypeError, "names must give strings, got 3 for 'w'"),
    "one name for two": ({"w": "b"}, None, ValueError, "names gives 'b' for both 'w' and 'b'"),
    "a name that is unknown": ({"x": "y"}, None, ValueError, "names has 'x', which is no parameter of the optimizer"),
    "axes of no kind": (None, (1, 0), TypeError, "axes must map"),
    "axes of an unknown name": (None, {"x": (1, 0)}, ValueError, "axes has 'x', which is no parameter"),
    "axes too few": (None, {"w": (0,)}, ValueError, r"axes must give 'w', of shape \(2, 3\), a permutation"),
    "axes twice": (None, {"w": (0, 0)}, ValueError, "a permutation of its 2 axes such as"),
    "axes from the end": (None, {"w": (-1, 0)}, ValueError, "a permutation of its 2 axes such as"),
    "axes of text": (None, {"w": "10"}, ValueError, "a permutation of its 2 axes such as"),
    "an axis alone": (None, {"w": 1}, ValueError, "a permutation of its 2 axes such as"),
}


@pytest.mark.parametrize("case", BAD_MAPPINGS)
def test_mappings_that_cannot_be_are_refused(case):
    names, axes, kind, match = BAD_MAPPINGS[case]
    own = {"w": saved((2, 3), ()), "b": saved((3,), ())}
    with pytest.raises(kind, match=match):
        to_file(own, names=names, axes=axes)
    with pytest.raises(kind, match=match):
        loaded(own, own, names=names, axes=axes, strict=False)


# Whether the two fit


def fit(there: Saved | dict[str, Saved], own: Saved, strict: bool = True, axes: Any = None) -> Saved:
    found = there if isinstance(there, dict) else {"w": there}
    return loaded(found, {"w": own}, names=None, axes=axes, strict=strict)["w"]


OTHERS: dict[str, tuple[Any, str]] = {
    "block axes": ({"block_axes": (0, 2)}, r"block_axes \(0, 2\), the optimizer has \(2, 0\)"),
    "not masked": ({"block_axes": None}, r"block_axes None, the optimizer has \(2, 0\)"),
    "seed": ({"seed": 6}, "seed 6, the optimizer has 5"),
    "base": ({"base": LaProp()}, "base kind 'laprop', the optimizer has 'adamw'"),
    "number of the base": ({"base": AdamW(beta1=0.8)}, "base beta1 0.8, the optimizer has 0.9"),
    "rule": ({"rule": magma(p=0.25)}, "rule p 0.25, the optimizer has 0.5"),
    "decay": ({"rule": magma(decay="dense")}, "rule decay 'dense', the optimizer has 'masked'"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_strict_wants_the_optimizer_s_options(case):
    changes, match = OTHERS[case]
    there, own = saved((4, 2, 4), **changes).started(), saved((4, 2, 4))
    with pytest.raises(ValueError, match=rf"^state file 'f' does not fit: 'w' was saved with {match}"):
        fit(there, own)


@pytest.mark.parametrize("case", ["seed", "base", "number of the base", "rule", "decay", "block axes"])
def test_otherwise_fields_and_shapes_are_enough(case):
    there, own = saved((4, 2, 4), **OTHERS[case][0]), saved((4, 2, 4))
    check_same(replace(fit(there, own, strict=False), block_axes=None), replace(there, block_axes=None))


@pytest.mark.parametrize(
    "there",
    [saved(axes=None), saved(axes=(0,)), replace(saved(), base=SGD()), replace(saved(), rule=dense())],
    ids=["axes None", "axes (0,)", "base", "rule"],
)
def test_fields_and_shapes_must_fit_anyway(there):
    there = there.started()
    with pytest.raises(ValueError, match=r"the state of 'w' has .*mu.*, the optimizer's .*score"):
        fit(there, saved(), strict=False)


def test_what_a_parameter_that_is_not_masked_does_not_take_may_differ():
    there, own = saved(axes=None, seed=1, rule=magma(p=0.1)), saved(axes=None)
    check_same(fit(there, own), there)
    with pytest.raises(ValueError, match="rule decay"):
        fit(replace(there, rule=dense(decay="dense")), own)


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_must_be_the_optimizer_s(strict):
    with pytest.raises(
        ValueError, match=r"'w' has shape \(3, 2\), of which axes \(0, 1\) do not make .* \(2, 3\): say with axes="
    ):
        fit(saved((3, 2), ()), saved((2, 3), ()), strict)
    with pytest.raises(
        ValueError,
        match=r"'w' has shape \(2, 3\), of which axes \(1, 0\) do not make that of the optimizer's 'w', \(2, 3\)",
    ):
        fit(saved((2, 3), ()), saved((2, 3), ()), strict, axes={"w": (1, 0)})
    with pytest.raises(ValueError, match=r"'w' has shape \(6,\)"):
        fit(saved((6,), ()), saved((2, 3), ()), strict)


@pytest.mark.parametrize("strict", [True, False])
def test_names_must_be_the_optimizer_s(strict):
    w = saved()
    with pytest.raises(ValueError, match="'w' is no parameter of the file, which has 'v': map"):
        fit({"v": w}, w, strict)
    with pytest.raises(ValueError, match="'v' is no parameter of the optimizer, which has 'w': map"):
        fit({"v": w, "w": w}, w, strict)
    with pytest.raises(ValueError, match=r"which has 'n0', .*, 'n7', …: map"):
        fit({f"n{i}": w for i in range(9)}, w, strict)


# One history for all


def test_shared_history():
    one = saved((2,), ())
    history = shared_history("f", {"a": one, "b": saved((3,), None)}, most=3)
    assert history.step == 3
    assert history.powers == {"mu_power": one.state.mu_power, "nu_power": one.state.nu_power}
    assert shared_history("f", {"a": replace(one, base=SGD()).started()}, most=3) == (0, {})


def test_histories_that_differ_are_refused():
    one = saved((2,), ())
    with pytest.raises(ValueError, match="'f' does not fit: step of 'a' is 3, that of 'b' 4"):
        shared_history("f", {"a": one, "b": replace(one, step=4)}, most=9)
    for field in ("mu_power", "nu_power"):
        other = replace(one, state=one.state._replace(**{field: np.float32(0.25)}))
        with pytest.raises(ValueError, match=f"{field} of 'a' is .*, that of 'b' 0.25"):
            shared_history("f", {"a": one, "b": other}, most=9)
    with pytest.raises(ValueError, match="3 steps have been done, and this optimizer counts to 2"):
        shared_history("f", {"a": one}, most=2)
