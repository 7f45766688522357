"""Compiles for an H100 without needing one: Inductor writes its Triton code, and Triton compiles it.

Up to the cubin, everything runs as on a machine with the device: torch.compile with all passes, Inductor's scheduler
and code generator, Triton, LLVM and ptxas. Tensors are fake. This module answers queries for the device, and computes
with constants on the CPU.
"""

import ast
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._subclasses import FakeTensorMode, fake_tensor
from torch.fx.experimental import proxy_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

CPU = torch.device("cpu")
TARGET = GPUTarget("cuda", 90, 32)
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    L2_cache_size=52428800,
    total_memory=85_029_158_912,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
)


class Kernel(NamedTuple):
    """One configuration of one kernel."""

    name: str
    source: str
    ptx: str
    sass: str


class _Written(BaseException):
    """Inductor has written its program: what would follow needs the device."""


class _OnCpu(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.device, lambda _: CPU, (args, kwargs or {}))
        return function(*args, **kwargs)


class Program(NamedTuple):
    """What Inductor writes for a function."""

    code: str
    inputs: list[str]  # of ``call``, by their names in the graph


def program(make: Callable[[], tuple[Callable[..., Any], Any]]) -> Program:
    """What Inductor writes for a function, with its arguments; ``make`` gives both, and makes tensors on "cuda"."""
    inputs: list[str] = []

    def stop(code: str) -> None:
        raise _Written(code)

    def inductor(graph: torch.fx.GraphModule, examples: Any) -> Any:
        inputs.extend(node.name for node in graph.graph.nodes if node.op == "placeholder")
        return compile_fx(graph, examples)

    with device(), mock.patch.object(GraphLowering, "save_output_code", staticmethod(stop)), FakeTensorMode():
        function, arguments = make()
        torch.compiler.reset()
        try:
            torch.compile(function, backend=inductor, fullgraph=True, dynamic=False)(*arguments)
        except _Written as written:
            return Program(str(written), inputs)
    raise AssertionError("Inductor wrote nothing")


def sources(code: str) -> Iterator[tuple[str, str]]:
    """Names and Triton of the kernels of a program."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "async_compile.triton":
            yield ast.literal_eval(node.args[0]), ast.literal_eval(node.args[1])


def kernels(code: str) -> Iterator[Kernel]:
    """Those of a program in all configurations that Inductor would choose from, compiled with its own options."""
    binaries: list[Any] = []
    original = triton.compile

    def compile(*args: Any, **kwargs: Any) -> Any:
        binaries.append(original(*args, **kwargs))
        return binaries[-1]

    with device(), mock.patch.object(triton, "compile", compile):
        for name, source in sources(code):
            binaries.clear()
            getattr(PyCodeCache.load(source), name).precompile(warm_cache_only=True)
            for binary in binaries:
                yield Kernel(name, source, binary.asm["ptx"], binary.asm["sass"])


@contextmanager
def device() -> Iterator[None]:
    """Answers whatever asks for the device."""
    with ExitStack() as stack:
        stack.enter_context(config.patch(force_disable_caches=True, compile_threads=1))

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        patch(driver, "_active", SimpleNamespace(get_current_target=lambda: TARGET, get_current_device=lambda: 0))
        patch(triton_helpers, "set_driver_to_gpu", lambda: None)
        answers = {
            "current_device": lambda: 0,
            "device_count": lambda: 1,
            "is_available": lambda: True,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_properties": lambda device=None: H100,
        }
        for name, answer in answers.items():
            patch(torch.cuda, name, answer)
            if name != "get_device_capability":
                patch(device_interface.CudaInterface, name, staticmethod(answer))
        patch(device_interface, "caching_worker_device_properties", {"cuda": [H100]})
        patch(device_interface, "caching_worker_current_devices", {"cuda": 0})
        for name in ("_exchange_device", "_maybe_exchange_device"):
            patch(torch.cuda, name, lambda device: 0)
        patch(torch.cuda, "get_rng_state", lambda *args: torch.get_rng_state())
        patch(torch.cuda, "set_rng_state", lambda *args: None)
        patch(torch.accelerator, "is_available", lambda: False)  # there are no streams

        patch(fake_tensor, "init_gpu_context", lambda device=None: None)
        patch(FakeTensorMode, "avoid_device_init", True)
        patch(proxy_tensor, "CONSTANT_NUMEL_LIMIT", -1)  # constants are not copied to the device while tracing
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        if not torch.cuda._is_compiled():
            patch(torch.Tensor, "__getitem__", _indexed(torch.Tensor.__getitem__))

        # patterns are traced with real tensors on the device
        for passes in (joint_graph, post_grad):
            patch(passes, "lazy_init", lambda device=None, original=passes.lazy_init: original(CPU))
        folder = joint_graph.UniformValueConstantFolder
        patch(folder, "_deduce_value", _on_cpu(folder._deduce_value))
        yield


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def on_cpu(*args: Any) -> Any:
        with _OnCpu():
            return function(*args)

    return on_cpu


def _indexed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Indexing as the core does it, without the device guard that torch's own asks of a build for CPUs."""

    def getitem(x: torch.Tensor, index: Any) -> torch.Tensor:
        if x.device.type == "cpu":
            return original(x, index)
        index = index if isinstance(index, tuple) else (index,)
        axis = 0
        for place, entry in enumerate(index):
            if entry is Ellipsis:
                axis = x.ndim - sum(i is not None for i in index[place + 1 :])
            elif entry is None:
                x, axis = torch.unsqueeze(x, axis), axis + 1
            elif entry == slice(None):
                axis += 1
            else:
                x = torch.select(x, axis, entry)
        return x

    return getitem
