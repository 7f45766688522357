"""The real-gradient run: a language model learns, and every mode gets its gradients in lockstep.

The reference trains the model: torch computes the gradients, magma_core on NumPy the steps. A folder keeps the
gradients and the digests of the reference's results, so that each mode can follow in any process. The text depends on
this machine's Python and the gradients on its processor; `magma_conformance.cases.recorded` has gradients that are the
same everywhere.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magma_conformance.runner.jobs import judge, open_implementation
from magma_conformance.runner.result import Mismatch, Result, Status, compare
from magma_conformance.task import Arrays, Implementation, Record, Task
from magma_conformance.wire.digest import digest
from magma_core import AdamW, Axes, magma
from magma_core.state_file.config import base_to_plain, rule_to_plain

COLUMN = "text"
STEPS = 50
WINDOW = 10
LEARNING_RATE = 0.01
SEED = 20260217


@dataclass(frozen=True)
class Recording:
    """The reference's run, on disk."""

    folder: Path
    steps: int

    def task(self, window: int, state: Record | None) -> Task:
        """The steps of one window, starting from the previous window's state."""
        first = window * WINDOW
        gradients = [self._arrays(f"gradients-{step}.npz") for step in range(first, min(first + WINDOW, self.steps))]
        initial = self._arrays("params.npz")
        params = initial if state is None else {name: state[f"{name}/param"] for name in initial}
        return make_task(COLUMN, params, gradients, first + 1, state)

    def digest(self, step: int) -> str:
        """The digest of the reference's arrays after ``step``."""
        return (self.folder / f"digest-{step}").read_text()

    def inputs(self) -> str:
        """The digest of the initial parameters and all gradients."""
        files = ["params.npz", *(f"gradients-{step}.npz" for step in range(self.steps))]
        return digest(self._arrays(file) for file in files)

    def _arrays(self, file: str) -> dict[str, np.ndarray]:
        names = json.loads((self.folder / "names.json").read_text())
        return dict(zip(names, np.load(self.folder / file).values(), strict=True))


def record(folder: Path, steps: int, advance: Callable[[float], None]) -> tuple[Recording, list[float]]:
    """Train the model for ``steps`` steps. Embedding, head and norms are not masked, as in the paper.

    Args:
        folder: an empty folder; takes 4 bytes per parameter and step.
        steps: how many.
        advance: called with the loss after each step.

    Returns:
        The recording and the losses in nats per byte.

    Raises:
        ImportError: if torch is not installed.
    """
    from magma_conformance.cases.language_model import LanguageModel

    # two layers, not four, at the same total size: fewer tensors to compile
    model = LanguageModel(width=192, layers=2, hidden=576)
    params, state, losses = model.parameters(), None, []
    (folder / "names.json").write_text(json.dumps(list(params)))
    np.savez(folder / "params.npz", *params.values())
    reference = open_implementation("numpy", "eager", "cpu")
    for step in range(steps):
        loss, gradients = model.loss_and_gradients(params, step)
        losses.append(loss)
        np.savez(folder / f"gradients-{step}.npz", *gradients.values())
        (state,) = reference.run(make_task(COLUMN, params, [gradients], step + 1, state))
        params = {name: state[f"{name}/param"] for name in params}
        (folder / f"digest-{step + 1}").write_text(digest([state]))
        advance(loss)
    return Recording(folder, steps), losses


@dataclass(frozen=True)
class RealJob:
    """Follows the recording in one mode."""

    backend: str
    mode: str
    device: str
    recording: Recording
    size = 1

    def run(self) -> list[Result]:
        """The verdict, computed in this process."""
        candidate = open_implementation(self.backend, self.mode, self.device)
        return [
            judge(
                candidate,
                self.recording.task(0, None),
                lambda: follow(candidate, self.recording),
                case=COLUMN,
                column=COLUMN,
                steps=self.recording.steps,
            )
        ]

    def unanswered(self, status: Status, reason: str) -> list[Result]:
        """The verdict when it was not computed."""
        return [Result(f"{self.backend} {self.mode}", COLUMN, COLUMN, status, 0.0, reason=reason)]


def follow(candidate: Implementation, recording: Recording) -> tuple[Mismatch | None, str]:
    """Window by window, each from the candidate's own state, up to the first difference.

    Returns:
        The difference, and the digest of everything that the candidate computed.
    """
    state, computed = None, []
    for window in range(-(-recording.steps // WINDOW)):
        task = recording.task(window, state)
        records = candidate.run(task)
        if len(records) != len(task.gradients):
            raise ValueError(f"{len(records)} records for {len(task.gradients)} steps")
        for step, entry in enumerate(records, task.first_step):
            computed.append(digest([entry]))
            if computed[-1] != recording.digest(step):
                # all was equal before this window, so the reference can start from the same state
                reference = open_implementation("numpy", "eager", "cpu")
                return compare(records, reference.run(task), task.first_step), _chain(computed)
        state = records[-1]
    return None, _chain(computed)


def _chain(digests: Sequence[str]) -> str:
    """One digest of many, so that only one window is held at a time."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def make_task(
    key: str, params: Arrays, gradients: Sequence[Arrays], first_step: int = 1, state: Record | None = None
) -> Task:
    """Some steps of the language model's training."""
    return Task(
        key=key,
        params=params,
        gradients=gradients,
        learning_rates=[LEARNING_RATE] * len(gradients),
        base=base_to_plain(AdamW()),
        rule=rule_to_plain(magma()),
        block_axes={name: block_axes(name) for name in params},
        seed=SEED,
        first_step=first_step,
        state=state,
    )


def block_axes(name: str) -> Axes | None:
    """Matrices of attention and MLP are masked, as in the paper: queries by rows, the others whole."""
    if ".attention." not in name and ".mlp." not in name:
        return None
    return (0,) if name.endswith("wq") else ()
