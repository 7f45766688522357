"""Train a language model of bytes with AdamW and with Magma, and plot both.

The model and its text are those of the conformance run: about a million parameters, Python's standard library.

    python examples/torch_bytes.py --steps 400 --picture docs/pictures/torch-bytes.png
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from magma_conformance.language import LanguageModel
from magma_torch import Magma
from rich.progress import Progress
from torch.nn import Parameter

matplotlib.use("Agg")
from matplotlib import pyplot

WARM_UP = 0.1
WINDOW = 20
RUNS = {"AdamW, lr 0.003": 0.003, "Magma(AdamW), lr 0.003": 0.003, "Magma(AdamW), lr 0.01": 0.01}


def train(label: str, model: LanguageModel, steps: int, progress: Progress) -> list[float]:
    """The loss of each step in nats per byte."""
    params = {name: Parameter(torch.from_numpy(array)) for name, array in model.parameters().items()}
    matrices = [(name, p) for name, p in params.items() if model.attention_and_mlp(name)]
    others = [(name, p) for name, p in params.items() if not model.attention_and_mlp(name)]
    groups = [{"params": matrices}, {"params": others}]
    if label.startswith("Magma"):
        groups[1]["masked"] = False
        optimizer: torch.optim.Optimizer = Magma(groups, lr=RUNS[label])
    else:
        optimizer = torch.optim.AdamW(groups, lr=RUNS[label], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RUNS[label], total_steps=steps, pct_start=WARM_UP, cycle_momentum=False, final_div_factor=10
    )
    losses = []
    bar = progress.add_task(label, total=steps)
    for step in range(steps):
        weights = {name: p.detach().numpy() for name, p in params.items()}
        loss, gradients = model.loss_and_gradients(weights, step)
        for name, p in params.items():
            p.grad = torch.from_numpy(gradients[name])
        optimizer.step()
        schedule.step()
        losses.append(loss)
        progress.update(bar, advance=1, description=f"{label}: {loss:.3f}")
    return losses


def plot(losses: dict[str, list[float]], picture: Path) -> None:
    """Mean losses of the last twenty steps."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label, curve in losses.items():
        means = [sum(part) / len(part) for i in range(len(curve)) for part in [curve[max(0, i - WINDOW + 1) : i + 1]]]
        axes.plot(range(1, len(means) + 1), means, label=f"{label}: {means[-1]:.3f}")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats per byte, mean of {WINDOW} steps")
    axes.set_title("Byte-level language model, 1 M parameters")
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each run (at least 20)")
    parser.add_argument("--picture", type=Path, default=Path("torch-bytes.png"))
    arguments = parser.parse_args()
    model = LanguageModel()
    with Progress(transient=True) as progress:
        losses = {label: train(label, model, arguments.steps, progress) for label in RUNS}
    plot(losses, arguments.picture)
    for label, curve in losses.items():
        print(f"{label}: {sum(curve[-WINDOW:]) / WINDOW:.3f} nats per byte, mean of the last {WINDOW} steps")


if __name__ == "__main__":
    main()
