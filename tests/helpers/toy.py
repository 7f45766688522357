"""The model that the trainers train: a byte model with a few thousand parameters, on random bytes."""

from collections.abc import Iterable
from typing import Any

import torch
from magma_torch import Magma
from snapshots import snapshot
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset

BYTES, LENGTH = 64, 9
MAX_NORM = 0.1  # far below what the gradients have
STEPS = 8


def make_data(sequences: int = 32) -> TensorDataset:
    """Random sequences, the same in every run."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randint(BYTES, (sequences, LENGTH), generator=generator))


def make_model() -> nn.Module:
    """A model, the same in every run."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(BYTES, 16), nn.Linear(16, 32), nn.Tanh(), nn.LayerNorm(32), nn.Linear(32, BYTES))


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of every byte but the first."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def make_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices masked row by row, the rest not at all; with names."""
    named = list(model.named_parameters())
    return [
        {"params": [(name, p) for name, p in named if p.ndim == 2], "block_axes": (0,)},
        {"params": [(name, p) for name, p in named if p.ndim < 2], "masked": False, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module) -> Magma:
    """Magma on the groups above. Eager: a compiled step has the same bits, and compiling takes longer than all else."""
    return Magma(make_groups(model), lr=0.01, compile=False)


def make_scheduler(optimizer: torch.optim.Optimizer) -> OneCycleLR:
    """A schedule that moves β₁ as well as the learning rate, once a step."""
    return OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS + 1)


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the optimizer's order, in which Lightning adds up the norm: another order rounds it otherwise."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def train_plainly(batches: Iterable[Tensor], *, accumulate: int, bf16: bool) -> list[dict[str, Any]]:
    """What every trainer ought to do, without one: snapshots after each step."""
    model = make_model()
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer)
    snapshots = []
    for i, tokens in enumerate(batches, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(tokens[:, :-1])
        (loss_of(logits, tokens) / accumulate).backward()
        if i % accumulate == 0:
            assert clip_grad_norm_(parameters(optimizer), MAX_NORM) > MAX_NORM  # otherwise nothing is clipped
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            snapshots.append(snapshot(model, optimizer))
    return snapshots
