"""The functions of `matrix_step` in C, for matrices on the CPU that are spread over ranks."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from magma_native.library import Pass, library
from magma_native.loops import CORRECTIONS, Formula
from magma_native.source import GROUP, TENSOR
from torch import Tensor

from magma_core.hyperparameters import BaseNumbers
from magma_core.numerics import Real
from magma_torch.engine.rows import in_memory


def accumulate(
    formula: Formula, numbers: BaseNumbers, grad: Tensor, mu: Tensor | None, nu: Tensor | None
) -> Tensor | None:
    """See `matrix_step.accumulate`."""
    peaks = torch.zeros((grad.shape[0], 2), dtype=torch.int32)
    _run(formula, Pass.PEAKS, numbers, {"grad": grad, "mu": mu, "nu": nu, "hints": peaks})
    return peaks.t()[..., None] if formula.masked and formula.rule.uses_score else None


def measure(
    formula: Formula, numbers: BaseNumbers, grad: Tensor, mu: Tensor | None, nu: Tensor | None, peaks: Tensor
) -> Tensor:
    """See `matrix_step.measure`."""
    sums = torch.zeros((3, grad.shape[0]), dtype=torch.int64)
    hints = peaks[..., 0].t().contiguous()
    _run(formula, Pass.SUMS, numbers, {"grad": grad, "mu": mu, "nu": nu, "hints": hints, "sums": sums})
    return sums


def move(
    formula: Formula,
    numbers: BaseNumbers,
    grad: Tensor | None,
    mu: Tensor | None,
    nu: Tensor | None,
    theta: Tensor,
    scale: Tensor,
    keep: Tensor | None,
) -> None:
    """See `matrix_step.move`."""
    rows = len(theta)
    decided = {
        "scale": scale.expand(rows, 1).contiguous(),
        "keep": torch.ones(rows, dtype=torch.bool) if keep is None else keep.contiguous(),
    }
    _run(formula, Pass.WRITE, numbers, {"theta": theta, "grad": grad, "mu": mu, "nu": nu, **decided})


def _run(formula: Formula, which: Pass, numbers: BaseNumbers, arrays: Mapping[str, Tensor | None]) -> None:
    """``numbers`` are tensors of shape ()."""
    settings, tensor = np.zeros(1, GROUP), np.zeros(1, TENSOR)
    for name, number in numbers._asdict().items():
        (tensor if name in CORRECTIONS else settings)[name] = cast(Real, number).array.item()
    tensor["settings"] = settings.ctypes.data
    held = {name: in_memory(x) for name, x in arrays.items() if x is not None}
    for name, x in held.items():
        assert x.is_contiguous()
        tensor[name] = x.data_ptr()
    matrix = next(held[name] for name in ("theta", "grad") if name in held)
    tensor["rows"], tensor["columns"] = matrix.shape
    tensor["stride"] = len(matrix)
    library(formula).run_pass(tensor, which, torch.get_num_threads())
