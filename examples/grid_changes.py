"""How often a block's grid changes between steps, which `magma_torch.gpu.kernels.REACH` estimates.

    python examples/grid_changes.py --steps 120

trains the conformance run's model on the source of Python's standard library and counts, for each matrix, by how many
powers of two the largest |μ| and |g| change from step to step. On a GPU, a step reads a matrix once if both grids
change by REACH or less, and twice otherwise.
"""

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from magma_conformance.cases.real_text import record
from rich.progress import track

BETA, WARM_UP = 0.9, 20


def exponents(folder: Path, step: int, mu: dict[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """Exponents of the largest |μ| and |g| of each matrix; advances ``mu``."""
    names = json.loads((folder / "names.json").read_text())
    found = {}
    for name, g in zip(names, np.load(folder / f"gradients-{step}.npz").values(), strict=True):
        if g.ndim == 2:
            mu[name] = BETA * mu.get(name, 0.0) + (1 - BETA) * g
            found[name] = tuple(math.frexp(float(np.abs(x).max()))[1] for x in (mu[name], g))
    return found


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    steps = parser.parse_args().steps
    changes: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), steps, lambda loss: None)
        mu: dict[str, np.ndarray] = {}
        before: dict[str, tuple[int, int]] = {}
        for step in track(range(steps), "exponents"):
            now = exponents(Path(folder), step, mu)
            if step >= WARM_UP:
                changes += [(now[name][0] - before[name][0], now[name][1] - before[name][1]) for name in now]
            before = now
    for i, what in enumerate(("|μ|", "|g|")):
        shares = Counter(min(abs(change[i]), 3) for change in changes)
        print(what, *(f"{'3+' if n == 3 else n}: {shares[n] / len(changes):.1%}" for n in range(4)))
    for reach in range(3):
        missed = sum(max(map(abs, change)) > reach for change in changes) / len(changes)
        print(f"reach {reach}: {missed:.1%} are read twice")


if __name__ == "__main__":
    main()
