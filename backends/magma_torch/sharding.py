"""DTensors: which blocks of the whole tensor a rank holds, and the two reductions of a step.

Blocks are those of the logical tensor (spec section 3). Maxima and integer sums over the parts of a block are exact in
any order, so that what is decided of a block is decided alike on every rank and in a single process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from magma_core import Blocks, cut


@dataclass(frozen=True)
class Sharding:
    """How one DTensor is spread."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]  # of the whole
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: DTensor) -> "Sharding":
        """The sharding of ``tensor``."""
        return cls(tensor.device_mesh, tuple(tensor.placements), tuple(tensor.shape), tuple(tensor.stride()))

    @property
    def split(self) -> bool:
        """Whether a rank lacks a part of the whole."""
        return any(placement.is_shard() for placement in self.placements)

    def blocks(self, axes: tuple[int, ...], name: str) -> Blocks:
        """The blocks of the whole."""
        blocks = cut(self.shape, axes, name=name)
        for placement in self.placements:
            if placement.is_shard() and type(placement) is not Shard and placement.dim % len(self.shape) in blocks.axes:
                raise NotImplementedError(
                    f"{name!r} is sharded by {placement} along axis {placement.dim}, which indexes blocks: "
                    "shard another axis, or choose other block_axes"
                )
        return blocks

    def local_blocks(self, blocks: Blocks) -> np.ndarray:
        """The index in ``blocks`` of every block of which this rank has a part, row-major in its own block shape."""
        shape, offset = compute_local_shape_and_global_offset(self.shape, self.mesh, self.placements)
        index = np.zeros((), np.int64)
        for axis in blocks.axes:
            along = np.arange(offset[axis], offset[axis] + shape[axis])
            index = index[..., None] * self.shape[axis] + along
        return index.reshape(-1)

    def counts(self) -> bool:
        """Whether this rank's part is counted in a sum over the ranks: one of several replicas is."""
        root = _root(self.mesh)
        names = self.mesh.mesh_dim_names or ()
        for axis, at in enumerate(root.get_coordinate()):
            own = axis if root is self.mesh else _position(root.mesh_dim_names[axis], names)
            if at != 0 and (own is None or not self.placements[own].is_shard()):
                return False
        return True

    def wrap(self, local: Tensor) -> DTensor:
        """A DTensor of what this rank has of something that is spread like the parameter."""
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=torch.Size(self.shape), stride=self.stride
        )


def local(tensor: Tensor) -> Tensor:
    """What this rank has of ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, sharding: Sharding | None) -> Tensor:
    """This rank's part of ``tensor``, spread as the parameter is."""
    if sharding is None:
        return tensor
    if not isinstance(tensor, DTensor):
        tensor = torch.distributed.tensor.distribute_tensor(tensor, sharding.mesh, sharding.placements)
    if tuple(tensor.placements) != sharding.placements:
        tensor = tensor.redistribute(sharding.mesh, sharding.placements)
    return tensor.to_local()


def reduce_all(vectors: Sequence[Tensor], meshes: Sequence[Any], operation: Any) -> None:
    """Reduce vectors in place over the ranks of their meshes, with one collective for each set of ranks."""
    by_group: dict[Any, list[Tensor]] = {}
    for vector, mesh in zip(vectors, meshes, strict=True):
        by_group.setdefault(_process_group(mesh), []).append(vector)
    for group, members in by_group.items():
        buffer = torch.cat([vector.reshape(-1) for vector in members])
        dist.all_reduce(buffer, operation, group=group)
        for vector, part in zip(members, buffer.split([vector.numel() for vector in members]), strict=True):
            vector.copy_(part.view(vector.shape))


def _process_group(mesh: Any) -> Any:
    root = _root(mesh)
    if root.ndim == 1:
        return root.get_group()
    return dist.group.WORLD if root.size() == dist.get_world_size() else root._flatten().get_group()


def _root(mesh: Any) -> Any:
    """The mesh that ``mesh`` is a slice of, so that parameters on different slices share their collectives.

    Over the axes that were sliced away its tensors are replicas.
    """
    root = mesh._get_root_mesh()
    whole = set(root.mesh_dim_names or ())
    return root if mesh.mesh_dim_names and whole.issuperset(mesh.mesh_dim_names) else mesh


def _position(name: str, names: Sequence[str]) -> int | None:
    return list(names).index(name) if name in names else None
