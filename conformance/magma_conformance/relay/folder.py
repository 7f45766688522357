"""All that the processes of a relay know of each other: files in one folder."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file

from magma_conformance.relay.plan import RelayPlan
from magma_conformance.task import Arrays

Run = Literal["reference", "exact", "free", "control"]
"""The run that never moves; the relay that is fed its gradients; the relay that computes its own; and for comparison
with the latter a run that never moves, in which one weight is changed by an ulp after the first leg."""


@dataclass(frozen=True)
class Station:
    """What one leg hands to the next: the weights, and the state of the optimizer in the portable format."""

    folder: Path

    @property
    def weights(self) -> Path:
        """A safetensors file; matrices are (out, in)."""
        return self.folder / "weights.safetensors"

    @property
    def state(self) -> Path:
        """What ``save_state`` of every adapter writes."""
        return self.folder / "state.safetensors"

    def read_weights(self) -> dict[str, np.ndarray]:
        """By name."""
        return load_file(self.weights)

    def write_weights(self, weights: Arrays) -> None:
        """In the order of their names, whatever order they come in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}, self.weights)


@dataclass(frozen=True)
class Folder:
    """The folder of a relay."""

    root: Path

    def write_plan(self, plan: RelayPlan) -> None:
        """Before anything else."""
        self.root.mkdir(parents=True, exist_ok=True)
        _write(self.root / "plan.json", asdict(plan))

    def plan(self) -> RelayPlan:
        """What is run."""
        return RelayPlan(**_read(self.root / "plan.json"))

    def station(self, run: Run, step: int) -> Station:
        """Where ``run`` stands after ``step``."""
        return Station(self.root / run / str(step))

    def start(self, run: Run, step: int = 0) -> None:
        """Put ``run`` where the one that never moves stands after ``step``: at the start, as every relay begins."""
        shutil.copytree(self.station("reference", step).folder, self.station(run, step).folder)

    def write_batches(self, batches: Sequence[np.ndarray]) -> None:
        """Of all steps, from t = 1."""
        np.save(self.root / "batches.npy", np.stack(batches))

    def batches(self) -> dict[int, np.ndarray]:
        """(batch, length + 1) int64 for each step t."""
        return dict(enumerate(np.load(self.root / "batches.npy"), 1))

    def write_gradients(self, step: int, gradients: Arrays) -> None:
        """Those of the run that never moves; matrices are (out, in)."""
        path = self._gradients(step)
        path.parent.mkdir(exist_ok=True)
        save_file(dict(gradients), path)

    def gradients(self, step: int) -> dict[str, np.ndarray]:
        """See `write_gradients`."""
        return load_file(self._gradients(step))

    def write_masks(self, run: Run, step: int, masks: Arrays) -> None:
        """Which blocks were kept at ``step``: bool, in block shape, by the names of the masked parameters."""
        path = self._masks(run, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(mask) for name, mask in masks.items()}, path)

    def masks(self, run: Run, step: int) -> dict[str, np.ndarray]:
        """See `write_masks`."""
        return load_file(self._masks(run, step))

    def write_report(self, process: str, report: Mapping[str, Any]) -> None:
        """What a process says in the end."""
        _write(self.root / f"{process}.json", report)

    def report(self, process: str) -> dict[str, Any]:
        """See `write_report`."""
        return dict(_read(self.root / f"{process}.json"))

    def stderr(self, process: str) -> Path:
        """What a process said otherwise."""
        return self.root / f"{process}.stderr"

    def _gradients(self, step: int) -> Path:
        return self.root / "gradients" / f"{step}.safetensors"

    def _masks(self, run: Run, step: int) -> Path:
        return self.root / run / "masks" / f"{step}.safetensors"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
