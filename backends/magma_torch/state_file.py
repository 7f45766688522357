"""Save and load an optimizer's state in the file format of all frameworks: docs/state.md."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from magma_core import Saved, State, cut, write_state
from magma_core.signatures import shares_arguments
from magma_core.state_file import FilePath, LoadOptions, SaveOptions, from_file, to_file, together
from magma_torch import options
from magma_torch.engine.sharding import Sharding, is_dtensor, spread_like, whole
from magma_torch.optimizer import MaskedOptimizer


@torch.no_grad()
@shares_arguments(to_file)
def save_state(optimizer: MaskedOptimizer, path: FilePath, **mapping: Unpack[SaveOptions]) -> None:
    """Write the state of an optimizer to a file that every framework can load.

    The file holds steps, moments, running products and scores, with base, rule, seed and block axes, but no parameters
    and no learning rate. A parameter that has not been stepped is saved with its initial state.

    If parameters are DTensors, every rank that has them must call this. The state is gathered one tensor at a time. The
    first of these ranks writes the file; the others return after it exists.

    Args:
        optimizer: a `Magma`, `SkipUpdate` or `MaskedOptimizer`.
        path: the file, which is replaced atomically.

    Raises:
        TypeError: if ``optimizer`` is of another kind, such as a `Wrapped`.
        ValueError: naming the fault of a parameter, of ``names`` or of ``axes``.
        OSError: if the file cannot be written. After any error, the former file at ``path`` is still there.
        RuntimeError: if another process could not write the file.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from magma_core import read_state
        >>> from magma_torch import Magma, load_state, save_state
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> optimizer = Magma([("dense.weight", weight)], compile=False)
        >>> weight.grad = torch.ones(2, 3)
        >>> optimizer.step()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(optimizer, f"{folder}/state.safetensors", axes={"dense.weight": (1, 0)})
        ...     found = read_state(f"{folder}/state.safetensors")
        ...     load_state(optimizer, f"{folder}/state.safetensors", axes={"dense.weight": (1, 0)})
        >>> found["dense.weight"].step, found["dense.weight"].shape
        (1, (3, 2))
    """
    own = _parameters(optimizer)
    meshes = _meshes(own)
    writes = not meshes or dist.get_rank() == min(int(mesh.mesh.min()) for mesh in meshes)
    saved = {}
    for name, (param, wanted) in own.items():
        values = optimizer.state.get(param, {})
        arrays = {field: _whole(values[field]) for field in wanted.fields if field in values}
        if writes:
            state = State(**arrays) if len(arrays) == len(wanted.fields) else wanted.started().state._replace(**arrays)
            saved[name] = replace(wanted, step=int(values.get("step", 0)), state=state)

    def write() -> None:
        if writes:
            write_state(path, to_file(saved, **mapping))

    together(write, partial(_any_failed, meshes))


@torch.no_grad()
@shares_arguments(from_file, save_state)
def load_state(optimizer: MaskedOptimizer, path: FilePath, **mapping: Unpack[LoadOptions]) -> None:
    """Load an optimizer's state from a file of any framework, bit for bit.

    The parameters' formats do not matter. If parameters are DTensors, every rank that has them must call this; each
    reads the file and keeps its part.

    Args:
        optimizer: see `save_state`; its current state is replaced.

    Raises:
        ValueError: naming the file or the parameter, the mismatch, and the remedy.
        TypeError: see `save_state`.
        OSError: if the file cannot be opened, e.g. a `FileNotFoundError`.
        RuntimeError: if another process could not load it. After any error, the optimizer is unchanged.

    Example:
        See `save_state`.
    """
    own = _parameters(optimizer)
    expected = {name: wanted for name, (_, wanted) in own.items()}

    def read() -> dict[str, dict[str, Tensor]]:
        matching = from_file(path, expected, **mapping)
        return {name: _values(own[name].param, saved) for name, saved in matching}

    loaded = together(read, partial(_any_failed, _meshes(own)))
    for name, values in loaded.items():
        optimizer.state[own[name].param] = values
    optimizer._start()  # drops what was derived from the former state
    optimizer._remember_owners()


class _Parameter(NamedTuple):
    param: Tensor
    wanted: Saved  # without its state


def _parameters(optimizer: Any) -> dict[str, _Parameter]:
    """The optimizer's options, by its own names."""
    if not isinstance(optimizer, MaskedOptimizer):
        raise TypeError(
            f"optimizer must be a Magma, SkipUpdate or MaskedOptimizer, got {type(optimizer).__name__}: the state of "
            "another optimizer, wrapped or not, is its own; save it with state_dict()"
        )
    optimizer._pair()
    found = {}
    for i, group in enumerate(optimizer.param_groups):
        settings = options.read(group)
        for name, param in zip(optimizer._names(i, group), group["params"], strict=True):
            if not (param.is_floating_point() or param.is_complex()):
                continue  # integers have no gradients, so that there is never a state
            shape = options.shape_of(name, param)
            axes = cut(shape, settings.block_axes, name=name).axes if settings.masked else None
            rule = options.asked_rule(group)
            found[name] = _Parameter(param, Saved(shape, axes, 0, settings.seed, settings.base, rule, State()))
    return found


def _whole(tensor: Tensor) -> np.ndarray:
    """A host copy, gathered from all ranks that hold parts."""
    return whole(tensor).detach().cpu().numpy()


def _values(param: Tensor, saved: Saved) -> dict[str, Tensor]:
    """The entries of ``optimizer.state`` for a parameter; moments are sharded like it."""
    values = {"step": torch.tensor(saved.step, dtype=torch.int64)}
    for field in saved.fields:
        tensor = torch.from_numpy(np.asarray(getattr(saved.state, field), order="C")).to(param.device)
        if is_dtensor(param) and field in ("mu", "nu"):
            sharding = Sharding.of(param)
            tensor = sharding.wrap(spread_like(tensor, sharding))
        values[field] = tensor
    return values


def _meshes(own: Mapping[str, _Parameter]) -> list[Any]:
    """The meshes that parameters are sharded over, in an order common to all of their ranks."""
    return list(dict.fromkeys(param.device_mesh for param, _ in own.values() if is_dtensor(param)))


def _any_failed(meshes: Sequence[Any], failed: bool) -> bool:
    """Whether any rank that holds parts of the parameters has failed."""
    for mesh in meshes:
        flag = torch.tensor([int(failed)], device=mesh.device_type)
        for axis in range(mesh.ndim):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=mesh.get_group(axis))
        failed = bool(flag.item())
    return failed
