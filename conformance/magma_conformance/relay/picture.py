"""The relay's picture: both losses, their distance, and the verdicts."""

from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from magma_core.optional import require

matplotlib = require("matplotlib", extra="dev")

from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402 (comes with matplotlib)

from magma_conformance.relay.report import RelayReport  # noqa: E402

_COLOURS: Final = {"torch": "#d9512c", "jax": "#1f6fb2", "keras": "#2e8b57"}
_INK, _QUIET = "#222222", "#777777"
_FLOOR = 3e-8
"""Where a distance of 0 is drawn: below the smallest other one, an ulp of a loss between 1 and 2."""


def draw(report: RelayReport, path: Path) -> None:
    """Draw the picture, 1200 pixels wide."""
    figure = Figure(figsize=(8, 5.6), dpi=150, layout="constrained")
    losses, distances = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1))
    _shade(report, losses, distances)
    _losses(report, losses)
    _distances(report, distances)
    figure.suptitle(
        f"One model, {len(report.legs)} legs of {report.plan.steps} steps, "
        f"{report.parameters / 1e6:.2g} M parameters, Magma (AdamW)",
        fontsize=12,
        color=_INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn)
    # 64 colours are enough, at a quarter of the bytes
    Image.open(drawn).convert("RGB").quantize(64).save(path, "PNG", optimize=True)


def _shade(report: RelayReport, losses: Any, distances: Any) -> None:
    for number, leg in enumerate(report.legs):
        first, last = leg.steps[0] - 0.5, leg.steps[1] + 0.5
        for axes in (losses, distances):
            axes.axvspan(first, last, color=_COLOURS[leg.framework], alpha=0.09, linewidth=0)
            axes.set_xlim(0.5, report.legs[-1].steps[1] + 0.5)
            axes.set_xticks([1, *(leg.steps[1] for leg in report.legs)])
        arrow = "→ " if number else ""
        losses.text(
            (first + last) / 2,
            1.03,
            arrow + leg.label,
            transform=losses.get_xaxis_transform(),
            ha="center",
            color=_COLOURS[leg.framework],
            fontweight="bold",
        )


def _losses(report: RelayReport, axes: Any) -> None:
    steps = np.arange(1, len(report.reference) + 1)
    axes.plot(steps, report.reference, color=_INK, linewidth=3.2, alpha=0.25, label="never moved, PyTorch")
    for leg in report.legs:
        own = slice(leg.steps[0] - 1, leg.steps[1])
        axes.plot(steps[own], leg.losses, color=_COLOURS[leg.framework], linewidth=1.3)
    axes.plot([], [], color=_INK, linewidth=1.3, label="free relay: each framework computes its own gradients")
    axes.set_ylabel("loss, nats per byte")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    axes.grid(alpha=0.25)


def _distances(report: RelayReport, axes: Any) -> None:
    both = [distance for leg in report.legs for distance in leg.distances + leg.control_distances]
    finite = [distance for distance in both if np.isfinite(distance)]
    highest = max([*finite, 10 * _FLOOR])
    control = np.asarray([distance for leg in report.legs for distance in leg.control_distances])
    axes.plot(
        np.arange(1, control.size + 1),
        np.where(control > 0, control, np.nan),
        color=_QUIET,
        linewidth=1.1,
        alpha=0.7,
        label="PyTorch alone, one weight an ulp larger",
    )
    for leg in report.legs:
        steps = np.arange(leg.steps[0], leg.steps[1] + 1)
        values = np.asarray(leg.distances)
        zero = values == 0
        colour = _COLOURS[leg.framework]
        axes.plot(steps, np.where(zero, np.nan, values), ".-", color=colour, linewidth=0.8, markersize=4)
        axes.plot(steps[zero], np.full(zero.sum(), _FLOOR), "|", color=colour, markersize=5)
        middle, over = float(steps.mean()), axes.get_xaxis_transform()
        axes.text(middle, 0.92, "fed the same gradients:", transform=over, ha="center", fontsize=8, color=_INK)
        verdict, tint = ("✓ bit-identical", "#1a7a1a") if leg.exact is None else ("✗ differs", "#c00000")
        axes.text(middle, 0.845, verdict, transform=over, ha="center", fontsize=10, fontweight="bold", color=tint)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR / 2, highest * 300)
    ticks = [10.0**n for n in range(-7, int(np.ceil(np.log10(highest))) + 1)]
    axes.set_yticks([_FLOOR, *ticks], ["0", *(f"$10^{{{round(np.log10(tick))}}}$" for tick in ticks)])
    axes.minorticks_off()
    axes.plot([], [], ".-", color=_INK, linewidth=0.8, markersize=4, label="free relay")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.8), frameon=False, fontsize=9)
    axes.set_ylabel("|difference of losses|\nfrom never moved")
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
