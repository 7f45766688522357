"""`magma_torch.MaskedOptimizer` under test: eager, compiled, with Triton kernels, and distributed over processes."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from magma_torch import MaskedOptimizer
from magma_torch.engine.compiler import compiler_missing
from magma_torch.engine.sharding import whole
from torch import nn
from torch.distributed import GradBucket, ReduceOp, all_reduce, group
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from magma_conformance.bits import first_difference
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.implementations.other_process import OtherProcess
from magma_conformance.implementations.process_group import Ranks
from magma_conformance.task import Arrays, Implementation, Record, Task
from magma_core import State
from magma_core.optional import require
from magma_core.state_file.config import base_from_plain, rule_from_plain

RANKS = 2


class OptimizerImplementation:
    """The optimizer on one device.

    Args:
        name: for the report.
        mode: torch, eager, on that device.
        compile: passed to the optimizer.
    """

    def __init__(self, name: str, mode: Mode, *, compile: bool) -> None:
        self.name, self.mode, self.compile = name, mode, compile

    def refuses(self, task: Task) -> str | None:
        """Refuse to compile for the CPU without a compiler."""
        return compiler_missing() if self.compile and self.name.endswith("compile") else None

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        model = self._prepare(_Model(task.params, self.mode))
        params = dict(model.tensors())
        optimizer = self._optimizer(task, params)
        records = []
        for gradients, rate in zip(task.gradients, task.learning_rates, strict=True):
            self._differentiate(model, {name: self.mode.put(gradients[name]) for name in params})
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            optimizer.step()
            records.append(self._record(optimizer, params))
        return records

    def _prepare(self, model: "_Model") -> "_Model":
        return model

    def _differentiate(self, model: "_Model", gradients: Mapping[str, torch.Tensor]) -> None:
        for name, param in model.tensors():
            param.grad = gradients[name]

    def _optimizer(self, task: Task, params: Mapping[str, nn.Parameter]) -> MaskedOptimizer:
        groups = [
            {"params": [(name, param)], "masked": axes is not None, "block_axes": tuple(axes or ())}
            for name, param in params.items()
            for axes in [task.block_axes[name]]
        ]
        optimizer = MaskedOptimizer(
            groups,
            rule=rule_from_plain(task.rule),
            base=base_from_plain(task.base),
            seed=task.seed,
            compile=self.compile,
        )
        if task.state is not None:
            for name, param in params.items():
                fields = {field: task.state.get(f"{name}/{field}") for field in State._fields}
                state = {field: self.mode.put(x) for field, x in fields.items() if x is not None}
                optimizer.state[param] = {"step": torch.tensor(task.first_step - 1), **state}
        return optimizer

    def _record(self, optimizer: MaskedOptimizer, params: Mapping[str, nn.Parameter]) -> Record:
        record: dict[str, Any] = {}
        alignment = optimizer.alignment()
        for name, param in params.items():
            state = optimizer.state[param]
            fields = {"param": param, **{field: state.get(field) for field in State._fields}}
            if name in alignment:
                seen = alignment[name]
                fields |= {"sums": seen.sums, "cosine": seen.cosine, "keep": seen.keep}
            record |= {f"{name}/{field}": x for field, x in fields.items() if x is not None}
        return {name: self.mode.get(whole(x.detach())).copy() for name, x in record.items()}  # steps write in place


class _Model(nn.Module):
    """Parameters by name. Names may have dots, which modules do not allow."""

    def __init__(self, params: Arrays, mode: Mode) -> None:
        super().__init__()
        self.names = list(params)
        for i, array in enumerate(params.values()):
            self.register_parameter(f"p{i}", nn.Parameter(mode.put(array)))

    def tensors(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters by their original names."""
        return [(name, self.get_parameter(f"p{i}")) for i, name in enumerate(self.names)]

    def forward(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A scalar whose derivatives are ``gradients``, bit for bit."""
        return torch.stack([_Linear.apply(param, gradients[name]) for name, param in self.tensors()]).sum()


class _Linear(torch.autograd.Function):
    """A function with a given derivative. A product would turn an infinite derivative into NaN elsewhere."""

    @staticmethod
    def forward(ctx: Any, param: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return torch.zeros((), device=param.device)

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> Any:
        return ctx.saved_tensors[0], None


class Interpreted(OptimizerImplementation):
    """Triton kernels in Triton's interpreter, which computes with NumPy."""

    MOST = 2**18
    """Limit of elements per task; a million take a minute for ten steps."""

    def refuses(self, task: Task) -> str | None:
        """Refuse tasks of many elements."""
        if sum(array.size for array in task.params.values()) > self.MOST:
            return "it would take Triton's interpreter minutes; the case recorded has real gradients too"
        return None

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        with np.errstate(all="ignore"):  # overflows are selected away
            return super().run(task)


class Captured(OptimizerImplementation):
    """All steps after the first replay one CUDA graph; gradients and rates are copied into its inputs."""

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        model = _Model(task.params, self.mode)
        params = dict(model.tensors())
        optimizer = self._optimizer(task, params)
        rate = torch.zeros((), dtype=torch.float64, device=next(iter(params.values())).device)
        for settings in optimizer.param_groups:
            settings["lr"] = rate
        graph = torch.cuda.CUDAGraph()
        records: list[Record] = []
        for gradients, learning_rate in zip(task.gradients, task.learning_rates, strict=True):
            rate.fill_(learning_rate)
            for name, param in params.items():
                gradient = self.mode.put(gradients[name])
                if param.grad is None:
                    param.grad = gradient
                else:
                    param.grad.copy_(gradient)
            if not records:
                optimizer.step()
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    optimizer.step()
            else:
                graph.replay()
            records.append(self._record(optimizer, params))
        return records


class DataParallel(OptimizerImplementation):
    """One rank of a group; torch's DDP reduces the gradients."""

    def _prepare(self, model: _Model) -> _Model:
        self._parallel = DistributedDataParallel(model)
        # one rank has the gradient, the others zeros; a mean would round subnormals of float16
        self._parallel.register_comm_hook(None, _sum_hook)
        return model

    def _differentiate(self, model: _Model, gradients: Mapping[str, torch.Tensor]) -> None:
        model.zero_grad()
        mine = gradients if group.WORLD.rank() == 0 else {name: torch.zeros_like(g) for name, g in gradients.items()}
        self._parallel(mine).backward()


class FullyShard(OptimizerImplementation):
    """One rank of a group; torch's FSDP2 gives it a shard of every parameter."""

    def _prepare(self, model: _Model) -> _Model:
        fully_shard(model)
        return model

    def _differentiate(self, model: _Model, gradients: Mapping[str, torch.Tensor]) -> None:
        for name, param in model.tensors():
            assert isinstance(param, DTensor)
            param.grad = distribute_tensor(gradients[name], param.device_mesh, param.placements)


class Spread:
    """One of the two above, in several local processes, which must agree in every bit."""

    def __init__(self, name: str, kind: type[OptimizerImplementation]) -> None:
        self.name, self._kind = name, kind
        self._ranks: Ranks | None = None

    def refuses(self, task: Task) -> str | None:
        """Refuse scalars, which FSDP2 does not shard."""
        if self._kind is FullyShard and any(array.ndim == 0 for array in task.params.values()):
            return "FSDP2 does not take scalars"
        return None

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        if self._ranks is None or not self._ranks.alive:
            self._ranks = Ranks(RANKS, _run_rank)
        try:
            first, *others = self._ranks.call(self._kind, self.name, task)
        except Exception:
            self._ranks = None  # the next task starts new ranks
            raise
        for rank, records in enumerate(others, 1):
            _agree(first, records, rank)
        return first


def _run_rank(kind: type[OptimizerImplementation], name: str, task: Task) -> list[Record]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gloo and DDP warn about small tensors
        return kind(name, _eager("cpu"), compile=False).run(task)


def _agree(first: Sequence[Record], other: Sequence[Record], rank: int) -> None:
    for step, (mine, theirs) in enumerate(zip(first, other, strict=True), 1):
        for name, array in mine.items():
            difference = first_difference(theirs[name], array)
            if difference is not None:
                raise AssertionError(f"rank {rank} is not rank 0: step {step}, {name}: {difference}")


def _sum_hook(state: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    buffer = bucket.buffer()
    work = all_reduce(buffer, ReduceOp.SUM, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def _eager(device: str) -> Mode:
    return next(mode for mode in BACKENDS["torch"][1](device) if mode.name == "eager")


def local(device: str) -> Implementation:
    """The optimizer with Triton kernels. On the CPU they are interpreted, in a process started for that."""
    kind = Interpreted if device == "cpu" else OptimizerImplementation
    return kind("magma_torch triton", _eager(device), compile=True)


def implementation(mode: str, device: str) -> Implementation:
    """The optimizer in one mode of `magma_conformance.implementations.adapters.ADAPTERS`."""
    name, on_cpu = f"magma_torch {mode}", device == "cpu"
    if mode in ("triton", "graph"):
        require("triton", extra="dev")
    if mode == "graph" and on_cpu:
        raise LookupError("graphs are CUDA's: --device cuda")
    if mode == "compile" and not on_cpu:
        raise LookupError("off the CPU, compile=True means Triton's kernels: that is the mode triton")
    if mode in ("ddp", "fsdp2") and not on_cpu:
        raise LookupError(f"{mode} is tested with gloo on the CPU")
    if mode == "triton":
        environment = {"TRITON_INTERPRET": "1"}
        return OtherProcess(name, __name__, device, environment=environment) if on_cpu else local(device)
    if mode == "graph":
        return Captured(name, _eager(device), compile=True)
    if mode in ("eager", "compile"):
        return OptimizerImplementation(name, _eager(device), compile=mode == "compile")
    return Spread(name, {"ddp": DataParallel, "fsdp2": FullyShard}[mode])
