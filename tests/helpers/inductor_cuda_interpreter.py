"""Runs Inductor's kernels for an H100 on the CPU, in Triton's interpreter, and compares the bits with NumPy's.

NumPy's arithmetic stands for the device's: this shows what Inductor left of the function, not how a device rounds. It
needs a process with TRITON_INTERPRET=1, set before Triton is imported, and with it Inductor's own functions.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import magma_numpy.namespace
import magma_torch.namespace as xp
import numpy as np
import torch
import triton
import triton.language as tl
from inductor_cuda import PyCodeCache, device, program
from magma_conformance.cases import inputs
from magma_conformance.implementations.modes import BACKENDS
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime import triton_heuristics
from triton.runtime.interpreter import TensorHandle

import magma_core
from magma_core import State
from magma_core.config import BASES

AXES: dict[str, Any] = {"rows": (0,), "dense": None}
SHAPE = (12, 20)  # so few that reductions need no loop: the interpreter's is broken with NumPy 2.4
KINDS = ["normal", "wide"]
LACKING = {"astype": lambda x, dtype: x.to(dtype)}


def _elementwise(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """A function of libdevice, which the interpreter lacks."""
    return lambda x: tl.tensor(TensorHandle(function(x.handle.data), x.handle.dtype), x.type)


LIBDEVICE = SimpleNamespace(nearbyint=_elementwise(np.rint), sqrt=_elementwise(np.sqrt))


class Interpreted:
    """A kernel, run by one program as large as the arrays."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def run(self, *args: Any, stream: int) -> None:
        """What the wrapper calls."""
        given = dict(zip(self.function.arg_names, args, strict=False))
        sizes = {name: triton.next_power_of_2(n) for name, n in given.items() if name.endswith("numel")}
        blocks = {"XBLOCK": sizes.get("xnumel"), "YBLOCK": sizes.get("ynumel"), "R0_BLOCK": 64}
        own = {name: size for name, size in blocks.items() if name in self.function.arg_names}
        assert {*given, *own} == {*self.function.arg_names}, self.function.arg_names
        self.function[(1,)](**given, **own)


def _kernel(self: AsyncCompile, name: str, source: str, device_str: str) -> Interpreted:
    module = PyCodeCache.load(source)
    module.libdevice = LIBDEVICE
    return getattr(module, name)


def execute(code: str, arguments: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The program for a device, on tensors in memory."""
    code = code.replace("from torch._C import _cuda_getCurrentRawStream as get_raw_stream", "get_raw_stream = int")
    code = code.replace("guards._empty_strided_cuda", "guards._empty_strided_cpu").replace("cuda:0", "cpu")
    decorator = lambda **meta: Interpreted  # noqa: E731
    kinds = dict.fromkeys(("pointwise", "reduction", "persistent_reduction"), decorator)
    with device(), mock.patch.multiple(triton_heuristics, **kinds), mock.patch.object(AsyncCompile, "triton", _kernel):
        quiet = {"_DeviceGuard": lambda index: nullcontext(), "set_device": lambda index: None}
        with mock.patch.multiple(torch.cuda, **quiet):
            module: dict[str, Any] = {"__name__": "program", "__file__": "program"}
            exec(compile(code, "program", "exec"), module)
            return module["call"](arguments)


class Steps:
    """Steps in one graph, as a function of flat arrays in any framework."""

    def __init__(self, base: str, dtype: str) -> None:
        rng = np.random.default_rng(3)
        options = {"base": BASES[base](), "rule": magma_core.magma(), "xp": magma_numpy.namespace}
        self.params = [inputs.make("normal", SHAPE, dtype, rng) for _ in AXES]
        self.grads = [[inputs.make(kind, SHAPE, dtype, rng) for _ in AXES] for kind in KINDS]
        self.plans = magma_core.plan_all(self.params, names=list(AXES), seed=0, block_axes=AXES, **options)
        self.states = [
            magma_core.init(param, name=name, block_axes=axes, **options)
            for param, (name, axes) in zip(self.params, AXES.items(), strict=True)
        ]

    def arguments(self) -> list[np.ndarray]:
        """All that varies."""
        return [np.asarray(1), np.asarray(0.02, np.float32), *leaves(self.params, self.states, *self.grads)]

    def function(self, namespace: Any) -> Callable[..., list[Any]]:
        """Parameters, states and reports after the last step."""

        def steps(*arrays: Any) -> list[Any]:
            first, rate, *rest = arrays
            it = iter(rest)
            params = [next(it) for _ in self.params]
            states = [State(*(None if x is None else next(it) for x in state)) for state in self.states]
            for i in range(len(KINDS)):
                grads = [next(it) for _ in self.params]
                params, states, reports = magma_core.update_planned(
                    self.plans, params, grads, states, step=first + i, lr=rate, xp=namespace
                )
            return leaves(params, states, reports)

        return steps


def leaves(*nests: Any) -> list[Any]:
    """The arrays of lists and of named tuples."""
    return [y for x in nests if x is not None for y in (leaves(*x) if isinstance(x, list | tuple) else [x])]


def differences(base: str, dtype: str, without: str | None = None) -> list[str]:
    """Which results of the interpreted program differ from NumPy's; ``without`` is what the namespace is to lack."""
    with mock.patch.dict(vars(xp), {without: LACKING[without]} if without else {}):
        return list(_differences(base, dtype))


def _differences(base: str, dtype: str) -> Iterator[str]:
    steps = Steps(base, dtype)
    mode = BACKENDS["torch"][1]("cpu")[0]
    arrays = [mode.put(x) for x in steps.arguments()]
    written = program(
        lambda: (steps.function(xp), [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in arrays])
    )
    order = [int(re.fullmatch(r"l_arrays_(\d+)_", name)[1]) for name in written.inputs]
    actual = execute(written.code, [arrays[i] for i in order])
    expected = steps.function(magma_numpy.namespace)(*steps.arguments())
    for i, (x, y) in enumerate(zip(actual, expected, strict=True)):
        if mode.get(x).tobytes() != np.asarray(y).tobytes():
            yield f"{i}: {mode.get(x).ravel()[:3]} {np.ravel(y)[:3]}"
