"""The files through which the processes of a relay communicate, in one folder."""

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
"""The reference run; the relay fed with its gradients; the relay that computes its own gradients; and, to compare with
the latter, a reference run in which one weight changes by an ulp after the first leg."""


@dataclass(frozen=True)
class Station:
    """The handover between legs: the weights, and the optimizer's state in the portable format."""

    folder: Path

    @property
    def weights(self) -> Path:
        """A safetensors file; matrices are (out, in)."""
        return self.folder / "weights.safetensors"

    @property
    def state(self) -> Path:
        """The output of every adapter's ``save_state``."""
        return self.folder / "state.safetensors"

    def read_weights(self) -> dict[str, np.ndarray]:
        """The weights by name."""
        return load_file(self.weights)

    def write_weights(self, weights: Arrays) -> None:
        """Write the weights, sorted by name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}, self.weights)


@dataclass(frozen=True)
class Folder:
    """The folder of a relay."""

    root: Path

    def write_plan(self, plan: RelayPlan) -> None:
        """Write the plan, before anything else."""
        self.root.mkdir(parents=True, exist_ok=True)
        _write(self.root / "plan.json", asdict(plan))

    def plan(self) -> RelayPlan:
        """The plan of the relay."""
        return RelayPlan(**_read(self.root / "plan.json"))

    def station(self, run: Run, step: int) -> Station:
        """The files of ``run`` after ``step``."""
        return Station(self.root / run / str(step))

    def start(self, run: Run, step: int = 0) -> None:
        """Copy the reference's files after ``step`` to ``run``; every relay starts like this."""
        shutil.copytree(self.station("reference", step).folder, self.station(run, step).folder)

    def write_batches(self, batches: Sequence[np.ndarray]) -> None:
        """Write the batches of all steps, from t = 1."""
        np.save(self.root / "batches.npy", np.stack(batches))

    def batches(self) -> dict[int, np.ndarray]:
        """(batch, length + 1) int64 for each step t."""
        return dict(enumerate(np.load(self.root / "batches.npy"), 1))

    def write_gradients(self, step: int, gradients: Arrays) -> None:
        """Write the gradients of the reference run; matrices are (out, in)."""
        path = self._gradients(step)
        path.parent.mkdir(exist_ok=True)
        save_file(dict(gradients), path)

    def gradients(self, step: int) -> dict[str, np.ndarray]:
        """See `write_gradients`."""
        return load_file(self._gradients(step))

    def write_masks(self, run: Run, step: int, masks: Arrays) -> None:
        """Write the kept blocks of ``step``: bool, in block shape, by name of the masked parameters."""
        path = self._masks(run, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(mask) for name, mask in masks.items()}, path)

    def masks(self, run: Run, step: int) -> dict[str, np.ndarray]:
        """See `write_masks`."""
        return load_file(self._masks(run, step))

    def write_report(self, process: str, report: Mapping[str, Any]) -> None:
        """Write a process's final report."""
        _write(self.root / f"{process}.json", report)

    def report(self, process: str) -> dict[str, Any]:
        """See `write_report`."""
        return dict(_read(self.root / f"{process}.json"))

    def stderr(self, process: str) -> Path:
        """Captures the other output of a process."""
        return self.root / f"{process}.stderr"

    def _gradients(self, step: int) -> Path:
        return self.root / "gradients" / f"{step}.safetensors"

    def _masks(self, run: Run, step: int) -> Path:
        return self.root / run / "masks" / f"{step}.safetensors"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
