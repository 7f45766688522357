"""A step compiled for an H100 without needing one, and its kernels."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from inductor_cuda import kernels, program
from magma_torch import namespace as xp
from stacked_fences import FEW, stacked, xor_fence

import magma_core
from magma_core import AdamW, numerics
from magma_core.config import BASES

AXES: dict[str, Any] = {"whole": (), "rows": (0,)}
OTHERWISE = {
    "fused": lambda x: False,
    "divide": torch.divide,
    "fence": lambda x, source: xor_fence(x, source, xp=xp),
}


def step(base: str, dtype: str, leaves: tuple[str, ...]) -> tuple[Any, Any]:
    """A step of leaves of one block and of many: the function and its arguments."""
    axes = {name: AXES[name] for name in leaves}
    own = AdamW(beta2=1e-8) if base == "factor-1" else BASES[base]()
    options = {"base": own, "rule": magma_core.magma(), "xp": xp}
    params = [torch.empty((48, 40), dtype=getattr(torch, dtype), device="cuda") for _ in axes]
    states = [
        magma_core.init(param, name=name, block_axes=axes[name], **options)
        for param, name in zip(params, axes, strict=True)
    ]
    plans = magma_core.plan_all(params, names=list(axes), seed=0, block_axes=axes, **options)
    number, rate = torch.empty((), dtype=torch.int64, device="cuda"), torch.empty((), device="cuda")

    def update(params: Any, grads: Any, states: Any, number: Any, rate: Any) -> Any:
        return magma_core.update_planned(plans, params, grads, states, step=number, lr=rate, xp=xp)

    return update, (params, [torch.empty_like(param) for param in params], states, number, rate)


def stacks() -> tuple[Any, Any]:
    """A product behind two fences with an identity between them, and a sum."""
    mode = SimpleNamespace(xp=xp, framework=torch)

    def every(a: Any, b: Any, c: Any) -> Any:
        return [stacked(mode, a, b, c, stack, numerics.fence) for stack in FEW]

    return every, [torch.empty(4096, device="cuda") for _ in range(3)]


def compiled(base: str, dtype: str, leaves: tuple[str, ...], without: str | None) -> list[dict[str, str]]:
    """The kernels of a step; ``without`` is what the namespace is to have otherwise.

    For the base it also takes "factor-1", AdamW where 1 − β₂ is 1, and "stacks", fences upon fences instead of a step.
    """
    changed = {without: OTHERWISE[without]} if without else {}
    with mock.patch.dict(vars(xp), changed):
        code = program(stacks if base == "stacks" else lambda: step(base, dtype, leaves)).code
        return [kernel._asdict() for kernel in kernels(code)]
