"""The step on matrices with a row for each block, eagerly: the core's functions, written into memory in place."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from magma_core import SGD, Base, Rule, State, alignment, bases, rule
from magma_core.config import Decay, Momentum
from magma_core.hyperparameters import BaseNumbers
from magma_core.namespace import Namespace
from magma_core.numerics import Real, binary32
from magma_torch import namespace

_XP = cast(Namespace, namespace)


class Structure(NamedTuple):
    """What the arithmetic of a step depends on, apart from numbers."""

    base: Base  # its kind; the numbers in it are not used
    momentum: Momentum | None  # which the alignment looks at, None if it is not measured
    decays: Decay | None
    advances: bool = True  # False where the moments are another optimizer's

    @classmethod
    def of(cls, base: Base, rule: Rule) -> "Structure":
        """The structure of a step of ``rule`` over ``base``."""
        kind = SGD(nesterov=base.nesterov) if isinstance(base, SGD) else type(base)()
        decays = rule.decay if binary32(base.weight_decay) else None
        return cls(kind, rule.momentum if rule.uses_score else None, decays)


def accumulate(
    structure: Structure, numbers: BaseNumbers, grad: Tensor, mu: Tensor | None, nu: Tensor | None
) -> Tensor | None:
    """Advance the moments in place; the `largest` of the operands of the alignment, (2, rows, 1) int32."""
    g = _real(grad).flush()
    if structure.momentum != "before":
        _advance(structure, numbers, g, mu, nu)
    if structure.momentum is None:
        return None
    return torch.stack(alignment.largest((_real(mu), g), (1,)))


def measure(
    structure: Structure, numbers: BaseNumbers, grad: Tensor, mu: Tensor | None, nu: Tensor | None, peaks: Tensor
) -> Tensor:
    """ΣXY, ΣXX, ΣYY of the rows, (3, rows) int64; then advance the moments if `accumulate` left them as they were.

    ``peaks`` are what `accumulate` found, of whole blocks.
    """
    g, grids = _real(grad).flush(), alignment.grid(peaks, xp=_XP).array
    x, y = (alignment.on_grid(side, _real(scale)) for side, scale in zip((_real(mu), g), grids, strict=True))
    sums = alignment.integer_sums(x, y, (1,))
    if structure.momentum == "before":
        _advance(structure, numbers, g, mu, nu)
    return torch.stack(list(sums))


def move(
    structure: Structure,
    numbers: BaseNumbers,
    grad: Tensor | None,
    mu: Tensor | None,
    nu: Tensor | None,
    theta: Tensor,
    scale: Tensor,
    keep: Tensor | None,
) -> None:
    """Move the parameter in place; ``scale`` is (rows, 1) or (), ``keep`` (rows, 1), or None where all is kept."""
    new = rule.write(structure, theta, grad, State(mu, nu), numbers, _real(scale), keep)
    theta.copy_(new)


def _advance(structure: Structure, numbers: BaseNumbers, g: Real, mu: Tensor | None, nu: Tensor | None) -> None:
    if not structure.advances:
        return
    new = bases.advance_moments(g, State(mu, nu), numbers, base=structure.base)
    for old, now in ((mu, new.mu), (nu, new.nu)):
        if old is not None:
            old.copy_(now)


def _real(x: Any) -> Real:
    return Real(x if x.dtype == torch.float32 else x.to(torch.float32), xp=_XP)


def on_device(numbers: Sequence[float], rate: Tensor | float, device: torch.device) -> BaseNumbers:
    """The numbers of a step as tensors of shape (), all copied at once; a rate that is a tensor is not waited for."""
    known = [*numbers, rate] if isinstance(rate, float) else numbers
    scalars = [_real(x) for x in torch.tensor(known, dtype=torch.float32, device=device).unbind()]
    if not isinstance(rate, float):
        scalars.append(Real(_real(rate.detach().reshape(()).to(device)).flush().array, xp=_XP))
    return BaseNumbers(*scalars)
