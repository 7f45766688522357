"""`magma_core.step.update_planned` for tensors that step in C where they can, for other packages' optimizers."""

from collections.abc import Sequence
from typing import Any

import magma_native
import numpy as np
import torch
from ml_dtypes import bfloat16
from torch import Tensor
from torch.nn import Parameter

from magma_core import Plan, Report, State, step
from magma_core.namespace import Array, Namespace
from magma_torch.engine.compiler import compiler_missing


def update_planned(
    plans: Sequence[Plan],
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    xp: Namespace,
    **numbers: Any,
) -> tuple[list[Array], list[State], list[Report]]:
    """As there. Tensors must be on the CPU to step in C, outside of torch.compile."""
    arrays = [*params, *grads, *(x for state in states for x in state if x is not None)]
    if torch.compiler.is_compiling() or compiler_missing() is not None or not all(map(_has_memory, arrays)):
        return step.update_planned(plans, params, grads, states, **numbers, xp=xp)
    plain = {name: x.item() if isinstance(x, Tensor) else x for name, x in numbers.items()}
    inputs = list(map(_to_numpy, params)), list(map(_to_numpy, grads))
    olds = [State(*(None if x is None else _to_numpy(x) for x in state)) for state in states]
    try:
        new, news, reports = magma_native.update_planned(plans, *inputs, olds, **plain, threads=torch.get_num_threads())
    except magma_native.CompilerMissing:  # of this format
        return step.update_planned(plans, params, grads, states, **numbers, xp=xp)
    return (
        [_to_torch(x) for x in new],
        [State(*(None if x is None else _to_torch(x) for x in state)) for state in news],
        [Report(*(None if x is None else _to_torch(x) for x in report)) for report in reports],
    )


def _has_memory(x: Any) -> bool:
    """Whether NumPy can look at its memory."""
    plain = type(x) in (Tensor, Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    return plain and x.device.type == "cpu" and x.layout == torch.strided and not x.is_neg()


def _to_numpy(x: Any) -> np.ndarray:
    x = x.detach()
    return x.view(torch.int16).numpy().view(bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def _to_torch(x: np.ndarray) -> Tensor:
    if x.dtype == bfloat16:
        return torch.from_numpy(np.asarray(x.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(x))
