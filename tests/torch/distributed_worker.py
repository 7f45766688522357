"""What test_distributed.py compares, made in processes of its own: torch's engines over gloo, and one plain process.

``python distributed_worker.py DIRECTORY`` imports torch once and forks: first a process without torch.distributed and
four ranks, which leave checkpoints, then two ranks and one, which resume. Every process leaves what it saw after every
step, as NumPy arrays.
"""

import inspect
import multiprocessing
import os
import pickle
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before libraries start threads that a fork would lose
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"

import ml_dtypes
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from magma_torch import Magma, MaskedOptimizer, SkipUpdate
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
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from magma_core import score_survival

STEPS = 4
SAVED = 2  # the step after which checkpoints are written
PATIENCE = 240.0  # seconds for the processes of one start
TIMEOUT = timedelta(seconds=60)  # of a collective

Record = dict[str, np.ndarray]
Spread = Callable[[str, Tensor], Tensor]

SHAPES: dict[str, tuple[int, ...]] = {
    "embed": (5, 8),  # over four ranks: 2, 2, 1 and 0 rows
    "a.square": (3, 8),
    "a.query": (12, 8),
    "a.down": (5, 12),
    "a.out": (6, 12),
    "a.norm": (8,),
    "b.square": (3, 8),
    "b.query": (12, 8),
    "b.down": (5, 12),
    "b.norm": (8,),
    "bias": (3,),
    "experts": (3, 4, 6),
    "head": (9, 4),
    "wide": (70, 1000),  # stepped by itself as a whole, in a stack with the next in parts
    "deep": (70, 1000),
}

GROUPS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("embed", "a.square", "b.square", "wide", "deep"), {"block_axes": ()}),
    (("a.query", "b.query", "bias"), {"block_axes": (0,), "weight_decay": 0.1}),
    (("a.down", "a.out", "b.down"), {"block_axes": (1,), "lr": 0.05}),
    (("experts",), {"block_axes": (2, 0)}),
    (("head",), {"block_axes": (0, 1)}),
    (("a.norm", "b.norm"), {"masked": False}),
]


SMALL = tuple(name for name, shape in SHAPES.items() if np.prod(shape) < 2**16)


@dataclass(frozen=True)
class Problem:
    """Parameters, gradients and an optimizer: what each run of it must agree on."""

    make: Callable[..., MaskedOptimizer]
    dtype: torch.dtype = torch.float32
    names: tuple[str, ...] = SMALL
    compile: bool = False
    hard: bool = True  # gradients with what is not finite
    uses_scores: bool = True


PROBLEMS = {
    "adamw": Problem(Magma, names=tuple(SHAPES)),
    "sgd": Problem(
        partial(SkipUpdate, base="sgd", p=0.3, decay="dense", weight_decay=0.05), uses_scores=False, names=tuple(SHAPES)
    ),
    "rmsprop": Problem(partial(MaskedOptimizer, rule=score_survival(damped=True), base="rmsprop")),
    "laprop": Problem(partial(Magma, base="laprop", cosine_momentum="before", decay="dense", p=0.7)),
    "adam": Problem(partial(MaskedOptimizer, rule=score_survival(decay="dense"), base="adam")),
    "bfloat16": Problem(partial(Magma, tau=0.5), dtype=torch.bfloat16, hard=False),
    "float32": Problem(partial(Magma, initial_score=0.25), hard=False),
    # all blocks are kept, so that few programs are compiled
    "compiled": Problem(partial(Magma, p=1.0), names=("a.query", "b.query"), compile=True),
}


def start(problem: Problem, name: str) -> Tensor:
    """A parameter before the first step, with values that a step of learning rate 0 would change."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.normal(size=SHAPES[name]).astype(np.float32)
    values.reshape(-1)[:2] = -0.0, 2.0**-110
    return torch.from_numpy(values).to(problem.dtype)


def gradient(problem: Problem, name: str, step: int) -> Tensor | None:
    """The whole gradient of a parameter at a step; the second step lacks one, and is hard in other ways too."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {step}".encode()))
    values = rng.normal(size=SHAPES[name]) * 2.0 ** rng.integers(-6, 6, size=SHAPES[name])
    if step == 2 and problem.hard:
        if name == "b.norm":
            return None
        hard = {"a.query": np.inf, "b.down": np.nan, "bias": -np.inf}
        values.reshape(-1)[-1] = hard.get(name, values.reshape(-1)[-1])
        values *= {"embed": 0.0, "a.out": 2.0**-110, "experts": 2.0**60}.get(name, 1.0)
    return torch.from_numpy(values.astype(np.float32)).to(problem.dtype)


def make_optimizer(problem: Problem, params: Mapping[str, Tensor]) -> MaskedOptimizer:
    """Over those of the parameters that are there, in the order and groups that are common to all runs."""
    options = {"seed": 5, "compile": problem.compile}
    groups = []
    for names, settings in GROUPS:
        own = [(name, params[name]) for name in names if name in params]
        if own:
            groups.append({"params": own, **settings})
    if "weight_decay" not in problem.make(groups[:1], **options).defaults:
        groups = [{key: value for key, value in group.items() if key != "weight_decay"} for group in groups]
    return problem.make(groups, lr=0.02, **options)


def named(optimizer: MaskedOptimizer) -> Iterator[tuple[str, Tensor]]:
    """Its parameters with their names."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def observe(optimizer: MaskedOptimizer) -> Record:
    """What this process has of parameters and state, and what the last step saw."""
    found: dict[str, Any] = {}
    for name, param in named(optimizer):
        found |= {f"{name}/param": param, **{f"{name}/{key}": x for key, x in optimizer.state[param].items()}}
    for name, seen in optimizer.alignment().items():
        found |= {f"{name}/seen {key}": x for key, x in seen._asdict().items() if x is not None}
    return {key: to_numpy(x) for key, x in found.items()}


def to_numpy(x: Tensor) -> np.ndarray:
    """A copy, with NumPy's own bfloat16."""
    x = x.detach()
    x = (x.to_local() if isinstance(x, DTensor) else x).clone()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def parts(optimizer: MaskedOptimizer) -> dict[str, np.ndarray]:
    """Which elements of the whole this process has, by the names of the DTensors."""
    return {
        name: to_numpy(distribute(torch.arange(param.numel()).view(param.shape), param))
        for name, param in named(optimizer)
        if isinstance(param, DTensor)
    }


@dataclass
class Run:
    """What one process saw of one scenario."""

    problem: str  # whose plain run it has to equal
    parts: dict[str, np.ndarray] = field(default_factory=dict)  # of the whole tensors that this process has
    steps: dict[int, Record] = field(default_factory=dict)
    exchanges: int | None = 2  # collectives that every step has to take, None where gradients take some of their own
    collectives: dict[int, int] = field(default_factory=dict)  # those that it took


def advance(run: Run, optimizer: MaskedOptimizer, step: int) -> None:
    """A step with the gradients that are there."""
    with CommDebugMode() as communication:
        optimizer.step()
    run.collectives[step] = communication.get_total_counts()
    run.steps[step] = observe(optimizer)


def differentiate(problem: Problem, optimizer: MaskedOptimizer, step: int, spread: Spread) -> None:
    """Set the gradients of a step, spread as ``spread`` says, and the learning rates."""
    for group in optimizer.param_groups:
        group["lr"] *= 0.75
    for name, param in named(optimizer):
        whole = gradient(problem, name, step)
        param.grad = None if whole is None else spread(name, whole)


def run_steps(
    name: str, params: Mapping[str, Tensor], spread: Spread | None = None, *, problem: Problem | None = None
) -> Run:
    """All steps of a problem, its gradients spread like its parameters unless ``spread`` says otherwise."""
    problem = problem or PROBLEMS[name]
    optimizer = make_optimizer(problem, params)
    run = Run(name, parts(optimizer))
    for step in range(1, STEPS + 1):
        differentiate(problem, optimizer, step, spread or partial(like_parameter, params))
        advance(run, optimizer, step)
    if not problem.uses_scores:
        run.exchanges = 0
    return run


def like_parameter(params: Mapping[str, Tensor], name: str, whole: Tensor) -> Tensor:
    """``whole``, spread as the parameter is."""
    return distribute(whole, params[name]) if isinstance(params[name], DTensor) else whole


def distribute(whole: Tensor, like: DTensor) -> Tensor:
    """``whole``, spread as ``like`` is, without any communication."""
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


# Models: parameters by name in modules, and a small one that is really trained


class Node(nn.Module):
    """Parameters without a forward: their gradients are set by hand."""


def hold(params: Mapping[str, Tensor]) -> Node:
    """A tree of modules in which the parameters have the names that they have here."""
    root = Node()
    for name, tensor in params.items():
        module, *path = root, *name.split(".")[:-1]
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, Node())
            module = module.get_submodule(part)
        module.register_parameter(name.split(".")[-1], nn.Parameter(tensor))
    return root


def plain(problem: Problem) -> dict[str, Tensor]:
    """The parameters of a problem, on this process alone."""
    return {name: nn.Parameter(start(problem, name)) for name in problem.names}


def shard_model(problem: Problem, **options: Any) -> Node:
    """A model under FSDP2, its submodules in groups of their own."""
    model = hold({name: start(problem, name) for name in problem.names})
    for module in (model.a, model.b, model):
        fully_shard(module, **options)
    return model


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 7), nn.Linear(7, 3))


def train(model: nn.Module, *, exchanges: int) -> Run:
    """Steps with real gradients: every rank has the same batch, so that their mean is that of one process."""
    params = {name.removeprefix("module."): param for name, param in model.named_parameters()}
    matrices = [(name, param) for name, param in params.items() if param.ndim == 2]
    others = [(name, param) for name, param in params.items() if param.ndim < 2]
    groups = [{"params": matrices, "block_axes": (0,)}, {"params": others[:2]}, {"params": others[2:], "masked": False}]
    optimizer = Magma(groups, lr=0.05, compile=False)
    run = Run("trained", parts(optimizer), exchanges=exchanges)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        advance(run, optimizer, step)
    return run


# Scenarios: each gives what one rank saw


def run_plain() -> dict[str, Run]:
    """Every problem in a single process."""
    eager = {name: replace(problem, compile=False) for name, problem in PROBLEMS.items()}
    runs = {name: run_steps(name, plain(problem), problem=problem) for name, problem in eager.items()}
    return {**runs, "trained": train(small_model(), exchanges=0)}


def run_ddp() -> Run:
    return train(DistributedDataParallel(small_model()), exchanges=0)


def run_ddp_bfloat16() -> Run:
    """Gradients by hand; DDP leaves parameters plain, so that nothing is exchanged."""
    return replace(run_steps("bfloat16", plain(PROBLEMS["bfloat16"])), exchanges=0)


def run_fsdp_trained() -> Run:
    model = small_model()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    return train(fully_shard(model), exchanges=2)


def run_fsdp(name: str) -> Run:
    return run_steps(name, dict(shard_model(PROBLEMS[name]).named_parameters()))


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
    return run_steps(name, tensor_parallel(PROBLEMS[name], mesh))


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

    return replace(run_steps(name, params, spread), exchanges=None)


def run_swapped(name: str) -> Run:
    """Tensors whose contents are swapped, as by ``model.to`` with DTensors, are stepped where they are now."""
    problem, mesh = PROBLEMS[name], init_device_mesh("cpu", (dist.get_world_size(),))
    params = tensor_parallel(problem, mesh)
    optimizer = make_optimizer(problem, params)
    run = Run(name, parts(optimizer))
    for step in range(1, STEPS + 1):
        differentiate(problem, optimizer, step, partial(like_parameter, params))
        advance(run, optimizer, step)
        optimizer.zero_grad()
        for param in params.values():
            torch.utils.swap_tensors(param, nn.Parameter(param.detach().clone()))
    return run


def run_refusals(name: str) -> Run:
    """What cannot be stepped is refused on every rank, and changes nothing."""
    rank, problem = dist.get_rank(), PROBLEMS[name]
    world, other = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    params = tensor_parallel(problem, world)
    optimizer = make_optimizer(problem, params)
    run = Run(name, parts(optimizer))

    def refuse(optimizer: MaskedOptimizer, error: type[Exception], pattern: str) -> None:
        before = [x.detach().clone() for group in optimizer.param_groups for x in group["params"]]
        try:
            optimizer.step()
        except error as refusal:
            assert pattern in str(refusal), refusal
        else:
            raise AssertionError(f"no {error.__name__}")
        after = [x for group in optimizer.param_groups for x in group["params"]]
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(to_numpy(old), to_numpy(new))

    for step in range(1, STEPS + 1):
        differentiate(problem, optimizer, step, partial(like_parameter, params))
        if step == 3:
            right = params["embed"].grad
            whole = gradient(problem, "embed", step)
            params["embed"].grad = distribute_tensor(whole, other, [Replicate(), Shard(0)], src_data_rank=None)
            refuse(optimizer, ValueError, "its parameter on")
            params["embed"].grad = right
        advance(run, optimizer, step)
    odd = nn.Parameter(DTensor.from_local(torch.ones(3 - 2 * rank, 2), world, [Shard(0)], shape=(4, 2), stride=(2, 1)))
    odd.grad = odd.detach().clone()
    refuse(problem.make([("odd", odd)], block_axes=(0,), compile=False), NotImplementedError, "'odd'")
    return run


# Four ranks in two dimensions


def square_mesh(*names: str) -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=names)


def run_fsdp_over_tensor_parallel(name: str) -> Run:
    """Each parameter that tensor parallelism spreads is sharded again by FSDP2, but for one; some are plain."""
    mesh = square_mesh("dp", "tp")
    tensors = {key: start(PROBLEMS[name], key) for key in PROBLEMS[name].names}
    for key in tensors.keys() & TENSOR_PARALLEL.keys():
        tensors[key] = distribute_tensor(tensors[key], mesh["tp"], [TENSOR_PARALLEL[key]], src_data_rank=None)
    model = hold(tensors)
    alone = {model.head, model.bias, model.a.norm}
    for module in (model.a, model.b, model):
        fully_shard(module, mesh=mesh["dp"], ignored_params=alone)
    return run_steps(name, dict(model.named_parameters()))


def run_hybrid(name: str) -> Run:
    return run_steps(name, dict(shard_model(PROBLEMS[name], mesh=square_mesh("replicate", "shard")).named_parameters()))


def run_slices(name: str) -> Run:
    """Parameters on both axes, on one of them, on all ranks in a row, and on none share two collectives."""
    mesh = square_mesh("dp", "tp")
    meshes = [mesh, mesh["dp"], mesh["tp"], mesh["dp", "tp"]._flatten("all"), init_device_mesh("cpu", (4,))]
    params: dict[str, Tensor] = {}
    for i, key in enumerate(PROBLEMS[name].names):
        whole, own = start(PROBLEMS[name], key), meshes[i % 5]
        kinds = [[Shard(0), Shard(whole.ndim - 1)], [Replicate(), Shard(0)], [Shard(0), Replicate()]]
        placements = kinds[i // 5 % 3] if own is mesh else [Shard(i % whole.ndim)]
        params[key] = nn.Parameter(distribute_tensor(whole, own, placements, src_data_rank=None))
    params["b.norm"] = nn.Parameter(start(PROBLEMS[name], "b.norm"))
    return run_steps(name, params)


def run_pipeline(name: str) -> Run:
    """Two stages with different parameters, each on slices of a mesh of three dimensions."""
    mesh = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("pp", "dp", "tp"))
    stage = mesh.get_local_rank("pp")
    own = [key for key in PROBLEMS[name].names if key.startswith("b") == bool(stage)]
    params: dict[str, Tensor] = {}
    for i, key in enumerate(own):
        where, placements = [(mesh["dp"], [Shard(0)]), (mesh["dp", "tp"], [Shard(0), Shard(0)])][i % (2 - stage)]
        whole = start(PROBLEMS[name], key)
        params[key] = nn.Parameter(distribute_tensor(whole, where, placements, src_data_rank=None))
    return run_steps(name, params)


# Checkpoints: four ranks save after two steps and go on, others resume

NESTED, FLAT = StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def run_save(name: str, folder: Path) -> Run:
    """To be asked for its state before the first step, and to save, leaves no trace in what comes after."""
    problem = PROBLEMS[name]
    model = shard_model(problem)
    params = dict(model.named_parameters())
    optimizer = make_optimizer(problem, params)
    run = Run(name, parts(optimizer))
    get_optimizer_state_dict(model, optimizer)
    for step in range(1, SAVED + 1):
        differentiate(problem, optimizer, step, partial(like_parameter, params))
        advance(run, optimizer, step)
    for kind, options in ("nested", NESTED), ("flat", FLAT):
        state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
        if kind == "nested":
            state["model"] = get_model_state_dict(model)
        dcp.save(state, checkpoint_id=folder / f"{name}.{kind}")
    full = get_model_state_dict(model, options=FULL), get_optimizer_state_dict(model, optimizer, options=FULL)
    if dist.get_rank() == 0:
        torch.save(full, folder / f"{name}.full")
    resume(run, optimizer, params)
    return run


def run_own_file(name: str, folder: Path) -> Run:
    """Every rank saves what it has, and a new optimizer of the same ranks resumes from that."""
    problem = PROBLEMS[name]
    params = dict(shard_model(problem).named_parameters())
    optimizer = make_optimizer(problem, params)
    run = Run(name, parts(optimizer))
    for step in range(1, SAVED + 1):
        differentiate(problem, optimizer, step, partial(like_parameter, params))
        advance(run, optimizer, step)
    path = folder / f"{name}.{dist.get_rank()}"
    torch.save(optimizer.state_dict(), path)
    optimizer = make_optimizer(problem, params)
    optimizer.load_state_dict(torch.load(path, weights_only=True))
    resume(run, optimizer, params)
    return run


def resume(run: Run, optimizer: MaskedOptimizer, params: Mapping[str, Tensor]) -> None:
    """What is there after loading, and the remaining steps."""
    if SAVED not in run.steps:
        run.steps[SAVED] = observe(optimizer)
    for step in range(SAVED + 1, STEPS + 1):
        differentiate(PROBLEMS[run.problem], optimizer, step, partial(like_parameter, params))
        advance(run, optimizer, step)


def forgetful(problem: Problem) -> Node:
    """A model under FSDP2 whose parameters are not those of the others."""
    model = shard_model(problem)
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(-1.0)
    return model


def run_resume(name: str, kind: str, folder: Path) -> Run:
    """From torch.distributed.checkpoint; the parameters first, so that loading the rest must leave them as they are."""
    problem, path = PROBLEMS[name], folder / f"{name}.{kind}"
    model = forgetful(problem)
    params = dict(model.named_parameters())
    optimizer = make_optimizer(problem, params)
    run = Run(name, parts(optimizer))
    weights = {"model": get_model_state_dict(model)}
    dcp.load(weights, checkpoint_id=folder / f"{name}.nested")
    set_model_state_dict(model, weights["model"])
    options = FLAT if kind == "flat" else NESTED
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.load(state, checkpoint_id=path)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    resume(run, optimizer, params)
    return run


def run_resume_from_first(name: str, folder: Path) -> Run:
    """From whole tensors that only the first rank reads."""
    model = forgetful(PROBLEMS[name])
    params = dict(model.named_parameters())
    optimizer = make_optimizer(PROBLEMS[name], params)
    run = Run(name, parts(optimizer))
    first = dist.get_rank() == 0
    weights, state = torch.load(folder / f"{name}.full", weights_only=True) if first else ({}, {})
    set_model_state_dict(model, weights, options=FROM_FIRST)
    set_optimizer_state_dict(model, optimizer, state, options=FROM_FIRST)
    resume(run, optimizer, params)
    return run


def run_resume_plain(name: str, folder: Path) -> Run:
    """From the same file, in a single process with plain tensors."""
    weights, state = torch.load(folder / f"{name}.full", weights_only=True)
    params = {key: nn.Parameter(x) for key, x in weights.items()}
    optimizer = make_optimizer(PROBLEMS[name], params)
    optimizer.load_state_dict(state)
    run = Run(name, exchanges=0)
    resume(run, optimizer, params)
    return run


SCENARIOS: dict[str, tuple[tuple[int, ...], Callable[..., Run]]] = {
    "ddp trained": ((1, 2, 4), run_ddp),
    "ddp bfloat16": ((2,), run_ddp_bfloat16),
    "fsdp trained": ((1, 2, 4), run_fsdp_trained),
    **{f"fsdp {name}": ((1, 2, 4), partial(run_fsdp, name)) for name in PROBLEMS if name != "compiled"},
    "fsdp compiled": ((2,), partial(run_fsdp, "compiled")),
    "tp adamw": ((1, 2, 4), partial(run_tensor_parallel, "adamw")),
    "tp laprop": ((2, 4), partial(run_tensor_parallel, "laprop")),
    "tp bfloat16": ((2, 4), partial(run_tensor_parallel, "bfloat16")),
    "swapped": ((2,), partial(run_swapped, "bfloat16")),
    "refusals": ((2,), partial(run_refusals, "bfloat16")),
    "gradients elsewhere": ((2, 4), partial(run_gradients_elsewhere, "rmsprop")),
    "fsdp over tp": ((4,), partial(run_fsdp_over_tensor_parallel, "adamw")),
    "fsdp over tp before": ((4,), partial(run_fsdp_over_tensor_parallel, "laprop")),
    "hybrid": ((4,), partial(run_hybrid, "adamw")),
    "slices": ((4,), partial(run_slices, "adamw")),
    "pipeline": ((4,), partial(run_pipeline, "laprop")),
    "own file": ((2,), partial(run_own_file, "bfloat16")),
    **{f"save {name}": ((4,), partial(run_save, name)) for name in ("float32", "bfloat16")},
    **{
        f"resume {name} {kind}": ((2,), partial(run_resume, name, kind))
        for name in ("float32", "bfloat16")
        for kind in ("nested", "flat")
    },
    "resume float32 nested alone": ((1,), partial(run_resume, "float32", "nested")),
    **{f"resume {name} from first": ((2,), partial(run_resume_from_first, name)) for name in ("float32", "bfloat16")},
    **{f"resume {name} plain": ((1,), partial(run_resume_plain, name)) for name in ("float32", "bfloat16")},
}


# Processes


def rank_main(rank: int, world: int, folder: Path, wanted: str) -> None:
    """One rank, or the process without ranks if ``world`` is 0."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    out = folder / f"{world}.{rank}.pickle"
    if world == 0:
        out.write_bytes(pickle.dumps({name: vars(run) for name, run in run_plain().items()}))
        return
    url = f"file://{folder}/store.{world}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world, timeout=TIMEOUT)
    runs = {}
    for name, (worlds, scenario) in SCENARIOS.items():
        if world in worlds and any(part in name for part in wanted.split(",")):
            began = time.perf_counter()
            try:
                files = {"folder": folder} if "folder" in inspect.signature(scenario).parameters else {}
                runs[name] = scenario(**files)
            except Exception as error:
                error.add_note(f"rank {rank} of {world}, {name}")
                raise
            if rank == 0:
                print(f"{world} {name}: {time.perf_counter() - began:.2f} s", flush=True)
    out.write_bytes(pickle.dumps({name: vars(run) for name, run in runs.items()}))
    dist.barrier()
    dist.destroy_process_group()


def run_together(targets: Iterable[tuple[int, int]], folder: Path, wanted: str) -> None:
    """Fork a process for each (rank, world), and end all of them when one fails or takes too long."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=rank_main, args=(*one, folder, wanted), daemon=True) for one in targets]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    while any(process.is_alive() for process in processes):
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise SystemExit(f"a process ended with {failed[0]}" if failed else f"not done in {PATIENCE:.0f} s")
        time.sleep(0.05)
    if any(process.exitcode for process in processes):
        raise SystemExit("a process failed")


def main() -> None:
    folder = Path(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    run_together([(0, 0), *((rank, 4) for rank in range(4))], folder, wanted)
    run_together([(0, 1), (0, 2), (1, 2)], folder, wanted)


if __name__ == "__main__":
    main()
