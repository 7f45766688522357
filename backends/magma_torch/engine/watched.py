"""Parameters that another optimizer moves: their alignment is watched, and what became of their blocks is settled."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from magma_core import Blocks
from magma_core.namespace import Namespace
from magma_torch import namespace
from magma_torch.engine.batch import ACCUMULATE, FORMATS, Batch
from magma_torch.engine.rows import Piece
from magma_torch.engine.sharding import local, spread_like

_XP = cast(Namespace, namespace)

MOMENTS = ("exp_avg", "momentum_buffer", "momentum")
"""What optimizers call their first moment."""


def moment_of(optimizer: Optimizer, param: Tensor) -> Tensor | None:
    """The first moment that ``optimizer`` keeps of ``param``, None if it keeps none."""
    state = optimizer.state.get(param, {})
    for key in MOMENTS:
        found = state.get(key)
        if isinstance(found, Tensor) and found.is_floating_point() and found.shape == param.shape:
            return found
    return None


class Watched(Batch):
    """A batch whose parameters, and mostly moments, are another optimizer's.

    Args:
        optimizer: the other one.
        arguments: those of `Batch`.
    """

    moves = False

    def __init__(self, optimizer: Optimizer, *arguments: Any) -> None:
        self._optimizer = optimizer
        super().__init__(*arguments)

    def accumulate(self, grads: Sequence[Tensor]) -> Tensor | None:
        """As that of `Batch`; gradients are not looked at for rules without scores."""
        return super().accumulate(grads) if self.measured else None

    def move(self, grads: Sequence[Tensor], keep: Tensor | None, scale: Tensor) -> None:
        """Leave the writing to the optimizer and to `settle`; at a rate of 1 the scale is ``lr_scale`` ⊗ w."""
        self.scale = scale

    def settle(self, olds: Mapping[str, Tensor]) -> None:
        """Weight what the optimizer has done to kept blocks, and give the others their bits back.

        Args:
            olds: what this rank had of the parameters before, by name.
        """
        if self.keep is None:  # nothing is decided of fake tensors
            return
        blocks, rows = Blocks(self.layout.shape, self.blocks.axes), self.layout.rows
        keep, weight = (self._from_whole(cast(Tensor, x)) for x in (self.keep, self.scale))
        for i, entry in enumerate(self.entries):
            own = slice(i * rows, (i + 1) * rows)
            kept, w = (blocks.spread(x[own].view(blocks.block_shape), xp=_XP) for x in (keep, weight))
            param, old = local(entry.param).detach(), olds[entry.name]
            if self.options.rule.weight != "one" or self.options.lr_scale != 1:
                moved = torch.sub(param.float(), old).mul_(w).add_(old).to(param.dtype)
                torch.where(w == 1, param, moved, out=param)
            torch.where(kept, param, old, out=param)

    def _with(self, tensors: Sequence[Tensor], kernel: int = ACCUMULATE) -> Iterator[tuple[Any, Any]]:
        if self.options.structure.advances:
            yield from super()._with(tensors, kernel)
            return
        moments = self.moments()
        for work, part in super()._with(tensors, kernel):
            yield work._replace(mu=self._part(moments, work.piece)), part

    def moments(self) -> list[Tensor]:
        """Those of the optimizer, in the order of parameters in memory."""
        return [self._moment(entry.param) for entry in self.entries]

    def _moment(self, param: Tensor) -> Tensor:
        """Looked up at every step: the optimizer may put a new tensor there."""
        moment = spread_like(cast(Tensor, moment_of(self._optimizer, param)), self.sharding)
        if moment.dtype not in FORMATS:  # float64, which the core would round, too
            moment = moment.to(torch.float32)
        if len(self.entries) > 1 or not self.layout.flat or self.layout.fits(moment):
            return moment
        return torch.empty_like(self.params[0], dtype=moment.dtype).copy_(moment)  # it lies in another order

    def _part(self, moments: Sequence[Tensor], piece: Piece) -> Tensor:
        """A piece of the moments as the core's would be: binary32, flushed."""
        stacked = len(moments) > 1
        part = self._stack("mu", moments).view(piece.shape) if stacked else self.layout.read(moments[0], piece)
        return namespace.flush(part.to(torch.float32))
