"""The Hugging Face Trainer: accumulated, clipped, scheduled, saved and resumed, with optimizers from any source."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from magma_torch import Magma
from snapshots import assert_same_run, snapshot
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.optimization import get_cosine_schedule_with_warmup

pytestmark = pytest.mark.filterwarnings("ignore:parameters without names:UserWarning")  # Trainer has none, see `made`

WARMUP, SAVED = 2, 3  # steps
OPTIONS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "block_axes": (0,), "compile": False}


def make_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Two layers, the same in every run."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=toy.BYTES,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=toy.LENGTH,
    )
    return LlamaForCausalLM(config).to(dtype)


def make_schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """The one that `fit` asks for by name."""
    return get_cosine_schedule_with_warmup(optimizer, WARMUP, toy.STEPS)


def without_names(model: nn.Module) -> list[dict[str, Any]]:
    """The groups that Trainer makes."""
    params = list(model.parameters())
    return [
        {"params": [param for param in params if param.ndim == 2], "weight_decay": OPTIONS["weight_decay"]},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]


# What Trainer is told of the optimizer


def given(model: nn.Module) -> dict[str, Any]:
    """Optimizer and schedule."""
    optimizer = Magma(model.named_parameters(), **OPTIONS)
    return {"optimizers": (optimizer, make_schedule(optimizer))}


def given_without_schedule(model: nn.Module) -> dict[str, Any]:
    """The optimizer; Trainer makes the schedule."""
    return {"optimizers": (Magma(model.named_parameters(), **OPTIONS), None)}


def made(model: nn.Module) -> dict[str, Any]:
    """The class; Trainer makes the optimizer, of parameters without names."""
    return {"optimizer_cls_and_kwargs": (Magma, dict(OPTIONS))}


def made_with_names(model: nn.Module) -> dict[str, Any]:
    """The class and, among its arguments, parameters with names, which Trainer prefers to its own."""
    return {"optimizer_cls_and_kwargs": (Magma, {"params": list(model.named_parameters()), **OPTIONS})}


Way = Callable[[nn.Module], dict[str, Any]]
ways = pytest.mark.parametrize("way", [given, given_without_schedule, made, made_with_names])


class Recorder(TrainerCallback):
    """Snapshots after every step, and the gradients that it was given."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Any]] = []
        self.gradients: list[list[Tensor]] = []
        self.without_step = 0  # batches after which there was none

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.without_step += 1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        self.gradients.append([param.grad.clone() for param in model.parameters()])

    def on_step_end(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: Any, **kwargs: Any
    ) -> None:
        self.snapshots.append(snapshot(model, optimizer))


def fit(folder: Path, way: Way, *, dtype: torch.dtype = torch.float32, resume: str | None = None) -> Recorder:
    """Train a new model with a new Trainer, two epochs of four steps, or go on from a checkpoint."""
    model, recorder = make_model(dtype), Recorder()
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        max_steps=toy.STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=toy.MAX_NORM,
        learning_rate=OPTIONS["lr"],
        weight_decay=OPTIONS["weight_decay"],
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        save_steps=SAVED,
        seed=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    (tokens,) = toy.make_data().tensors
    data: Any = [{"input_ids": row, "labels": row} for row in tokens]
    Trainer(model, arguments, train_dataset=data, callbacks=[recorder], **way(model)).train(resume)
    return recorder


def step_by_hand(way: Way, gradients: Sequence[Sequence[Tensor]]) -> list[dict[str, Any]]:
    """Snapshots of an optimizer without a trainer."""
    model = make_model()
    optimizer = Magma(without_names(model) if way is made else model.named_parameters(), **OPTIONS)
    schedule, snapshots = make_schedule(optimizer), []
    for grads in gradients:
        for param, grad in zip(model.parameters(), grads, strict=True):
            param.grad = grad
        optimizer.step()
        schedule.step()
        snapshots.append(snapshot(model, optimizer))
    return snapshots


@ways
def test_fit_is_the_optimizer_by_hand(way: Way, tmp_path: Path) -> None:
    run = fit(tmp_path, way)
    assert len(run.snapshots) == run.without_step == toy.STEPS
    assert_same_run(run.snapshots, step_by_hand(way, run.gradients))
    for grads in run.gradients:
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        assert norm.item() == pytest.approx(toy.MAX_NORM, rel=1e-4)  # all were clipped


@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_is_the_uninterrupted_run(way: Way, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole", way, dtype=dtype)
    run = fit(tmp_path / "rest", way, dtype=dtype, resume=str(tmp_path / "whole" / f"checkpoint-{SAVED}"))
    assert_same_run(run.snapshots, expected.snapshots[SAVED:])


def test_names_key_the_masks(tmp_path: Path) -> None:
    """With them, it does not matter who makes the optimizer; without, masks go by group and position."""
    runs = [fit(tmp_path / way.__name__, way).snapshots for way in (given, made_with_names, made)]
    assert_same_run(runs[1], runs[0])
    assert "model.embed_tokens.weight seen keep" in runs[0][-1]
    assert "0.0 seen keep" in runs[2][-1]
