"""Parameters that are stepped together: a large one by itself, or many small ones of one layout as one stack."""

import math
from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from magma_native.loops import Formula
from magma_numpy import namespace as numpy_namespace
from torch import Tensor

from magma_core import Base, State, cut
from magma_core.bases import advance_powers, direction_uses_gradient
from magma_core.hyperparameters import base_numbers
from magma_core.keep import BlockWords, block_index, key_vectors, mask_key
from magma_core.namespace import Namespace
from magma_core.numerics import Real, binary32
from magma_core.rule import write
from magma_torch import namespace
from magma_torch.engine import matrix_step, passes
from magma_torch.engine.compiler import cannot_compile, compiler_missing
from magma_torch.engine.memory import Entry, History, Memory
from magma_torch.engine.rows import Layout, Piece
from magma_torch.engine.sharding import Sharding, local
from magma_torch.gpu.available import triton_missing
from magma_torch.options import Options

_XP, _NUMPY = cast(Namespace, namespace), cast(Namespace, numpy_namespace)

ACCUMULATE, MEASURE, MOVE = range(3)
_FUNCTIONS: tuple[Any, ...] = (matrix_step.accumulate, matrix_step.measure, matrix_step.move)
_PASSES: tuple[Any, ...] = (passes.accumulate, passes.measure, passes.move)

FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""What `magma_native` reads and writes."""

STACKED = 2**16
"""Parameters of so many elements or fewer are stacked, up to four times as many in a stack."""

_AT_ONCE = 2**17
"""Elements that are worked on at once: a step makes a dozen arrays of that size."""


class _Work(NamedTuple):
    """A piece of a batch, with the memory that stays where it is from step to step."""

    piece: Piece
    theta: Tensor | None  # where it is read in place
    mu: Tensor | None
    nu: Tensor | None


class Scratch:
    """Memory for stacks, kept from batch to batch and from step to step: fresh pages cost more than what is copied."""

    def __init__(self) -> None:
        self._memory: dict[Hashable, Tensor] = {}

    def take(self, role: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory of ``shape`` for one use at a time of ``role``."""
        size, key = math.prod(shape), (role, like.dtype, like.device)
        if key not in self._memory or self._memory[key].numel() < size:
            # of full size at once: how many of a stack are kept differs from step to step
            self._memory[key] = torch.empty(max(size, 4 * STACKED), dtype=like.dtype, device=like.device)
        return self._memory[key][:size].view(*shape)


class Batch:
    """Parameters of one group, layout and history.

    Args:
        group: the number of their group.
        options: of the group.
        entries: the parameters.
        grad: the dtype of their gradients.
        layout: of each, on this rank.
        sharding: of each, None for plain tensors.
        scratch: shared with other batches.

    Attributes:
        launched: whether kernels or `magma_native` step it.
        passes: whether `magma_native` does what lies between the collectives.
    """

    moves = True  # False in batches whose parameters another optimizer writes

    def __init__(
        self,
        group: int,
        options: Options,
        entries: Sequence[Entry],
        grad: torch.dtype,
        layout: Layout,
        sharding: Sharding | None,
        scratch: Scratch,
    ) -> None:
        self._scratch = scratch
        self.group, self.options, self.entries, self.layout, self.sharding = group, options, entries, layout, sharding
        self._grad = grad
        self.params = [local(entry.param).detach() for entry in entries]
        self.device = self.params[0].device
        self.launched = options.compile and not self.split and self._launchable()
        self.passes = options.compile and self.split and self.moves and self._compilable()
        axes, name = options.block_axes if options.masked else (), entries[0].name
        self.blocks = sharding.blocks(axes, name) if sharding else cut(layout.shape, axes, name=name)
        self.step, self._powers = History.of(entries[0].state, options)
        counter = self.device if self.launched else torch.device("cpu")
        self.memory = Memory(entries, options, layout, self.blocks, sharding, self.device, counter)
        self.cosine: Tensor | None = None  # (blocks,), of the last step
        self.keep: Tensor | None = None  # (blocks,), of the last step
        self.scale: Tensor | None = None  # (blocks,), of the last step, where another optimizer moves
        self.sums: Tensor | None = None  # (3, blocks), of the last step
        self._index: Tensor | None = None
        if self.launched:
            return
        keys = [mask_key(entry.name, options.seed, xp=_XP) for entry in entries]
        index = block_index(self.blocks, xp=_XP, device=self.device).flatten()
        high, low = (x.repeat_interleave(len(index)) for x in key_vectors(keys, xp=_XP, device=self.device))
        self.words = BlockWords(high, low, index.repeat(len(entries)))
        self._index = self._local_index()
        self._rows = len(entries) * layout.rows
        self._work = list(self._plan_work())

    def _launchable(self) -> bool:
        """Whether there is a faster way to the same bits on this device."""
        return self._compilable() if triton_missing(self.device) else self.moves

    def _compilable(self) -> bool:
        """Whether there is a library in C for it."""
        plain = self.device.type == "cpu" and all(type(param) is Tensor for param in self.params)
        if not plain or compiler_missing() is not None:
            return False
        moments = self.moments() if self.measured and not self.options.structure.advances else []
        if self._grad not in FORMATS:
            return False
        return not any(cannot_compile(formula) for formula in {self.formula(moment) for moment in moments or [None]})

    def formula(self, moment: Tensor | None = None) -> Formula:
        """That of the library in C which steps it, given a moment that is another optimizer's."""
        options, own = self.options, None if moment is None else FORMATS[moment.dtype]
        formats = FORMATS[self.params[0].dtype], FORMATS[self._grad]
        return Formula.of(
            options.base,
            options.rule,
            options.structure.decays,
            *formats,
            options.masked,
            own,
            write if self.moves else None,
        )

    @property
    def count(self) -> int:
        """The number of blocks, of whole tensors."""
        return len(self.entries) * self.blocks.count

    @property
    def measured(self) -> bool:
        """Whether the rule looks at the alignment."""
        return self.options.structure.momentum is not None

    @property
    def split(self) -> bool:
        """Whether its blocks are spread over ranks."""
        return self.sharding is not None and self.sharding.split

    def moments(self) -> list[Tensor]:
        """First moments that are another optimizer's."""
        return []

    def begin(self, rate: Tensor | float, cache: MutableMapping[Hashable, Any]) -> None:
        """Collect the numbers of the step; `finish` counts it."""
        self.step = int(self.memory.steps[0]) + 1
        key = self.options.base, self._powers, self.device, rate if isinstance(rate, float) else id(rate)
        if key not in cache:
            powers, at_step = _advance_powers(self._powers, self.options.base)
            cache[key] = powers, matrix_step.on_device(at_step, rate, self.device)
        self._next_powers, self._numbers = cache[key]
        self.rate = self._numbers.rate.array

    def finish(self) -> None:
        """Count the step: only now, so that one that could not begin has not happened."""
        self._powers = self._next_powers
        self.memory.steps.fill_(self.step)
        for tensor, power in zip(self.memory.powers, self._powers, strict=True):
            tensor.fill_(power)

    def accumulate(self, grads: Sequence[Tensor]) -> Tensor | None:
        """Moments; where the alignment is measured, the largest of both operands, (2, blocks) int32."""
        peaks: list[Tensor] = []
        for work, grad in self._with(grads):
            found = self._run(ACCUMULATE, grad, work.mu, work.nu)
            if found is not None:
                peaks.append(found[..., 0])
        if not self.measured:
            return None
        return self._to_whole(self._combine(peaks, 2, torch.int32))

    def measure(self, grads: Sequence[Tensor], peaks: Tensor) -> Tensor:
        """Sums, given the ``peaks`` (2, blocks) of whole blocks: (3, blocks) int64."""
        peaks = self._from_whole(peaks)[..., None]
        sums = [
            self._run(MEASURE, grad, work.mu, work.nu, peaks[:, work.piece.rows].contiguous())
            for work, grad in self._with(grads)
        ]
        return self._to_whole(self._combine(sums, 3, torch.int64))

    def move(self, grads: Sequence[Tensor], keep: Tensor | None, scale: Tensor) -> None:
        """Write the parameters; ``keep`` and ``scale`` are of whole blocks, or None and () if nothing is masked."""
        if not self._work:  # tensors without elements, as some ranks have of a small parameter
            return
        torch.autograd.graph.increment_version(self.params)
        if keep is None:
            self._move(grads, None, scale, None)
            return
        keep, scale = self._from_whole(keep), self._from_whole(scale)[:, None]
        if self.passes or self.options.structure.decays == "dense" or self.device.type != "cpu":
            self._move(grads, None, scale, keep[:, None])
            return
        kept = torch.nonzero(keep)[:, 0]
        if len(kept) == self._rows:
            self._move(grads, None, scale, None)
        elif len(self.entries) > 1 and self.layout.rows == 1:
            self._move_members(grads, kept, scale)
        elif len(kept):
            self._move(grads, kept, scale, None)

    def _move(self, grads: Sequence[Tensor], kept: Tensor | None, scale: Tensor, keep: Tensor | None) -> None:
        """Move all rows, of those that ``keep`` says, or the rows in ``kept`` alone."""
        for (work, theta), (_, grad) in zip(self._with(self.params), self._with(grads, MOVE), strict=True):
            rows = work.piece.rows
            arrays = [grad, work.mu, work.nu, theta, scale[rows] if scale.ndim else scale]
            here = None if kept is None else kept[(kept >= rows.start) & (kept < rows.stop)] - rows.start
            if here is None or len(here) == work.piece.shape[0]:
                self._run(MOVE, *arrays, None if keep is None else keep[rows])
            elif len(here):
                part = [x if x is None else x[here] for x in arrays]
                self._run(MOVE, *part, None)
                theta[here] = cast(Tensor, part[3])
            if len(self.entries) > 1:
                torch._foreach_copy_(self.params, list(theta.view(-1, *self.layout.shape).unbind()))
            elif work.theta is None:
                self.layout.write(self.params[0], work.piece, theta)

    def _move_members(self, grads: Sequence[Tensor], kept: Tensor, scale: Tensor) -> None:
        """Of a stack whose members are one block each, touch only those that are kept."""
        members = kept.tolist()
        if not members:
            return
        (work,), shape = self._work, (len(members), self.layout.columns)
        theta = self._stack("theta", [self.params[i] for i in members])
        grad = None
        if direction_uses_gradient(self.options.base):
            grad = self._stack("grad", [grads[i] for i in members]).view(shape)
        moments = [
            x if x is None else torch.index_select(x, 0, kept, out=self._scratch.take(role, shape, x))
            for role, x in (("mu", work.mu), ("nu", work.nu))
        ]
        self._run(MOVE, grad, *moments, theta.view(shape), scale[kept], None)
        torch._foreach_copy_([self.params[i] for i in members], list(theta.unbind()))

    def _stack(self, role: str, tensors: Sequence[Tensor]) -> Tensor:
        shape = len(tensors), *tensors[0].shape
        return torch.stack(list(tensors), out=self._scratch.take(role, shape, tensors[0]))

    # Pieces

    def _plan_work(self) -> Iterator[_Work]:
        if len(self.entries) > 1:
            pieces = [Piece(0, (self._rows, self.layout.columns), 0, (0, 0))] if self.layout.size else []
        else:
            pieces = list(self.layout.pieces(self.layout.size if self.passes and self.layout.flat else _AT_ONCE))
        for piece in pieces:
            moments = [
                None if x is None else x[piece.elements].view(piece.shape) for x in (self.memory.mu, self.memory.nu)
            ]
            in_place = len(self.entries) == 1 and self.layout.flat
            theta = self.layout.read(self.params[0], piece) if in_place else None
            yield _Work(piece, theta, *moments)

    def _with(self, tensors: Sequence[Tensor], kernel: int = ACCUMULATE) -> Iterator[tuple[_Work, Any]]:
        """The pieces and what they are of ``tensors``; None where the kernel does not look at these."""
        if kernel == MOVE and not direction_uses_gradient(self.options.base):
            yield from ((work, None) for work in self._work)
        elif len(tensors) > 1:
            role = "theta" if tensors is self.params else "grad"
            yield from ((work, self._stack(role, tensors).view(work.piece.shape)) for work in self._work)
        elif tensors is self.params and self.layout.flat:
            yield from ((work, work.theta) for work in self._work)
        else:
            tensor = tensors[0]
            if self.layout.flat and not self.layout.fits(tensor):  # a gradient that lies in another order
                tensor = torch.empty_like(self.params[0], dtype=tensor.dtype).copy_(tensor)
            yield from ((work, self.layout.read(tensor, work.piece)) for work in self._work)

    def _combine(self, parts: Sequence[Tensor], operands: int, dtype: torch.dtype) -> Tensor:
        """What was found in the pieces, for all rows: the maxima, or the sums, of the pieces of each."""
        if len(parts) == 1:
            return parts[0]
        total = torch.zeros((operands, self._rows), dtype=dtype, device=self.device)
        combine = torch.maximum if dtype == torch.int32 else torch.add
        for work, part in zip(self._work, parts, strict=True):
            own = total[:, work.piece.rows]
            combine(own, part, out=own)
        return total

    def _run(self, kernel: int, *arrays: Tensor | None) -> Any:
        if self.passes:
            return _PASSES[kernel](self.formula(), self._numbers, *arrays)
        return _FUNCTIONS[kernel](self.options.structure, self._numbers, *arrays)

    # Blocks of whole tensors, and those that this rank has a part of

    def _local_index(self) -> Tensor | None:
        """Of this rank's rows among all blocks, None where the two are the same."""
        if self.sharding is None:
            return None
        own = self.sharding.local_blocks(self.blocks)
        rows = np.concatenate([own + i * self.blocks.count for i in range(len(self.entries))])
        return None if np.array_equal(rows, np.arange(self.count)) else torch.from_numpy(rows).to(self.device)

    def _to_whole(self, values: Tensor) -> Tensor:
        if self._index is None:
            return values
        whole = values.new_zeros((values.shape[0], self.count))
        whole[:, self._index] = values
        return whole

    def _from_whole(self, values: Tensor) -> Tensor:
        return values if self._index is None else values[..., self._index]


def _advance_powers(powers: tuple[float, ...], base: Base) -> tuple[tuple[float, ...], list[float]]:
    """The running products after a step and the numbers of the step, on the host: scalars do not need the device."""
    if not powers:
        return (), [binary32(cast(float, x)) for x in base_numbers(base)[:-1]]
    old = State(mu_power=np.float32(powers[0]), nu_power=np.float32(powers[1]))
    state, at_step = advance_powers(old, base_numbers(base), xp=_NUMPY)
    plain = [float(x.array) if isinstance(x, Real) else binary32(x) for x in at_step[:-1]]
    return (float(cast(Any, state.mu_power)), float(cast(Any, state.nu_power))), plain
