"""Makes the results that test_distributed.py compares: torch's engines over gloo, and a plain process."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_problems import (
    PROBLEMS,
    SAVED,
    STEPS,
    Problem,
    Run,
    advance,
    begin,
    differentiate,
    distribute,
    gradient,
    hold,
    observe,
    plain,
    shard_model,
    small_model,
    start,
    take,
    take_all,
    train,
)
from magma_conformance.bits import assert_bits_equal
from magma_torch import MaskedOptimizer, load_state, save_state
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(seconds=120)  # of a collective


# Scenarios: each gives what one rank saw


def run_plain() -> dict[str, Run]:
    """Every problem in a single process."""
    eager = {name: replace(problem, compile=False) for name, problem in PROBLEMS.items()}
    with mock.patch.dict(PROBLEMS, eager):
        runs = {name: take_all(name, plain(problem)) for name, problem in eager.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a rank has: sums in the model's own gradients depend on it
    runs["trained"] = train(small_model(), exchanges=0)
    torch.set_num_threads(threads)
    return runs


def run_ddp() -> Run:
    return train(DistributedDataParallel(small_model()), exchanges=0)


def run_ddp_bfloat16() -> Run:
    """Gradients by hand; DDP leaves parameters plain, so that nothing is exchanged."""
    return replace(take_all("bfloat16", plain(PROBLEMS["bfloat16"])), exchanges=0)


def run_fsdp_trained() -> Run:
    model = small_model()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    return train(fully_shard(model), exchanges=2)


def run_fsdp(name: str) -> Run:
    return take_all(name, dict(shard_model(PROBLEMS[name]).named_parameters()))


TENSOR_PARALLEL = {
    "embed": Shard(0),
    "a.square": Shard(1),
    "a.query": Shard(0),
    "a.down": Shard(1),
    "a.out": Shard(1),
    "b.square": Shard(0),
    "b.query": Shard(0),
    "b.down": Shard(1),
    "bias": Shard(0),
    "experts": Shard(2),
    "head": Shard(1),
    "wide": Shard(1),
    "deep": Shard(0),
}  # all others are replicated


def tensor_parallel(problem: Problem, mesh: Any) -> dict[str, Tensor]:
    return {
        name: nn.Parameter(
            distribute_tensor(start(problem, name), mesh, [TENSOR_PARALLEL.get(name, Replicate())], src_data_rank=None)
        )
        for name in problem.names
    }


def run_tensor_parallel(name: str) -> Run:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return take_all(name, tensor_parallel(PROBLEMS[name], mesh))


def run_gradients_elsewhere(name: str) -> Run:
    """Gradients are whole, or sums over the ranks, or sharded in another way, or still on their way."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = tensor_parallel(PROBLEMS[name], mesh)

    def spread(name: str, whole: Tensor) -> Tensor:
        kind = sorted(params).index(name) % 4
        if kind == 0:
            return whole
        if kind == 1:
            own = whole if dist.get_rank() == 0 else torch.zeros_like(whole)
            return DTensor.from_local(own, mesh, [Partial()], run_check=False)
        elsewhere = distribute_tensor(whole, mesh, [Shard(whole.ndim - 1)], src_data_rank=None)
        return elsewhere if kind == 3 else elsewhere.redistribute(mesh, [Replicate()], async_op=True)

    return replace(take_all(name, params, spread), exchanges=None)


def run_swapped(name: str) -> Run:
    """Tensors whose contents are swapped, as by ``model.to`` with DTensors, are stepped where they are now."""
    params = tensor_parallel(PROBLEMS[name], init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer, run = begin(name, params)
    for step in range(1, STEPS + 1):
        take(run, optimizer, [step])
        optimizer.zero_grad()
        for param in params.values():
            torch.utils.swap_tensors(param, nn.Parameter(param.detach().clone()))
    return run


def run_refusals(name: str) -> Run:
    """What cannot be stepped is refused on every rank, and changes nothing."""
    mesh, other = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    params = tensor_parallel(PROBLEMS[name], mesh)
    optimizer, run = begin(name, params)
    take(run, optimizer, range(1, STEPS))
    differentiate(PROBLEMS[name], optimizer, STEPS, lambda key, whole: distribute(whole, params[key]))
    right, whole = params["embed"].grad, gradient(PROBLEMS[name], "embed", STEPS)
    params["embed"].grad = distribute_tensor(whole, other, [Replicate(), Shard(0)], src_data_rank=None)
    before = observe(optimizer)
    with pytest.raises(ValueError, match="its parameter on"):
        optimizer.step()
    for key, array in observe(optimizer).items():
        assert_bits_equal(array, before[key], key)
    params["embed"].grad = right
    advance(run, optimizer, STEPS)

    rows = 3 - 2 * dist.get_rank()  # torch would give two to each
    odd = nn.Parameter(DTensor.from_local(torch.ones(rows, 2), mesh, [Shard(0)], shape=(4, 2), stride=(2, 1)))
    odd.grad = odd.detach().clone()
    with pytest.raises(NotImplementedError, match="'odd' is sharded by"):
        PROBLEMS[name].make([("odd", odd)], block_axes=(0,), compile=False).step()
    assert (odd.to_local() == 1).all()
    return run


# Four ranks in two dimensions


def square_mesh(*names: str) -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=names)


def fsdp_over_tensor_parallel(problem: Problem) -> dict[str, Tensor]:
    """Each parameter that tensor parallelism spreads is sharded again by FSDP2, but for one; some are plain."""
    mesh = square_mesh("dp", "tp")
    tensors = {key: start(problem, key) for key in problem.names}
    for key in tensors.keys() & TENSOR_PARALLEL.keys():
        tensors[key] = distribute_tensor(tensors[key], mesh["tp"], [TENSOR_PARALLEL[key]], src_data_rank=None)
    model = hold(tensors)
    alone = {model.head, model.bias, model.a.norm}
    for module in (model.a, model.b, model):
        fully_shard(module, mesh=mesh["dp"], ignored_params=alone)
    return dict(model.named_parameters())


def run_hybrid(name: str) -> Run:
    return take_all(name, dict(shard_model(PROBLEMS[name], mesh=square_mesh("replicate", "shard")).named_parameters()))


def slices(problem: Problem) -> dict[str, Tensor]:
    """Parameters on both axes, on one of them, on all ranks in a row, and on none share two collectives."""
    mesh = square_mesh("dp", "tp")
    meshes = [mesh, mesh["dp"], mesh["tp"], mesh["dp", "tp"]._flatten("all"), init_device_mesh("cpu", (4,))]
    params: dict[str, Tensor] = {}
    for i, key in enumerate(problem.names):
        whole, own = start(problem, key), meshes[i % 5]
        kinds = [[Shard(0), Shard(whole.ndim - 1)], [Replicate(), Shard(0)], [Shard(0), Replicate()]]
        placements = kinds[i // 5 % 3] if own is mesh else [Shard(i % whole.ndim)]
        params[key] = nn.Parameter(distribute_tensor(whole, own, placements, src_data_rank=None))
    params["b.norm"] = nn.Parameter(start(problem, "b.norm"))
    return params


def pipeline(problem: Problem) -> dict[str, Tensor]:
    """Two stages with different parameters, each on slices of a mesh of three dimensions."""
    mesh = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("pp", "dp", "tp"))
    stage = mesh.get_local_rank("pp")
    own = [key for key in problem.names if key.startswith("b") == bool(stage)]
    params: dict[str, Tensor] = {}
    for i, key in enumerate(own):
        where, placements = [(mesh["dp"], [Shard(0)]), (mesh["dp", "tp"], [Shard(0), Shard(0)])][i % (2 - stage)]
        whole = start(problem, key)
        params[key] = nn.Parameter(distribute_tensor(whole, where, placements, src_data_rank=None))
    return params


def run_spread(name: str, make: Callable[[Problem], dict[str, Tensor]]) -> Run:
    return take_all(name, make(PROBLEMS[name]))


# Checkpoints: four ranks save after two steps and go on, others resume

NESTED, FLAT = StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def run_save(name: str, folder: Path) -> Run:
    """To be asked for its state before the first step, and to save, leaves no trace in what comes after."""
    model = shard_model(PROBLEMS[name])
    optimizer, run = begin(name, dict(model.named_parameters()))
    get_optimizer_state_dict(model, optimizer)
    take(run, optimizer, range(1, SAVED + 1))
    for kind, options in (("nested", NESTED), ("flat", FLAT)):
        state = get_optimizer_state_dict(model, optimizer, options=options)
        dcp.save({"optimizer": state}, checkpoint_id=folder / f"{name}.{kind}")
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / f"{name}.model")
    full = get_model_state_dict(model, options=FULL), get_optimizer_state_dict(model, optimizer, options=FULL)
    if dist.get_rank() == 0:
        torch.save(full, folder / f"{name}.full")
    return take(run, optimizer, range(SAVED + 1, STEPS + 1))


def run_own_file(name: str, folder: Path) -> Run:
    """Every rank saves what it has, and a new optimizer of the same ranks resumes from that."""
    params = dict(shard_model(PROBLEMS[name]).named_parameters())
    optimizer, run = begin(name, params)
    take(run, optimizer, range(1, SAVED + 1))
    path = folder / f"{name}.{dist.get_rank()}"
    torch.save(optimizer.state_dict(), path)
    optimizer, _ = begin(name, params)
    optimizer.load_state_dict(torch.load(path, weights_only=True))
    return resume(run, optimizer)


def resume(run: Run, optimizer: MaskedOptimizer) -> Run:
    """What is there after loading, and the remaining steps."""
    run.steps[SAVED] = observe(optimizer)
    return take(run, optimizer, range(SAVED + 1, STEPS + 1))


def forgetful(problem: Problem) -> nn.Module:
    """A model under FSDP2 whose parameters are not those of the others."""
    model = shard_model(problem)
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(-1.0)
    return model


def run_resume(name: str, kind: str, folder: Path) -> Run:
    """From torch.distributed.checkpoint; the parameters first, so that loading the rest must leave them as they are."""
    model = forgetful(PROBLEMS[name])
    optimizer, run = begin(name, dict(model.named_parameters()))
    weights = {"model": get_model_state_dict(model)}
    dcp.load(weights, checkpoint_id=folder / f"{name}.model")
    set_model_state_dict(model, weights["model"])
    options = FLAT if kind == "flat" else NESTED
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.load(state, checkpoint_id=folder / f"{name}.{kind}")
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    return resume(run, optimizer)


def run_resume_from_first(name: str, folder: Path) -> Run:
    """From whole tensors that only the first rank reads."""
    model = forgetful(PROBLEMS[name])
    optimizer, run = begin(name, dict(model.named_parameters()))
    first = dist.get_rank() == 0
    weights, state = torch.load(folder / f"{name}.full", weights_only=True) if first else ({}, {})
    set_model_state_dict(model, weights, options=FROM_FIRST)
    set_optimizer_state_dict(model, optimizer, state, options=FROM_FIRST)
    return resume(run, optimizer)


def run_resume_plain(name: str, folder: Path) -> Run:
    """From the same file, in a single process with plain tensors."""
    weights, state = torch.load(folder / f"{name}.full", weights_only=True)
    optimizer, run = begin(name, {key: nn.Parameter(x) for key, x in weights.items()})
    optimizer.load_state_dict(state)
    return resume(replace(run, exchanges=0), optimizer)


# Files that all frameworks share


def fsdp(problem: Problem) -> dict[str, Tensor]:
    return dict(shard_model(problem).named_parameters())


def hybrid(problem: Problem) -> dict[str, Tensor]:
    return dict(shard_model(problem, mesh=square_mesh("replicate", "shard")).named_parameters())


def run_portable(name: str, make: Callable[[Problem], dict[str, Tensor]], folder: Path) -> Run:
    """The file of all ranks is that of a process alone, and a new optimizer goes on from it."""
    params = make(PROBLEMS[name])
    optimizer, run = begin(name, params)
    alone, _ = begin(name, {key: x for key, x in plain(PROBLEMS[name]).items() if key in params})
    for each, seen in ((optimizer, run), (alone, Run(name))):
        take(seen, each, range(1, SAVED + 1))
    kind = f"portable.{dist.get_world_size()}.{make.__name__}.{min(params)}"  # stages have files of their own
    save_state(optimizer, folder / kind)
    save_state(alone, folder / f"{kind}.{dist.get_rank()}")
    assert (folder / kind).read_bytes() == (folder / f"{kind}.{dist.get_rank()}").read_bytes()
    fresh = begin(name, params)[0]
    load_state(fresh, folder / kind)
    for group, former in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        group["lr"] = former["lr"]
    return resume(run, fresh)


def run_portable_refusals(name: str, folder: Path) -> Run:
    """Where one rank fails, all do, and nothing is changed on any."""
    optimizer, run = begin(name, fsdp(PROBLEMS[name]))
    take(run, optimizer, range(1, SAVED + 1))
    there, missing, rank = folder / f"refusals.{name}", folder / "missing" / "state", dist.get_rank()
    save_state(optimizer, there)
    take(run, optimizer, range(SAVED + 1, STEPS))
    before, file = observe(optimizer), there.read_bytes()
    for failing in range(dist.get_world_size()):
        kind, match = (FileNotFoundError, "missing") if rank == failing else (RuntimeError, "another process")
        with pytest.raises(kind, match=match):
            load_state(optimizer, missing if rank == failing else there)
    other = folder / f"not written by {rank}"
    with pytest.raises(FileNotFoundError if rank == 0 else RuntimeError):
        save_state(optimizer, missing if rank == 0 else other)
    assert not other.exists()  # only the first writes
    assert there.read_bytes() == file
    for key, array in observe(optimizer).items():
        assert_bits_equal(array, before[key], key)
    return take(run, optimizer, [STEPS])


SCENARIOS: dict[str, tuple[tuple[int, ...], Callable[..., Run]]] = {
    "ddp trained": ((1, 2, 4), run_ddp),
    "ddp bfloat16": ((2,), run_ddp_bfloat16),
    "fsdp trained": ((1, 2, 4), run_fsdp_trained),
    "fsdp adamw": ((1, 2, 4), partial(run_fsdp, "adamw")),
    "fsdp bfloat16": ((1, 2, 4), partial(run_fsdp, "bfloat16")),
    **{f"fsdp {name}": ((4,), partial(run_fsdp, name)) for name in ("sgd", "rmsprop", "adam", "laprop")},
    "tp adamw": ((1, 2, 4), partial(run_tensor_parallel, "adamw")),
    "tp laprop": ((4,), partial(run_tensor_parallel, "laprop")),
    "tp bfloat16": ((4,), partial(run_tensor_parallel, "bfloat16")),
    "swapped": ((2,), partial(run_swapped, "bfloat16")),
    "refusals": ((2,), partial(run_refusals, "bfloat16")),
    "gradients elsewhere": ((4,), partial(run_gradients_elsewhere, "rmsprop")),
    "fsdp over tp": ((4,), partial(run_spread, "adamw", fsdp_over_tensor_parallel)),
    "fsdp over tp before": ((4,), partial(run_spread, "laprop", fsdp_over_tensor_parallel)),
    "hybrid": ((4,), partial(run_hybrid, "adamw")),
    "slices": ((4,), partial(run_spread, "adamw", slices)),
    "pipeline": ((4,), partial(run_spread, "laprop", pipeline)),
    "own file": ((2,), partial(run_own_file, "bfloat16")),
    **{f"save {name}": ((4,), partial(run_save, name)) for name in ("float32", "bfloat16")},
    **{
        f"resume {name} {kind}": ((2,), partial(run_resume, name, kind))
        for name in ("float32", "bfloat16")
        for kind in ("nested", "flat")
    },
    "resume float32 nested alone": ((1,), partial(run_resume, "float32", "nested")),
    **{f"resume {name} from first": ((2,), partial(run_resume_from_first, name)) for name in ("float32", "bfloat16")},
    "portable adamw": ((1, 2, 4), partial(run_portable, "adamw", fsdp)),
    "portable bfloat16": ((4,), partial(run_portable, "bfloat16", fsdp)),
    "portable laprop over tp": ((4,), partial(run_portable, "laprop", fsdp_over_tensor_parallel)),
    "portable hybrid": ((4,), partial(run_portable, "rmsprop", hybrid)),
    "portable slices": ((4,), partial(run_portable, "adamw", slices)),
    "portable pipeline": ((4,), partial(run_portable, "laprop", pipeline)),
    "portable refusals": ((2,), partial(run_portable_refusals, "bfloat16")),
    **{f"resume {name} plain": ((1,), partial(run_resume_plain, name)) for name in ("float32", "bfloat16")},
}


def solve(world: int, folder: Path) -> dict[str, Run]:
    """What this rank saw of the scenarios for so many ranks; those above have no part in it."""
    rank = dist.get_rank()
    if rank >= world:
        return {}
    if world != dist.get_world_size():
        dist.destroy_process_group()
        url = f"file://{folder}/store.{world}"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world, timeout=TIMEOUT)
    runs = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (worlds, scenario) in SCENARIOS.items():
            if world in worlds:
                try:
                    files = {"folder": folder} if "folder" in inspect.signature(scenario).parameters else {}
                    runs[name] = scenario(**files)
                except Exception as error:
                    error.add_note(f"{name}, rank {rank} of {world}")
                    raise
    return runs
