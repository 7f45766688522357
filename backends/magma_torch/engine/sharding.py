"""DTensors: which blocks of the whole tensor a rank holds, and the two reductions of a step.

Blocks are those of the logical tensor (spec section 3). Maxima and integer sums over the parts of a block are exact in
any order, so that what is decided of a block is decided alike on every rank and in a single process.
"""

import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from magma_core import Blocks, cut


def is_dtensor(tensor: Any) -> bool:
    """Whether ``tensor`` is a DTensor.

    The module of DTensors brings sympy along and takes longer to import than all of magma_torch. So it is imported only
    where there are DTensors already, and whoever made them has imported it.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@dataclass(frozen=True)
class Sharding:
    """How one DTensor is spread."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]  # of the whole
    stride: tuple[int, ...]
    own_shape: tuple[int, ...]  # of this rank's part

    @classmethod
    def of(cls, tensor: Tensor) -> "Sharding":
        """The sharding of ``tensor``."""
        shapes = tuple(tensor.shape), tuple(tensor.stride()), tuple(tensor.to_local().shape)
        return cls(tensor.device_mesh, tuple(tensor.placements), *shapes)

    @property
    def split(self) -> bool:
        """Whether a rank lacks a part of the whole."""
        return not all(placement.is_replicate() for placement in self.placements)

    def blocks(self, axes: tuple[int, ...], name: str) -> Blocks:
        """The blocks of the whole."""
        blocks = cut(self.shape, axes, name=name)
        for axis in blocks.axes:
            if (expected := len(self._indices(axis))) != self.own_shape[axis]:
                raise NotImplementedError(
                    f"{name!r} is sharded by {self.placements} in parts that these do not make: this rank has "
                    f"{self.own_shape[axis]} of {self.shape[axis]} along axis {axis}, expected {expected}"
                )
        return blocks

    def local_blocks(self, blocks: Blocks) -> np.ndarray:
        """The index in ``blocks`` of every block of which this rank has a part, row-major in its own block shape."""
        index = np.zeros((), np.int64)
        for axis in blocks.axes:
            index = index[..., None] * self.shape[axis] + self._indices(axis)
        return index.reshape(-1)

    def counts(self, mesh: Any) -> bool:
        """Whether this rank's part is counted in a sum over ``mesh``: one of several replicas is."""
        placements = dict(zip(_axes(self.mesh), self.placements, strict=True))
        return not any(
            at != 0 and (axis not in placements or placements[axis].is_replicate())
            for axis, at in zip(_axes(mesh), mesh.get_coordinate(), strict=True)
        )

    def wrap(self, local: Tensor) -> Tensor:
        """A DTensor of what this rank has of something that is spread like the parameter."""
        from torch.distributed.tensor import DTensor

        if local.storage_offset():  # torch.save refuses DTensors whose parts begin inside of a storage
            local = torch.from_dlpack(local)  # the same memory, with a storage that begins there
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=torch.Size(self.shape), stride=self.stride
        )

    def _indices(self, axis: int) -> np.ndarray:
        """What this rank has along an axis of the whole."""
        if 0 in self.shape:  # FSDP2 does not divide what has no elements, and any blocks will do
            return np.arange(self.own_shape[axis])
        own = np.arange(self.shape[axis])
        for placement, ranks, rank in zip(self.placements, self.mesh.shape, self.mesh.get_coordinate(), strict=True):
            if not placement.is_replicate() and placement.dim % len(self.shape) == axis:
                # FSDP2 shards what tensor parallelism has sharded: it takes a piece of each of split_factor pieces
                pieces = _chunks(own, getattr(placement, "split_factor", 1))
                own = np.concatenate([_chunks(piece, ranks)[rank] for piece in pieces])
        return own


def local(tensor: Tensor) -> Tensor:
    """What this rank has of ``tensor``."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """What all ranks have of ``tensor``; one without elements as FSDP2 shards it cannot be gathered by torch."""
    if not is_dtensor(tensor):
        return tensor
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.full_tensor()


def spread_like(tensor: Tensor, sharding: Sharding | None) -> Tensor:
    """This rank's part of ``tensor``, spread as the parameter is."""
    if sharding is None:
        return whole(tensor)
    from torch.distributed.tensor import DTensor, Replicate

    if not is_dtensor(tensor):  # the whole, which every rank has
        tensor = DTensor.from_local(tensor, sharding.mesh, [Replicate()] * sharding.mesh.ndim, run_check=False)
    theirs, ours = tensor.device_mesh, sharding.mesh
    if theirs != ours and not torch.equal(theirs.mesh, ours.mesh):  # names may differ
        raise ValueError(f"a gradient or state of shape {tuple(tensor.shape)} is on {theirs}, its parameter on {ours}")
    if tuple(tensor.placements) != sharding.placements:
        tensor = tensor.redistribute(placements=sharding.placements)
    return tensor.to_local()


class ReducedBatch(NamedTuple):
    """Parameters whose blocks are reduced together."""

    sharding: Sharding  # of each
    places: Sequence[int]  # of each among all parameters, the same on every rank
    blocks: int  # how many each has


class Reduction:
    """What ranks found of their parts of blocks becomes what is true of the whole, by one collective for all.

    Parameters that share no ranks, or not all, make it one for each set of ranks.

    Args:
        members: what there is to reduce.
        device: where it is.
        process_groups: those that had to be made, by their ranks; kept by the caller.
    """

    def __init__(
        self,
        members: Sequence[ReducedBatch],
        device: torch.device,
        process_groups: MutableMapping[tuple[int, ...], Any],
    ) -> None:
        meshes = _common_meshes([member.sharding.mesh for member in members])
        self._counted = [member.sharding.counts(mesh) for member, mesh in zip(members, meshes, strict=True)]
        self._sizes = [len(member.places) * member.blocks for member in members]
        by_ranks: dict[tuple[int, ...], list[int]] = {}
        for i in sorted(range(len(members)), key=lambda i: min(members[i].places)):
            by_ranks.setdefault(tuple(sorted(meshes[i].mesh.flatten().tolist())), []).append(i)
        self._exchanges = [
            (_process_group(meshes[own[0]], ranks, process_groups), own, _order([members[i] for i in own], device))
            for ranks, own in by_ranks.items()
        ]

    def max(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The maxima over the ranks of vectors (…, blocks), one for each member."""
        return self._reduce(vectors, dist.ReduceOp.MAX)

    def sum(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over the ranks, one of several replicas counted."""
        pairs = zip(vectors, self._counted, strict=True)
        return self._reduce([x if counted else torch.zeros_like(x) for x, counted in pairs], dist.ReduceOp.SUM)

    def _reduce(self, vectors: Sequence[Tensor], operation: Any) -> list[Tensor]:
        reduced = list(vectors)
        for group, own, order in self._exchanges:
            joined = torch.cat([vectors[i] for i in own], dim=1)
            buffer = joined if order is None else joined[:, order]
            dist.all_reduce(buffer, operation, group=group)
            if order is not None:
                joined[:, order] = buffer
            for i, part in zip(own, joined.split([self._sizes[i] for i in own], dim=1), strict=True):
                reduced[i] = part
        return reduced


def _order(members: Sequence[ReducedBatch], device: torch.device) -> Tensor | None:
    """Which block of the members' comes where in an exchange, None if they are in order.

    Ranks stack different parameters where the layouts of their parts differ, but must exchange all in one order.
    """
    places = [(place, member.blocks) for member in members for place in member.places]
    starts = np.cumsum([0, *(count for _, count in places)])
    by_place = sorted(range(len(places)), key=lambda k: places[k][0])
    if by_place == list(range(len(places))):
        return None
    return torch.from_numpy(np.concatenate([np.arange(starts[k], starts[k + 1]) for k in by_place])).to(device)


def _common_meshes(meshes: Sequence[Any]) -> list[Any]:
    """For each mesh the smallest slice of its root that holds all that are slices of that root.

    So parameters on different slices share their collectives: along the other axes they are replicas. An axis that
    none of them is on stays out, as pipeline stages have different parameters.
    """
    names: dict[Any, set[str]] = {}
    for mesh in meshes:
        if _is_slice(mesh):
            names.setdefault(mesh._get_root_mesh(), set()).update(mesh.mesh_dim_names)
    return [_slice(mesh._get_root_mesh(), names) if _is_slice(mesh) else mesh for mesh in meshes]


def _is_slice(mesh: Any) -> bool:
    return bool(mesh.mesh_dim_names) and set(mesh._get_root_mesh().mesh_dim_names or ()) >= set(mesh.mesh_dim_names)


def _slice(root: Any, names: MutableMapping[Any, set[str]]) -> Any:
    return root[tuple(name for name in root.mesh_dim_names if name in names[root])]


def _process_group(mesh: Any, ranks: tuple[int, ...], made: MutableMapping[tuple[int, ...], Any]) -> Any:
    if mesh.ndim == 1:
        return mesh.get_group()
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    if ranks not in made:
        made[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
    return made[ranks]


def _axes(mesh: Any) -> Sequence[Any]:
    return mesh.mesh_dim_names or range(mesh.ndim)


def _chunks(x: np.ndarray, count: int) -> list[np.ndarray]:
    """As `torch.chunk`, with empty ones at the end."""
    size = -(-len(x) // count)
    return [x[i * size : (i + 1) * size] for i in range(count)]
