"""The step on matrices with a row for each block: the core's functions, written into memory in place.

Eager and compiled are the same functions. What may change from step to step is an argument, the numbers of the base
too, so that a schedule of β does not compile anew.
"""

import warnings
from collections.abc import Callable, Sequence
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
    """What a compiled program depends on."""

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
    structure: Structure, numbers: BaseNumbers, grad: Tensor, mu: Tensor | None, nu: Tensor | None, grids: Tensor
) -> Tensor:
    """ΣXY, ΣXX, ΣYY of the rows, (3, rows) int64; then advance the moments if `accumulate` left them as they were."""
    g = _real(grad).flush()
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


class Compiled:
    """One of the functions above, compiled once for each structure and kind of arguments, for extents of any size.

    Ahead of time, because such a program takes half as long to call as one of ``torch.compile``, and there may be any
    number of them.
    """

    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        self.function = function
        self._programs: dict[object, list[Callable[..., Tensor | None]]] = {}

    def __call__(self, structure: Structure, scalars: Tensor, *arrays: Tensor | None) -> Tensor | None:
        """Run compiled; ``scalars`` in one vector, the rate last.

        Arrays must not be views in autograd's sense (``.data`` of a view is none): programs are guarded by what views
        are views of.
        """
        programs = self._programs.setdefault((structure, *map(_kind, arrays)), [])
        for program in programs:
            try:
                return program(scalars, *arrays)
            except RuntimeError as error:
                if not str(error).startswith("GuardManager check failed"):
                    raise
        programs.append(self._compile(structure, scalars, arrays))
        return programs[-1](scalars, *arrays)

    def _compile(
        self, structure: Structure, scalars: Tensor, arrays: Sequence[Tensor | None]
    ) -> Callable[..., Tensor | None]:
        function = self.function  # the program must not hold on to its siblings: what it refers to is serialised

        def program(scalars: Tensor, *arrays: Tensor | None) -> Tensor | None:
            return function(structure, unpack(scalars), *arrays)

        for array in arrays:
            for axis in (-2, -1):
                if array is not None and array.ndim >= 2 and array.shape[axis] > 1:
                    torch._dynamo.mark_dynamic(array, array.ndim + axis)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its own
            return torch.compile(program, fullgraph=True).aot_compile(((scalars, *arrays), {}))


def pack(numbers: Sequence[float], rate: Tensor | float, device: torch.device) -> Tensor:
    """Scalars as one vector, as `Compiled` takes them."""
    if isinstance(rate, float):
        return torch.tensor([*numbers, rate], dtype=torch.float32, device=device)
    flushed = _real(rate.detach().reshape(1).to(device)).flush().array
    return torch.cat([torch.tensor(numbers, dtype=torch.float32, device=device), flushed])


def unpack(scalars: Tensor) -> BaseNumbers:
    """The vector's entries by their names."""
    return BaseNumbers(*map(_real, scalars.unbind()))


def _kind(array: Tensor | None) -> object:
    """What a compiled program mostly holds for; offsets and extents of 0 and 1 are special to torch.compile."""
    if array is None:
        return None
    return array.dtype, array.device, tuple(n == 1 for n in array.shape), min(array.storage_offset(), 2)
