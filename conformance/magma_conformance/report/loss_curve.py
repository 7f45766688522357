"""The loss curve of the real-gradient run, in the units of the page's picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 30, 8, 18, 34
"""The picture's size, and the margins that hold the labels."""


@dataclass(frozen=True)
class Curve:
    """A loss curve, ready to draw.

    Attributes:
        lines: the points of each polyline; one, unless some losses are not finite.
        x_ticks: position and label of each tick on the step axis.
        y_ticks: position and label of each tick on the loss axis.
        summary: the curve in words.
    """

    lines: list[str]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str


def loss_curve(losses: Sequence[float | None]) -> Curve | None:
    """The curve of losses, one per step; None if there is nothing to draw.

    Args:
        losses: in nats per byte; None for values that are not finite.

    Example:
        >>> loss_curve([4.0, None, 2.0, 1.0]).summary
        'loss 4.000 → 1.000 nats per byte in 4 steps, 1 of them not finite'
    """
    finite = [loss for loss in losses if loss is not None]
    if len(finite) < 2:
        return None
    values = _ticks(min(finite), max(finite))
    low, high = values[0], values[-1]

    def x(step: float) -> float:
        return round(LEFT + (step - 1) / (len(losses) - 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(loss: float) -> float:
        return round(TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines: list[list[str]] = [[]]
    for step, loss in enumerate(losses, 1):
        if loss is None:
            lines.append([])
        else:
            lines[-1].append(f"{x(step)},{y(loss)}")
    steps = [step for step in _ticks(1, len(losses)) if 1 < step <= len(losses) and step == int(step)]
    summary = f"loss {finite[0]:.3f} → {finite[-1]:.3f} nats per byte in {len(losses)} steps"
    if odd := len(losses) - len(finite):
        summary += f", {odd} of them not finite"
    return Curve(
        lines=[" ".join(line) for line in lines if line],
        x_ticks=[(x(step), f"{step:g}") for step in (1, *steps)],
        y_ticks=[(y(value), f"{value:g}") for value in values],
        summary=summary,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that span ``low`` to ``high``."""
    span = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
