"""`magma_torch.engine.passes` computes what `matrix_step` computes, in C: before, between and after the collectives."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from magma_conformance.bits import assert_bits_equal
from magma_native.loops import Formula
from magma_torch import namespace
from magma_torch.engine import matrix_step, passes
from magma_torch.engine.batch import FORMATS
from magma_torch.engine.matrix_step import Structure

from magma_core import SGD, Adam, AdamW, LaProp, RMSProp, alignment, magma, score_survival, skip_update
from magma_core.config import BASES
from magma_core.hyperparameters import base_numbers
from magma_core.numerics import binary32

SHAPES = [(1, 3 * 2**15 + 5), (3, 2**15 + 1), (70, 520), (300, 7)]
"""Chunks of 2¹⁵ elements: some in a block, and many blocks in one."""

NAN, EIGHTFOLD = 0x7F800001, 3 << 23  # as peaks, and what to add to one

CASES = [
    (AdamW(weight_decay=0.1), magma(), torch.float32),
    (LaProp(weight_decay=0.1), magma(momentum="before", decay="dense"), torch.float32),
    (SGD(momentum=0.9, nesterov=True), skip_update(decay="dense"), torch.float32),
    (RMSProp(), score_survival(), torch.bfloat16),
    (Adam(), magma().unmasked, torch.float32),
]


def arrays(shape: tuple[int, int], base: Any, rule: Any, dtype: torch.dtype, kind: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(shape, generator=generator) * torch.exp2(torch.arange(shape[1]) % 40 - 20.0)

    found: dict[str, Any] = {"theta": normal().to(dtype), "grad": normal().to(dtype)}
    formula = Formula.of(
        base, rule, Structure.of(base, rule).decays, FORMATS[dtype], FORMATS[dtype], rule != rule.unmasked
    )
    found |= {name: normal().abs() if name in formula.moments else None for name in ("mu", "nu")}
    values = {"nan": float("nan"), "infinite": float("inf"), "top": 1.9999999}
    found["grad"][0, -1] = values.get(kind, 1.0)
    return {"formula": formula, **found}


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def take(functions: Any, first: Any, given: dict[str, Any], numbers: Any, keep: torch.Tensor | None) -> dict[str, Any]:
    """All three, with larger peaks in half of the blocks, as another rank may have found."""
    held = {name: x if x is None else x.clone() for name, x in given.items() if name != "formula"}
    theta, grad, mu, nu = (held[name] for name in ("theta", "grad", "mu", "nu"))
    rows = len(theta)
    peaks = functions.accumulate(first, numbers, grad, mu, nu)
    if peaks is not None:
        held["peaks"] = peaks.clamp(max=NAN)  # any NaN is as good as another
        elsewhere = (torch.arange(rows)[:, None] % 2 == 1) & (peaks < NAN - 4 * EIGHTFOLD)
        whole = torch.where(elsewhere, peaks + EIGHTFOLD, peaks)
        sums = functions.measure(first, numbers, grad, mu, nu, whole)
        flags = alignment.finite(whole[..., 0], xp=namespace)
        held["sums"] = torch.stack(list(alignment.finite_sums(list(sums), *flags, xp=namespace)))
    scale = torch.linspace(0.1, 0.2, rows)[:, None]
    if functions is matrix_step and keep is not None and first.decays != "dense":  # it is given kept rows alone
        kept, rest = torch.nonzero(keep[:, 0])[:, 0], theta
        theta = rest[kept]
        functions.move(first, numbers, *(x if x is None else x[kept] for x in (grad, mu, nu)), theta, scale[kept], None)
        rest[kept] = theta
    else:
        functions.move(first, numbers, grad, mu, nu, theta, scale, keep)
    return held


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("kind", ["ordinary", "nan", "infinite", "top"])
def test_passes_are_the_functions(case, kind):
    base, rule, dtype = CASES[case]
    plain = [binary32(x) for x in base_numbers(base)[:-1]]
    numbers = matrix_step.on_device(plain, 0.01, torch.device("cpu"))
    for shape in SHAPES:
        given = arrays(shape, base, rule, dtype, kind)
        for keep in (None, torch.arange(shape[0])[:, None] % 3 > 0):
            mine = take(passes, given["formula"], given, numbers, keep)
            theirs = take(matrix_step, Structure.of(base, rule), given, numbers, keep)
            assert mine.keys() == theirs.keys()
            for name, x in theirs.items():
                if x is not None:
                    assert_bits_equal(to_numpy(mine[name]), to_numpy(x), f"{shape}, {name}")


@pytest.mark.parametrize("change", [torch._neg_view, lambda x: torch.nn.Parameter(x, requires_grad=False)])
def test_gradients_that_are_not_what_lies_in_memory(change):
    base, rule, dtype = CASES[0]
    numbers = matrix_step.on_device([binary32(x) for x in base_numbers(base)[:-1]], 0.01, torch.device("cpu"))
    given = arrays((4, 30), base, rule, dtype, "ordinary")
    given["grad"] = change(given["grad"])
    mine = take(passes, given["formula"], given, numbers, None)
    theirs = take(matrix_step, Structure.of(base, rule), given, numbers, None)
    for name in ("theta", "mu", "nu", "peaks", "sums"):
        assert_bits_equal(to_numpy(mine[name]), to_numpy(theirs[name]), name)


def test_every_base_is_tried():
    assert {type(base) for base, _, _ in CASES} == set(BASES.values())
