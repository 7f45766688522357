"""Compiles a step for an H100 that need not be there and leaves its kernels as JSON.

``python inductor_cuda_worker.py FILE BASE FORMAT [WITHOUT]``: the last is what the namespace is to lack.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from inductor_cuda import kernels, program
from magma_torch import namespace as xp

import magma_core
from magma_core.config import BASES

AXES: dict[str, Any] = {"whole": (), "rows": (0,)}
LACKING = {"fused": lambda x: False, "divide": torch.divide}


def step(base: str, dtype: str) -> tuple[Any, Any]:
    """A step of two leaves, one block and many: the function and its arguments."""
    options = {"base": BASES[base](), "rule": magma_core.magma(), "xp": xp}
    params = [torch.empty((48, 40), dtype=getattr(torch, dtype), device="cuda") for _ in AXES]
    states = [
        magma_core.init(param, name=name, block_axes=axes, **options)
        for param, (name, axes) in zip(params, AXES.items(), strict=True)
    ]
    plans = magma_core.plan_all(params, names=list(AXES), seed=0, block_axes=AXES, **options)
    number, rate = torch.empty((), dtype=torch.int64, device="cuda"), torch.empty((), device="cuda")

    def update(params: Any, grads: Any, states: Any, number: Any, rate: Any) -> Any:
        return magma_core.update_planned(plans, params, grads, states, step=number, lr=rate, xp=xp)

    return update, (params, [torch.empty_like(param) for param in params], states, number, rate)


if __name__ == "__main__":
    file, base, dtype, *without = sys.argv[1:]
    for name in without:
        setattr(xp, name, LACKING[name])
    code = program(lambda: step(base, dtype)).code
    Path(file).write_text(json.dumps([kernel._asdict() for kernel in kernels(code)]))
