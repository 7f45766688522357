"""A step that GradScaler skips leaves no trace: the next step is as if it had never come."""

from typing import Any

import pytest
import torch
from magma_torch import Magma, MaskedOptimizer, SkipUpdate
from snapshots import assert_same, snapshot
from torch import nn
from torch.nn.utils import clip_grad_norm_

SCALE = 2.0**10  # a power of two, as all that a scaler makes of it: unscaling is exact
MAX_NORM = 0.1


class Run:
    """A model in training with a scaler, one call a step."""

    def __init__(self, kind: type[MaskedOptimizer], *, clip: bool) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.optimizer = kind(self.model.named_parameters(), lr=0.01, block_axes=(0,), compile=False)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        self.clip = clip

    def step(self, batch: int, *, overflow: bool = False) -> None:
        """A step on the batch of that number; with ``overflow`` one gradient is infinite."""
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(batch))
        self.optimizer.zero_grad()
        self.scaler.scale(self.model(x).square().mean()).backward()
        if overflow:
            self.model[2].bias.grad[1] = torch.inf
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            norm = clip_grad_norm_(self.model.parameters(), MAX_NORM)
            assert not norm.isfinite() if overflow else norm > MAX_NORM  # otherwise nothing is clipped
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def snapshot(self) -> dict[str, Any]:
        """All that a step could have changed."""
        return snapshot(self.model, self.optimizer)


both = pytest.mark.parametrize("kind", [Magma, SkipUpdate])
clipped = pytest.mark.parametrize("clip", [False, True], ids=["plain", "clipped"])


@both
@clipped
def test_skipped_step_changes_nothing(kind: type[MaskedOptimizer], clip: bool) -> None:
    run = Run(kind, clip=clip)
    run.step(0)
    run.step(1)
    before = run.snapshot()
    run.step(2, overflow=True)
    assert run.scaler.get_scale() == SCALE / 2  # the scaler did see it
    assert_same(run.snapshot(), before)
    run.step(3)
    assert all(state["step"] == 3 for state in run.optimizer.state.values())


@both
@clipped
@pytest.mark.parametrize("at", [0, 2], ids=["first", "third"])
def test_next_step_is_the_one_without_the_skip(kind: type[MaskedOptimizer], clip: bool, at: int) -> None:
    run, expected = Run(kind, clip=clip), Run(kind, clip=clip)
    for batch in range(6):
        if batch == at:
            run.step(100, overflow=True)
            run.step(101, overflow=True)
        run.step(batch)
        expected.step(batch)
        assert_same(run.snapshot(), expected.snapshot())  # keep masks among the rest
    assert run.scaler.get_scale() == expected.scaler.get_scale() / 4


def test_first_step_skipped_leaves_no_state() -> None:
    run = Run(Magma, clip=False)
    run.step(0, overflow=True)
    assert not run.optimizer.state
    assert not run.optimizer.alignment()


def test_scaling_does_not_change_the_run() -> None:
    """The scale is a power of two, so gradients come back from the scaler as they were."""
    run, plain = Run(Magma, clip=True), Run(Magma, clip=True)
    plain.scaler = torch.amp.GradScaler("cpu", enabled=False)
    for batch in range(4):
        run.step(batch)
        plain.step(batch)
    assert_same(run.snapshot(), plain.snapshot())
