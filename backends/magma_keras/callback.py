"""A callback that logs the scores of all blocks during training, to a table and to TensorBoard."""

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np

from magma_core.arguments import check_integer
from magma_core.optional import require
from magma_keras import backend
from magma_keras.contained import masking_optimizers


class ScoreLogger(keras.callbacks.Callback):
    """Log the score of every block after each epoch, or every ``every`` steps.

    The table has one line per block, with columns ``step``, ``name``, ``block`` (its index, in the order of the block
    axes) and ``score``. TensorBoard gets ``scores/<name>``; for a variable with several blocks, their mean, minimum and
    maximum, as ``scores/<name>/mean`` and so on. Optimizers inside ``LossScaleOptimizer`` and ``MultiOptimizer`` are
    found.

    Args:
        filename: the CSV table; its folder is created. None for no table.
        log_dir: a folder for TensorBoard (pip install tensorboard). None for no events.
        every: optimizer steps between two entries; None for one entry per epoch. On JAX, reading the step after every
            batch makes Keras update all variables.
        append: append to an existing table, e.g. after resuming, instead of replacing it.

    Raises:
        ValueError: without ``filename`` and ``log_dir``; when training begins, if the model's optimizer has no scores;
            later, if two optimizers inside it have scores of one name.
        TypeError: if ``every`` is not an integer.
        ImportError: with ``log_dir``, if TensorBoard is not installed.

    Example:
        >>> import tempfile, pathlib
        >>> import keras
        >>> import numpy as np
        >>> from magma_keras import Magma, ScoreLogger
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="out")], name="model")
        >>> model.compile(Magma(), "mse")
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "scores.csv"
        >>> history = model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[ScoreLogger(file)])
        >>> print(file.read_text().splitlines()[0])
        step,name,block,score
    """

    def __init__(
        self,
        filename: str | Path | None = None,
        log_dir: str | Path | None = None,
        *,
        every: int | None = None,
        append: bool = False,
    ) -> None:
        super().__init__()
        if filename is None and log_dir is None:
            raise ValueError("filename or log_dir must be given: the scores have to go somewhere")
        if every is not None:
            check_integer("every", every, 1, 2**32 - 1, "leave it out for an entry at each epoch's end")
        if log_dir is not None:
            require("tensorboard", extra="tensorboard")
        self._filename, self._log_dir = filename, log_dir
        self._every, self._append = every, append
        self._writer: Any = None
        self._last = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the table and the events."""
        found = masking_optimizers(self.model.optimizer)
        if not any(optimizer.rule.uses_score for optimizer in found):
            raise ValueError(f"ScoreLogger needs an optimizer of magma_keras with scores, got {self.model.optimizer!r}")
        if self._filename is not None:
            path = Path(self._filename)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (self._append and path.exists()):
                self._write([("step", "name", "block", "score")], "w")
        if self._log_dir is not None:
            self._writer = require("tensorboard.summary", extra="tensorboard").Writer(str(self._log_dir))
        self._last = self._step()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write an entry when due."""
        if self._every is not None and self._step() - self._last >= self._every:
            self._record()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write an entry, if ``every`` is None."""
        if self._every is None:
            self._record()

    def on_train_end(self, logs: Any = None) -> None:
        """Close the events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _step(self) -> int:
        # Keras on JAX updates the variables when a callback reads its model
        return int(backend.to_numpy(masking_optimizers(self.model.optimizer)[0].iterations))

    def _record(self) -> None:
        self._last = step = self._step()
        scores: dict[str, np.ndarray] = {}
        for optimizer in masking_optimizers(self.model.optimizer):
            if twice := scores.keys() & optimizer.scores.keys():
                raise ValueError(f"two optimizers have scores of {min(twice)!r}: name the layers, or give mask_names=")
            scores |= {name: np.ravel(backend.to_numpy(score)) for name, score in optimizer.scores.items()}
        if self._filename is not None:
            self._write([(step, name, i, score) for name, own in scores.items() for i, score in enumerate(own)], "a")
        if self._writer is not None:
            for name, own in scores.items():
                for tag, value in _summary(name, own).items():
                    self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def _write(self, rows: Any, mode: str) -> None:
        with open(str(self._filename), mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def _summary(name: str, scores: np.ndarray) -> dict[str, float]:
    if scores.size == 1:
        return {f"scores/{name}": float(scores[0])}
    if not scores.size:
        return {}
    parts = {"mean": scores.mean(dtype=np.float64), "least": scores.min(), "largest": scores.max()}
    return {f"scores/{name}/{part}": float(value) for part, value in parts.items()}
