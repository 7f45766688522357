"""Lightning: accumulated, clipped, scheduled, saved and resumed, with the bits of a plain loop."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import toy
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from magma_torch import Magma
from snapshots import assert_same, assert_same_run, snapshot
from torch.utils.data import DataLoader

pytestmark = [
    # Lightning looks for a leaf with a check that torch 2.13 has deprecated
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # a run that is resumed writes beside the checkpoint that it came from
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]

ACCUMULATE = 2
BATCHES = 8  # in an epoch, so that it has four steps


class Module(lightning.LightningModule):
    """A model with its own optimizer and schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy.make_model()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        (tokens,) = batch
        return toy.loss_of(self.net(tokens[:, :-1]), tokens)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = toy.make_optimizer(self.net)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": toy.make_scheduler(optimizer), "interval": "step"},
        }


class Overflowing(Module):
    """One gradient of the fourth step is infinite."""

    def on_after_backward(self) -> None:
        if self.trainer.global_step == 3:
            self.net[1].weight.grad[0, 0] = torch.inf


class Recorder(Callback):
    """Snapshots after every step, and the batches that were seen."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Any]] = []
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seen += batch
        if (index + 1) % ACCUMULATE == 0:
            (optimizer,) = trainer.optimizers
            assert isinstance(optimizer, Magma)
            self.snapshots.append(snapshot(module.net, optimizer))


def fit(
    folder: Path, *, kind: type[Module] = Module, epochs: int = 2, resume: Path | None = None, **arguments: Any
) -> Recorder:
    """Train a new model with a new trainer, or go on from a checkpoint."""
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=toy.MAX_NORM,
        callbacks=[recorder, ModelCheckpoint(folder, "{step}", every_n_train_steps=toy.STEPS // 2, save_top_k=-1)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(kind(), DataLoader(toy.make_data(), batch_size=32 // BATCHES), ckpt_path=resume)
    return recorder


precisions = pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])


@precisions
def test_fit_is_a_plain_loop(precision: str, tmp_path: Path) -> None:
    run = fit(tmp_path, precision=precision)
    plain = toy.train_plainly(run.seen, accumulate=ACCUMULATE, bf16=precision == "bf16-mixed")
    assert len(plain) == toy.STEPS
    assert_same_run(run.snapshots, plain)


@precisions
def test_resume_is_the_uninterrupted_run(precision: str, tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole", precision=precision)
    fit(tmp_path / "part", precision=precision, epochs=1)
    (checkpoint,) = (tmp_path / "part").glob("*.ckpt")
    run = fit(tmp_path / "part", precision=precision, resume=checkpoint)
    assert_same_run(run.snapshots, expected.snapshots[toy.STEPS // 2 :])


def test_skipped_step_does_not_advance_the_mask(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    run = fit(tmp_path, kind=Overflowing, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert scaler.get_scale() == 2.0**9
    before, skipped, after = (_without_rates(run.snapshots[i]) for i in (2, 3, 4))
    assert_same(skipped, before)
    assert {int(value) for name, value in after.items() if name.endswith(" step")} == {4}


def _without_rates(found: dict[str, Any]) -> dict[str, Any]:
    """Lightning moves the schedule on even if a step is skipped."""
    return {name: value for name, value in found.items() if not name.startswith("lr ")}
