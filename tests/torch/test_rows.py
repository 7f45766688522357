"""The matrix rows of `magma_torch` run, and detect faults."""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.implementations import torch_adapter
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.implementations.process_group import Ranks
from magma_conformance.processes import pulse
from magma_conformance.processes.worker import Lost, Worker, end_all
from magma_conformance.runner.jobs import open_implementation, run_case
from magma_conformance.runner.result import compare

CASE = next(case for case in pairwise() if case.rule == "magma" and case.shape == "matrix")
MODES = [mode for mode in ADAPTERS["magma_torch"].modes if mode != "graph"]  # of CUDA alone


@pytest.fixture(scope="module")
def group():
    ranks = Ranks(2, rank_function)
    yield ranks
    ranks.close()


def rank_function(what: str) -> object:
    if what == "fail" and torch.distributed.get_rank() == 1:
        raise ValueError("this went wrong")
    if what == "die" and torch.distributed.get_rank() == 1:
        os._exit(7)
    if what == "wait":
        time.sleep(3000)
    torch.distributed.barrier()
    return what, os.getpid()


@pytest.mark.parametrize("mode", MODES)
def test_mode_is_equal_to_the_reference(mode):
    result = run_case(open_implementation("magma_torch", mode, "cpu"), CASE)
    assert (result.status, result.steps) == ("equal", 12), result.reason


@pytest.mark.parametrize("shape", [(16, 0), (2, 1, 0, 0), (0, 3)])
def test_parameters_without_elements_are_sharded(shape):
    """Found by random cases: torch cannot gather what FSDP2 makes of them."""
    task = replace(
        CASE.task(),
        key=str(shape),
        params={"w": np.zeros(shape, np.float32)},
        gradients=[{"w": np.zeros(shape, np.float32)}] * 2,
        learning_rates=[0.1, 0.1],
    )
    reference, sharded = (open_implementation(*row, "cpu") for row in (("numpy", "eager"), ("magma_torch", "fsdp2")))
    assert compare(sharded.run(task), reference.run(task)) is None


def test_a_wrong_optimizer_is_found(monkeypatch):
    """The smallest step that is not the rule's: one parameter off by one unit in the last place."""
    step = torch_adapter.MaskedOptimizer.step

    def wrong(self):
        step(self)
        param = self.param_groups[0]["params"][0]
        integers = {2: torch.int16, 4: torch.int32}[param.element_size()]
        param.data.view(integers).view(-1)[0] += 1

    monkeypatch.setattr(torch_adapter.MaskedOptimizer, "step", wrong)
    result = run_case(open_implementation("magma_torch", "eager", "cpu"), CASE)
    assert result.status == "different"
    assert result.mismatch.step == 1
    assert result.mismatch.array == "w/param"


def test_ranks_that_disagree_are_found():
    mine, theirs = [{"w/param": np.float32([0.0])}], [{"w/param": np.float32([-0.0])}]
    torch_adapter._agree(mine, mine, 1)
    with pytest.raises(AssertionError, match=r"rank 1 is not rank 0: step 1, w/param"):
        torch_adapter._agree(mine, theirs, 1)


def test_ranks_run_in_processes_of_their_own(group):
    (first, one), (second, two) = group.call("hello")
    assert (first, second) == ("hello", "hello")
    assert len({one, two, os.getpid()}) == 3


def test_a_failing_rank_ends_the_group():
    ranks = Ranks(2, rank_function)
    with pytest.raises(RuntimeError, match=r"(?s)rank 1: .*ValueError: this went wrong"):
        ranks.call("fail")
    assert not any(worker.alive for worker in ranks._workers)


def test_a_rank_that_dies_ends_the_group_at_once():
    """The other one waits for it in a collective, which would take a week."""
    ranks = Ranks(2, rank_function)
    with pytest.raises(RuntimeError, match=r"^rank 1: its process died \(exit status 7\)$"):
        ranks.call("die")
    assert not any(worker.alive for worker in ranks._workers)


def test_ranks_that_are_all_stuck_are_ended(monkeypatch):
    ranks = Ranks(2, rank_function)
    ranks.call("hello")
    monkeypatch.setattr(pulse, "LOOK", 0.05)
    monkeypatch.setattr(pulse, "_LEAST", 1e9)  # nothing that they do is work
    with pytest.raises(Lost, match=r"^stuck: "):
        ranks.call("wait")
    assert not any(worker.alive for worker in ranks._workers)


def test_a_rank_that_waits_for_a_slow_one_is_not_stuck(monkeypatch):
    """The second rank idles until it has answered, and the first answers after it."""
    ranks = Ranks(2, rank_function)
    ranks.call("hello")
    second, answered = ranks._workers[1], threading.Event()
    read = second.result

    def result():
        answered.set()
        return read()

    monkeypatch.setattr(second, "result", result)
    monkeypatch.setattr(Worker, "stuck", property(lambda worker: worker is second))
    monkeypatch.setattr(Worker, "answered", property(hears(ranks._workers[0], answered)))
    assert len(ranks.call("hello")) == 2
    ranks.close()


def hears(first, after):
    """`Worker.answered`, but the first rank is not heard before the event."""
    answered = Worker.answered.fget
    return lambda worker: (worker is not first or after.is_set()) and answered(worker)


@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "triton"])
def test_processes_that_were_ended_are_started_again(mode):
    implementation = open_implementation("magma_torch", mode, "cpu")
    for _ in range(2):
        assert run_case(implementation, CASE).status == "equal"
        end_all()


def test_ranks_that_have_answered_are_not_stuck(monkeypatch):
    """However long nobody asked for their answers."""
    ranks = Ranks(2, rank_function)
    ranks.call("hello")
    for worker in ranks._workers:
        worker.begin(rank_function, "hello")
    monkeypatch.setattr(pulse.Pulse, "stuck", True)
    for worker in ranks._workers:
        while not worker.answered:
            time.sleep(0.01)
    assert len(ranks._results()) == 2
    ranks.close()


def test_scalars_are_refused_by_fsdp2():
    case = next(case for case in pairwise() if case.shape == "scalar")
    result = run_case(open_implementation("magma_torch", "fsdp2", "cpu"), case)
    assert (result.status, result.reason) == ("not run", "FSDP2 does not take scalars")


def test_only_the_cpu_has_gloo():
    for mode in ("ddp", "fsdp2"):
        with pytest.raises(LookupError, match="gloo"):
            ADAPTERS["magma_torch"].open(mode, "cuda")
