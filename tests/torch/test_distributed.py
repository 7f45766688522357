"""Distributed by torch's own engines, a step has the bits of a single process.

distributed_scenarios.py makes the results, in four processes that start once for all tests.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch.distributed.fsdp", reason="torch is not installed, or without torch.distributed")

import distributed_scenarios as scenarios
import numpy as np
import torch
from distributed_problems import SAVED, STEPS, Record, Run
from magma_conformance.bits import assert_bits_equal
from magma_conformance.implementations.process_group import Ranks
from magma_torch import Magma, SkipUpdate
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

SPREAD = ("param", "mu", "nu")  # of which a rank has a part

CASES = [(world, name) for name, (worlds, _) in scenarios.SCENARIOS.items() for world in worlds]
every_case = pytest.mark.parametrize(("world", "name"), CASES, ids=[f"{world}-{name}" for world, name in CASES])


@pytest.fixture(scope="module")
def runs(once: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, Run]]:
    """What every process saw, by number of ranks and rank; (0, 0) is the process without ranks."""
    return once("distributed", lambda: solve(tmp_path_factory.mktemp("distributed")))


def solve(folder: Path) -> dict[tuple[int, int], dict[str, Run]]:
    """Four ranks leave checkpoints, from which two and one of them resume."""
    found = {(0, 0): scenarios.run_plain()}
    with closing(Ranks(4, scenarios.solve)) as ranks:
        for world in (4, 2, 1):
            found |= {(world, rank): seen for rank, seen in enumerate(ranks.call(world, folder)) if rank < world}
    return found


def expected_of(run: Run, step: int, whole: Record) -> Record:
    """What a rank should have seen, of what one process saw."""
    seen = run.steps[step]
    own = {key.split("/")[0] for key in seen}
    decided = any("/seen" in key for key in seen)  # not between loading and the next step
    expected = {}
    for key, array in whole.items():
        name, field = key.split("/")
        if name in own and (decided or not field.startswith("seen")):
            is_part = name in run.parts and field in SPREAD
            expected[key] = array.reshape(-1)[run.parts[name]] if is_part else array
    return expected


@every_case
def test_every_step_has_the_bits_of_one_process(runs: Any, world: int, name: str) -> None:
    for rank in range(world):
        run = runs[world, rank][name]
        plain = runs[0, 0][run.problem]
        assert set(run.steps) >= set(range(SAVED, STEPS + 1))
        for step, seen in run.steps.items():
            expected = expected_of(run, step, plain.steps[step])
            assert seen.keys() == expected.keys()
            for key, array in expected.items():
                assert_bits_equal(seen[key], array, f"rank {rank}, step {step}, {key}")


@every_case
def test_ranks_have_all_elements(runs: Any, world: int, name: str) -> None:
    """Otherwise the test above would compare little."""
    ranks = [runs[world, rank][name] for rank in range(world)]
    for key in {key for run in ranks for key in run.parts}:
        elements = np.concatenate([run.parts[key].reshape(-1) for run in ranks if key in run.parts])
        size = runs[0, 0][ranks[0].problem].steps[1][f"{key}/param"].size
        assert_bits_equal(np.unique(elements), np.arange(size), key)


@every_case
def test_two_collectives(runs: Any, world: int, name: str) -> None:
    """Whatever the number of parameters, groups and meshes; none where nothing is spread or measured."""
    for rank in range(world):
        run = runs[world, rank][name]
        assert run.collectives
        if run.exchanges is not None:
            assert set(run.collectives.values()) == {run.exchanges}


def test_problems_are_hard(runs: Any) -> None:
    """Some blocks are kept and some are not, something is not finite, ranks lack parts or have none."""
    steps = runs[0, 0]["adamw"].steps
    for name in ("a.query", "a.down", "experts", "head"):
        kept = np.stack([seen[f"{name}/seen keep"] for seen in steps.values()])
        assert kept.any()
        assert not kept.all()
    last = steps[STEPS]
    assert np.isnan(last["b.down/param"]).any()
    assert last["b.norm/step"] == STEPS - 1
    assert all(np.isfinite(last[f"{name}/param"]).all() for name in ("embed", "experts", "wide"))
    assert [runs[4, rank]["fsdp adamw"].parts["embed"].shape[0] for rank in range(4)] == [2, 2, 1, 0]
    scores = runs[0, 0]["bfloat16"].steps[STEPS]
    assert scores["embed/param"].dtype != np.float32
    assert all(array.dtype == np.float32 for key, array in scores.items() if key.split("/")[1] in ("mu", "nu", "score"))


# What torch.distributed.checkpoint does to an optimizer, in this process


def model_with_odd_values() -> torch.nn.Module:
    """A step at learning rate 0 would change its parameters, if they are kept."""
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, 2.0**-110, torch.inf], [1.0, torch.nan, -torch.inf]]))
    return model


def assert_same_bits(model: torch.nn.Module, other: torch.nn.Module) -> None:
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert_bits_equal(mine.detach().numpy(), theirs.detach().numpy())


@pytest.mark.parametrize("kind", [Magma, SkipUpdate])
def test_asking_for_the_state_is_not_a_step(kind: Any) -> None:
    model, before = model_with_odd_values(), model_with_odd_values()
    before.load_state_dict(model.state_dict())
    optimizer = kind(model.named_parameters(), p=1.0, compile=False)
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert state["weight"]["step"] == 0
    assert state["weight"]["mu_power"] == 1
    assert not state["weight"]["nu"].any()
    assert not optimizer.alignment()
    assert optimizer.param_groups[0]["lr"] > 0
    assert_same_bits(model, before)

    other = kind(before.named_parameters(), p=1.0, compile=False)
    for step in range(1, 3):
        for m, o in ((model, optimizer), (before, other)):
            m.bias.grad = torch.full((2,), float(step))
            o.step()
        assert_same_bits(model, before)
    assert optimizer.state[model.bias]["step"] == 2


def test_loading_into_a_new_optimizer_is_not_a_step() -> None:
    model = model_with_odd_values()
    optimizer = Magma(model.named_parameters(), initial_score=0.25, compile=False)
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.ones(2)
    optimizer.step()
    saved = get_optimizer_state_dict(model, optimizer)
    copy = model_with_odd_values()
    copy.load_state_dict(model.state_dict())
    loaded = Magma(copy.named_parameters(), compile=False)
    set_optimizer_state_dict(copy, loaded, saved)
    assert_same_bits(copy, model)
    for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        for key, value in optimizer.state[theirs].items():
            assert_bits_equal(loaded.state[mine][key].numpy(), value.numpy(), key)


def test_step_without_rate_and_gradient_is_a_step() -> None:
    """Only torch.distributed.checkpoint is an exception."""
    model = model_with_odd_values()
    optimizer = Magma(model.named_parameters(), lr=0.0, p=1.0, compile=False)
    model.weight.grad, model.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step()
    assert optimizer.state[model.weight]["step"] == 1
    assert_bits_equal(model.weight.detach().numpy()[0, :2], np.zeros(2, np.float32))
