"""Train a byte-level language model by `fit()` with AdamW and with Magma, and plot both.

A transformer of Keras layers, on any backend of Keras. The text is the conformance run's: Python's standard library.

    KERAS_BACKEND=tensorflow python examples/keras_bytes.py --steps 300 --picture docs/pictures/keras-bytes.png
"""

import argparse
from pathlib import Path
from typing import Any

import keras
import losses
import numpy as np
from magma_conformance.cases.language_model import corpus
from magma_keras import Magma, ScoreLogger
from rich.progress import Progress

LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 4, 128, 4, 64, 16
WARM_UP = 0.1
LR = 0.003
TEXT = 2**20  # bytes


class Positions(keras.layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make the table, (CONTEXT, WIDTH)."""
        self.table = self.add_weight(shape=shape[1:], initializer="uniform", name="table")

    def call(self, x: Any) -> Any:
        """Add the table to ``x``, (BATCH, CONTEXT, WIDTH)."""
        return x + self.table


def language_model() -> keras.Model:
    """A small transformer. The layer names, which key the masks, do not depend on earlier models."""
    text = keras.Input((CONTEXT,), dtype="int32")
    x = keras.layers.Embedding(256, WIDTH, name="bytes")(text)
    x = Positions(name="positions")(x)
    for i in range(LAYERS):
        y = keras.layers.LayerNormalization(name=f"norm{i}_1")(x)
        attention = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention{i}")
        x = x + attention(y, y, use_causal_mask=True)
        y = keras.layers.LayerNormalization(name=f"norm{i}_2")(x)
        y = keras.layers.Dense(4 * WIDTH, activation="gelu", name=f"mlp{i}_up")(y)
        x = x + keras.layers.Dense(WIDTH, name=f"mlp{i}_down")(y)
    x = keras.layers.LayerNormalization(name="norm")(x)
    return keras.Model(text, keras.layers.Dense(256, name="head")(x), name="model")


def batches(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The texts of all steps, (steps·BATCH, CONTEXT), and the bytes that follow them."""
    text = corpus(TEXT)
    starts = np.random.default_rng(0).integers(0, len(text) - CONTEXT, steps * BATCH)
    windows = np.stack([text[start : start + CONTEXT + 1] for start in starts]).astype(np.int32)
    return windows[:, :-1], windows[:, 1:]


def optimizers(steps: int) -> dict[str, keras.optimizers.Optimizer]:
    """The optimizers by their labels in the picture. Magma masks attention and MLP matrices, as in the paper."""
    warm_up = int(WARM_UP * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        0.1 * LR, steps - warm_up, alpha=0.1, warmup_target=LR, warmup_steps=warm_up
    )
    masked = {r"(attention|mlp).*kernel": (), "": None}
    return {
        "adamw": keras.optimizers.AdamW(rate, epsilon=1e-8, weight_decay=0.01),
        "magma(adamw)": Magma(rate, weight_decay=0.01, block_axes=masked),
        "magma(adamw), lr_scale 3.3": Magma(rate, lr_scale=3.3, weight_decay=0.01, block_axes=masked),
    }


class Losses(keras.callbacks.Callback):
    """Records the loss of each step; Keras's own logs are means over the epoch so far."""

    def __init__(self, label: str, progress: Progress, steps: int) -> None:
        super().__init__()
        self.curve: list[float] = []
        self._progress, self._label, self._total = progress, label, 0.0
        self._bar = progress.add_task(label, total=steps)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Recover the step's loss from the running mean."""
        total = (batch + 1) * logs["loss"]
        self.curve.append(total - self._total)
        self._total = total
        self._progress.update(self._bar, advance=1, description=f"{self._label}: {self.curve[-1]:.3f}")


def main() -> None:
    """Train, plot and print the final losses."""
    parser = argparse.ArgumentParser(description="Train a language model of bytes with AdamW and with Magma.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", type=Path, default=Path("keras-bytes.png"))
    parser.add_argument("--scores", type=Path, help="a folder for the scores of Magma's blocks, as CSV")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    x, y = batches(arguments.steps)
    curves = {}
    with Progress() as progress:
        for label, optimizer in optimizers(arguments.steps).items():
            keras.utils.set_random_seed(0)
            keras.utils.clear_session()
            model = language_model()
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            seen = Losses(label, progress, arguments.steps)
            callbacks: list[keras.callbacks.Callback] = [seen]
            if arguments.scores and isinstance(optimizer, Magma):
                file = arguments.scores / f"{label.replace(', ', '-').replace(' ', '-')}.csv"
                callbacks.append(ScoreLogger(file, every=10))
            model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
            curves[label] = seen.curve
    title = f"Bytes of Python source, {model.count_params() / 1e6:.1f} M parameters, Keras on {keras.backend.backend()}"
    losses.report(curves, title, arguments.picture)


if __name__ == "__main__":
    main()
