"""The state of an optimizer to and from the file that all frameworks share: docs/state.md."""

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

    The file holds steps, moments, running products and scores, and with them base, rule, seed and block axes, but no
    parameters and no learning rate. A parameter that has not been stepped yet is saved as it would begin.

    Where parameters are DTensors, every rank that has them must call this. The state is gathered one tensor at a time,
    the first of these ranks writes the file, and none returns before it is there.

    Args:
        optimizer: a `Magma`, `SkipUpdate` or `MaskedOptimizer`.
        path: of the file, which is replaced at once or not at all.

    Raises:
        TypeError: if ``optimizer`` is another, such as a `Wrapped`.
        ValueError: naming what is wrong with a parameter, with ``names`` or with ``axes``.
        OSError: if the file cannot be written. In every case, what was at ``path`` is still there.
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
    """Give an optimizer the state that a file holds, whichever framework wrote it, bit for bit.

    The formats of the parameters do not matter. Where parameters are DTensors, every rank that has them must call this;
    each reads the file and keeps its part.

    Args:
        optimizer: see `save_state`; whatever state it has is replaced.

    Raises:
        ValueError: naming the file or the parameter, what does not fit, and the remedy.
        TypeError: see `save_state`.
        OSError: if the file cannot be opened: a `FileNotFoundError`, for example.
        RuntimeError: if another process could not load it. In every case, the optimizer is as it was.

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
    optimizer._start()  # what it has made of the former state
    optimizer._remember_owners()


class _Parameter(NamedTuple):
    param: Tensor
    wanted: Saved  # without its state


def _parameters(optimizer: Any) -> dict[str, _Parameter]:
    """What the optimizer asks for, by its own names."""
    if not isinstance(optimizer, MaskedOptimizer):
        raise TypeError(
            f"optimizer must be a Magma, SkipUpdate or MaskedOptimizer, got {type(optimizer).__name__}: the state of "
            "another optimizer, wrapped or not, is its own; save it with state_dict()"
        )
    found = {}
    for i, group in enumerate(optimizer.param_groups):
        settings = options.read(group)
        for name, param in zip(optimizer._names(i, group), group["params"], strict=True):
            optimizer._follow(name, param)
            shape = tuple(param.shape)
            axes = cut(shape, settings.block_axes, name=name).axes if settings.masked else None
            rule = options.asked_rule(group)
            found[name] = _Parameter(param, Saved(shape, axes, 0, settings.seed, settings.base, rule, State()))
    return found


def _whole(tensor: Tensor) -> np.ndarray:
    """On the host, gathered from all ranks that have parts of it."""
    return whole(tensor).detach().cpu().numpy()


def _values(param: Tensor, saved: Saved) -> dict[str, Tensor]:
    """What ``optimizer.state`` holds of a parameter: moments are spread over ranks as it is."""
    values = {"step": torch.tensor(saved.step, dtype=torch.int64)}
    for field in saved.fields:
        tensor = torch.from_numpy(np.asarray(getattr(saved.state, field), order="C")).to(param.device)
        if is_dtensor(param) and field in ("mu", "nu"):
            sharding = Sharding.of(param)
            tensor = sharding.wrap(spread_like(tensor, sharding))
        values[field] = tensor
    return values


def _meshes(own: Mapping[str, _Parameter]) -> list[Any]:
    """Those that parameters are spread over, in an order that all of their ranks have."""
    return list(dict.fromkeys(param.device_mesh for param, _ in own.values() if is_dtensor(param)))


def _any_failed(meshes: Sequence[Any], failed: bool) -> bool:
    """Whether one of the ranks that have parts of the parameters has failed."""
    for mesh in meshes:
        flag = torch.tensor([int(failed)], device=mesh.device_type)
        for axis in range(mesh.ndim):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=mesh.get_group(axis))
        failed = bool(flag.item())
    return failed
