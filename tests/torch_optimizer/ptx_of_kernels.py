"""What Triton makes of the kernels for an H100, which need not be there: JSON, a list of [kernel, arguments, PTX].

    python ptx_of_kernels.py '{"base": "adamw"}' '{"enable_fp_fusion": true}'

Arguments of the optimizer, and options that differ from those with which kernels are compiled.
"""

import json
import sys
from typing import Any

import magma_torch.gpu
import torch
import triton
from magma_torch import MaskedOptimizer
from magma_torch.gpu import tables
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from magma_core import Rule

H100 = GPUTarget("cuda", 90, 32)

magma_torch.gpu._missing = lambda device_type: None  # tensors of the CPU stand in for those of a device
tables.AT_ONCE["cpu"] = 512  # for the rest would only be more of the same


def compile_for_h100(kernel: JITFunction, arguments: dict[str, Any], options: dict[str, Any]) -> str:
    """The PTX of a kernel, called with these arguments."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = mangle_type(value)
            if isinstance(value, torch.Tensor):
                attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=H100, options=options).asm["ptx"]


def launches(optimizer: dict[str, Any], options: dict[str, Any], dtype: torch.dtype) -> list[tuple[str, str, str]]:
    """The kernels of a step of a matrix of many tiles, one whose rows are blocks, and a vector that is not masked."""
    found: dict[tuple[str, str], str] = {}

    def launch(kernel: JITFunction, grid: object) -> Any:
        def call(**given: Any) -> None:
            arguments = {name: given.pop(name) for name in kernel.arg_names}
            constants = {
                parameter.name: arguments[parameter.name] for parameter in kernel.params if parameter.is_constexpr
            }
            found[kernel.__name__, str(constants)] = compile_for_h100(kernel, arguments, {**given, **options})

        return call

    JITFunction.__getitem__ = launch
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(256, 128, dtype=dtype))]},
        {"params": [torch.nn.Parameter(torch.ones(16, 48, dtype=dtype))], "block_axes": (0,)},
        {"params": [torch.nn.Parameter(torch.ones(100, dtype=dtype))], "masked": False},
    ]
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    optimizer = {**optimizer, "rule": Rule(**optimizer.get("rule", {}))}
    MaskedOptimizer(groups, lr=0.01, **optimizer).step()
    return [(name, constants, ptx) for (name, constants), ptx in found.items()]


if __name__ == "__main__":
    asked, options, dtype = (*map(json.loads, sys.argv[1:3]), getattr(torch, sys.argv[3]))
    print(json.dumps(launches(asked, options, dtype)))
