"""Compares a leg with the reference run: bits of the exact relay, distance of the free one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magma_conformance.bits import Difference, first_difference
from magma_conformance.relay.folder import Folder, Run, Station
from magma_core import read_state


@dataclass(frozen=True)
class FirstDifference:
    """The first difference from the reference run."""

    step: int
    array: str  # "weights/name", "state/name/field", "mask/name", or a file whose bytes differ
    difference: Difference

    def __str__(self) -> str:
        return f"after step {self.step}, {self.array}: {self.difference}"


def at_station(folder: Folder, run: Run, step: int) -> FirstDifference | None:
    """Compare the result of ``run`` after ``step``: all weights, all state, and the bytes of both files."""
    actual, expected = folder.station(run, step), folder.station("reference", step)
    weights = _first("weights", actual.read_weights(), expected.read_weights())
    found = weights or _first("state", _state(actual), _state(expected))
    if found is None:
        # equal arrays in different files: other settings, other names, or another writer's format
        pairs = ((actual.weights, expected.weights), (actual.state, expected.state))
        found = next((said for pair in pairs if (said := _bytes(*pair))), None)
    return found and FirstDifference(step, *found)


def of_masks(folder: Folder, run: Run, steps: range) -> tuple[int, FirstDifference | None]:
    """Compare the masks of some steps: their number, and the first that differs."""
    count = 0
    for step in steps:
        actual, expected = folder.masks(run, step), folder.masks("reference", step)
        if (found := _first("mask", actual, expected)) is not None:
            return count, FirstDifference(step, *found)
        count += len(expected)
    return count, None


def distance(folder: Folder, step: int) -> float:
    """‖θ − θ′‖ / ‖θ′‖ over all weights of the free run and the reference run."""
    free, reference = (folder.station(run, step).read_weights() for run in ("free", "reference"))
    names = sorted(reference)
    moved = sum(float(np.sum((free[name].astype(np.float64) - reference[name]) ** 2)) for name in names)
    whole = sum(float(np.sum(reference[name].astype(np.float64) ** 2)) for name in names)
    return float(np.sqrt(moved / whole))


def _state(station: Station) -> dict[str, np.ndarray]:
    arrays = {}
    for name, saved in read_state(station.state).items():
        arrays[f"{name}/step"] = np.asarray(saved.step)
        arrays |= {f"{name}/{field}": getattr(saved.state, field) for field in saved.fields}
    return arrays


def _first(
    kind: str, actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> tuple[str, Difference] | None:
    for name in (*expected, *(actual.keys() - expected.keys())):
        if name not in actual or name not in expected:
            there, here = ("there" if name in side else "missing" for side in (expected, actual))
            return f"{kind}/{name}", Difference("array", None, there, here, None, 1)
        if (difference := first_difference(actual[name], expected[name])) is not None:
            return f"{kind}/{name}", difference
    return None


def _bytes(actual: Path, expected: Path) -> tuple[str, Difference] | None:
    here, there = (np.frombuffer(path.read_bytes(), np.uint8) for path in (actual, expected))
    difference = first_difference(here, there)
    return None if difference is None else (actual.name, difference)
