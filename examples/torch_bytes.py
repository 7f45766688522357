"""Train a byte-level language model with AdamW and with Magma, and plot both.

Model and text are the conformance run's: about a million parameters, Python's standard library.

    python examples/torch_bytes.py --steps 400 --picture docs/pictures/torch-bytes.png
"""

import argparse
from pathlib import Path

import losses
import torch
from magma_conformance.cases.language_model import LanguageModel
from magma_torch import Magma
from rich.progress import Progress
from torch.nn import Parameter

WARM_UP = 0.1
LR = 0.003
RUNS = {"AdamW": 1.0, "Magma(AdamW)": 1.0, "Magma(AdamW), lr_scale 3.3": 3.3}
"""For each label, the learning-rate factor of attention and MLP matrices."""


def train(label: str, model: LanguageModel, steps: int, progress: Progress) -> list[float]:
    """Train, and return the loss of each step in nats per byte."""
    params = {name: Parameter(torch.from_numpy(array)) for name, array in model.parameters().items()}
    matrices = [(name, p) for name, p in params.items() if model.attention_and_mlp(name)]
    others = [(name, p) for name, p in params.items() if not model.attention_and_mlp(name)]
    groups = [{"params": matrices}, {"params": others}]
    if label.startswith("Magma"):
        groups[1]["masked"] = False
        optimizer: torch.optim.Optimizer = Magma(groups, lr=LR, lr_scale=RUNS[label])
    else:
        optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps, pct_start=WARM_UP, cycle_momentum=False, final_div_factor=10
    )
    curve = []
    bar = progress.add_task(label, total=steps)
    for step in range(steps):
        weights = {name: p.detach().numpy() for name, p in params.items()}
        loss, gradients = model.loss_and_gradients(weights, step)
        for name, p in params.items():
            p.grad = torch.from_numpy(gradients[name])
        optimizer.step()
        schedule.step()
        curve.append(loss)
        progress.update(bar, advance=1, description=f"{label}: {loss:.3f}")
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each run (at least 20)")
    parser.add_argument("--picture", type=Path, default=Path("torch-bytes.png"))
    arguments = parser.parse_args()
    model = LanguageModel()
    with Progress(transient=True) as progress:
        curves = {label: train(label, model, arguments.steps, progress) for label in RUNS}
    losses.report(curves, "Byte-level language model, 1 M parameters", arguments.picture)


if __name__ == "__main__":
    main()
