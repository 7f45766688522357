"""Plots the losses of the examples."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

WINDOW = 20
"""Steps to average over."""


def mean_losses(curve: list[float]) -> list[float]:
    """For each step the mean of the last `WINDOW` losses."""
    return [sum(part) / len(part) for i in range(len(curve)) for part in [curve[max(0, i - WINDOW + 1) : i + 1]]]


def report(losses: dict[str, list[float]], title: str, picture: Path) -> None:
    """Plot each run's losses in nats per byte, and print the final ones."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label, curve in losses.items():
        means = mean_losses(curve)
        axes.plot(range(1, len(means) + 1), means, label=f"{label}: {means[-1]:.3f}")
        print(f"{label}: {means[-1]:.3f} nats per byte, mean of the last {WINDOW} steps")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats per byte, mean of {WINDOW} steps")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)
