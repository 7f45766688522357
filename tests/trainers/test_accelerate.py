"""Accelerate: wrapped, accumulated, clipped, scheduled, saved and resumed, with the bits of a plain loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from accelerate import Accelerator, skip_first_batches
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from accelerate.utils.fsdp_utils import fsdp2_switch_optimizer_parameters
from snapshots import assert_same, assert_same_run, snapshot
from torch import nn
from torch.utils.data import DataLoader

ACCUMULATE = 2
BATCHES = 8  # in an epoch


class Run:
    """A training script that uses Accelerate."""

    def __init__(self, mixed_precision: str = "no") -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
        GradientState._reset_state()
        self.accelerator = Accelerator(
            cpu=True,
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=ACCUMULATE,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=3),
        )
        model = toy.make_model()
        optimizer = toy.make_optimizer(model)
        loader = DataLoader(toy.make_data(), batch_size=32 // BATCHES, shuffle=True)
        prepared = self.accelerator.prepare(model, optimizer, toy.make_scheduler(optimizer), loader)
        self.model, self.optimizer, self.scheduler, self.loader = prepared
        self.seen: list[torch.Tensor] = []
        self.snapshots: list[dict[str, Any]] = []
        self.done = 0  # steps

    def train(self, stop: int = toy.STEPS) -> "Run":
        """Go on up to that step. A step takes two batches, so an epoch has four."""
        while self.done < stop:
            epoch, skipped = divmod(self.done * ACCUMULATE, BATCHES)
            self.loader.set_epoch(epoch)
            for (tokens,) in skip_first_batches(self.loader, skipped):
                self.batch(tokens)
                if self.done == stop:
                    break
        return self

    def batch(self, tokens: torch.Tensor) -> None:
        """One batch: a step, or half of one."""
        self.seen.append(tokens)
        with self.accelerator.accumulate(self.model):
            self.accelerator.backward(toy.loss_of(self.model(tokens[:, :-1]), tokens))
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(toy.parameters(self.optimizer), toy.MAX_NORM)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.done += 1
            self.snapshots.append(snapshot(self.model, self.optimizer))


precisions = pytest.mark.parametrize("precision", ["no", "bf16"])


@precisions
def test_fit_is_a_plain_loop(precision: str) -> None:
    run = Run(precision).train()
    plain = toy.train_plainly(run.seen, accumulate=ACCUMULATE, bf16=precision == "bf16")
    assert_same_run(run.snapshots, plain)
    assert all(state["step"] == toy.STEPS for state in run.optimizer.state.values())


@precisions
def test_resume_is_the_uninterrupted_run(precision: str, tmp_path: Path) -> None:
    expected = Run(precision).train()
    Run(precision).train(stop=3).accelerator.save_state(str(tmp_path))
    run = Run(precision)
    run.accelerator.load_state(str(tmp_path))
    run.done = 3
    assert_same_run(run.train().snapshots, expected.snapshots[3:])


def _switch(optimizer: AcceleratedOptimizer, new: dict[torch.Tensor, torch.Tensor]) -> None:
    """As Accelerate does on TPUs."""
    optimizer._switch_parameters(new)


def _switch_by_placeholder(optimizer: AcceleratedOptimizer, new: dict[torch.Tensor, torch.Tensor]) -> None:
    """As Accelerate does for FSDP2: while the model is sharded, empty tensors hold the places."""
    mapping = {old.data_ptr(): param for old, param in new.items()}
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):
            group["params"][i] = torch.empty(1)
            group["params"][i].data_ptr = param.data_ptr()
    fsdp2_switch_optimizer_parameters(optimizer, mapping)


@pytest.mark.parametrize("switch", [_switch, _switch_by_placeholder])
@pytest.mark.parametrize("at", [0, 3])
def test_state_follows_parameters_that_are_switched(switch: Callable[..., None], at: int) -> None:
    expected = Run().train()
    run = Run().train(stop=at)
    new: dict[torch.Tensor, torch.Tensor] = {}
    for module in run.model.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            new[param] = nn.Parameter(param.detach().clone())
            setattr(module, name, new[param])
    switch(run.optimizer, new)
    assert_same_run(run.train().snapshots, expected.snapshots)


def test_skipped_step_advances_neither_mask_nor_schedule() -> None:
    run = Run()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # Accelerate makes one for float16, on GPUs only
    optimizer = AcceleratedOptimizer(run.optimizer.optimizer, scaler=scaler)
    run.scheduler.optimizers = [optimizer]

    def step(*, overflow: bool = False) -> dict[str, Any]:
        run.optimizer.optimizer.zero_grad()
        tokens = toy.make_data().tensors[0]
        scaler.scale(toy.loss_of(run.model(tokens[:, :-1]), tokens)).backward()
        if overflow:
            run.model[1].weight.grad[0, 0] = torch.inf
        scaler.unscale_(run.optimizer.optimizer)
        run.accelerator.clip_grad_norm_(run.model.parameters(), toy.MAX_NORM)
        optimizer.step()
        run.scheduler.step()
        assert optimizer.step_was_skipped == overflow
        return snapshot(run.model, run.optimizer)

    before = [step(), step()][-1]
    assert_same(step(overflow=True), before)
    assert {int(value) for name, value in step().items() if name.endswith(" step")} == {3}
