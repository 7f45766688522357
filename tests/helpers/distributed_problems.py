"""The problems of test_distributed.py, solved by one process and by several, and the observations of each step."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
from magma_torch import Magma, MaskedOptimizer, SkipUpdate
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from magma_core import score_survival

STEPS = 4
SAVED = 2  # the step after which checkpoints are written

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
    "adamw": Problem(Magma, names=tuple(SHAPES), compile=True),
    "sgd": Problem(
        partial(SkipUpdate, base="sgd", p=0.3, decay="dense", weight_decay=0.05),
        uses_scores=False,
        names=tuple(SHAPES),
        compile=True,
    ),
    "rmsprop": Problem(partial(MaskedOptimizer, rule=score_survival(damped=True), base="rmsprop")),
    "laprop": Problem(partial(Magma, base="laprop", cosine_momentum="before", decay="dense", p=0.7), compile=True),
    "adam": Problem(partial(MaskedOptimizer, rule=score_survival(decay="dense"), base="adam")),
    "bfloat16": Problem(partial(Magma, tau=0.5), dtype=torch.bfloat16, hard=False, compile=True),
    "float32": Problem(partial(Magma, initial_score=0.25), hard=False),
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


def begin(name: str, params: Mapping[str, Tensor]) -> tuple[MaskedOptimizer, Run]:
    """An optimizer for a problem, and a run that has seen nothing yet."""
    optimizer = make_optimizer(PROBLEMS[name], params)
    return optimizer, Run(name, parts(optimizer), exchanges=2 if PROBLEMS[name].uses_scores else 0)


def take(run: Run, optimizer: MaskedOptimizer, steps: Iterable[int], spread: Spread | None = None) -> Run:
    """Steps of a problem, its gradients spread like its parameters unless ``spread`` says otherwise."""
    params = dict(named(optimizer))
    for step in steps:
        differentiate(PROBLEMS[run.problem], optimizer, step, spread or partial(like_parameter, params))
        advance(run, optimizer, step)
        # what is split steps in C if that was asked for
        assert {batch.passes for batch in optimizer._engine.batches if batch.split} <= {PROBLEMS[run.problem].compile}
    return run


def take_all(name: str, params: Mapping[str, Tensor], spread: Spread | None = None) -> Run:
    """All steps of a problem."""
    optimizer, run = begin(name, params)
    return take(run, optimizer, range(1, STEPS + 1), spread)


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
