"""Triton's PTX of the kernels for an H100, without needing one: in a process that takes the CPU for a GPU.

As a program it prints the number of machine instructions per element in the kernels of AdamW+Magma
(docs/performance.md).
"""

import re
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import triton
from magma_torch import MaskedOptimizer
from magma_torch.gpu import available, tables
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from magma_core import Rule

H100 = GPUTarget("cuda", 90, 32)

available._missing = lambda device_type: None  # tensors of the CPU stand in for those of a device


def compile_for_h100(kernel: JITFunction, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    """A kernel, called with these arguments."""
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
    return triton.compile(source, target=H100, options=options)


def launches(groups: list[dict[str, Any]], optimizer: dict[str, Any], options: dict[str, Any]) -> dict[Any, Any]:
    """The kernels of a step, compiled, by their names and compile-time arguments."""
    found: dict[tuple[str, str], Any] = {}

    def launch(kernel: JITFunction, grid: object) -> Any:
        def call(**given: Any) -> None:
            arguments = {name: given.pop(name) for name in kernel.arg_names}
            constants = {one.name: arguments[one.name] for one in kernel.params if one.is_constexpr}
            found[kernel.__name__, str(constants)] = compile_for_h100(kernel, arguments, {**given, **options})

        return call

    JITFunction.__getitem__ = launch
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    optimizer = {**optimizer, "rule": Rule(**optimizer.get("rule", {}))}
    MaskedOptimizer(groups, lr=0.01, **optimizer).step()
    return found


def ptx(optimizer: dict[str, Any], options: dict[str, Any], dtype_name: str) -> list[tuple[str, str, str]]:
    """Kernels, arguments and PTX, for arguments of the optimizer and options unlike those with which it compiles.

    Of a step of a matrix of many tiles, one whose rows are blocks, and a vector that is not masked.
    """
    tables.AT_ONCE["cpu"] = 512  # for the rest would only be more of the same
    dtype = getattr(torch, dtype_name)
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(256, 128, dtype=dtype))]},
        {"params": [torch.nn.Parameter(torch.ones(16, 48, dtype=dtype))], "block_axes": (0,)},
        {"params": [torch.nn.Parameter(torch.ones(100, dtype=dtype))], "masked": False},
    ]
    return [(*key, kernel.asm["ptx"]) for key, kernel in launches(groups, optimizer, options).items()]


def count_instructions() -> None:
    """Machine instructions for each element, and registers of a thread."""
    size = tables.AT_ONCE["cpu"] = tables.AT_ONCE["cuda"]
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    groups: list[dict[str, Any]] = [
        {"params": [torch.nn.Parameter(torch.ones(64, 1024))]},
        {"params": [torch.nn.Parameter(torch.ones(16, 1024))], "masked": False},
        {"params": [torch.nn.Parameter(torch.ones(64, 64))]},
    ]
    for (name, constants), kernel in launches(groups, {"base": "adamw", "weight_decay": 0.1}, {}).items():
        if name in ("advance", "measure", "move"):
            with NamedTemporaryFile(suffix=".cubin") as file:
                file.write(kernel.asm["cubin"])
                file.flush()
                ask = [tools / "cuobjdump", "-sass", "-res-usage", file.name]
                said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
            count = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", said, re.MULTILINE))
            (registers,) = re.findall(r"REG:(\d+)", said)
            what = [x for x in ("'MASKED': True", "'WHOLE': True") if x in constants]
            each = count * 32 * kernel.metadata.num_warps / size
            print(f"{name} {what}: {each:.0f} instructions for each element, {registers} registers")


if __name__ == "__main__":
    count_instructions()
