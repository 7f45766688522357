"""Steps on a GPU: the core's functions, traced into a few Triton kernels that each go over all parameters at once."""

import functools
import os
from importlib import import_module

import torch


def triton_missing(device: torch.device, /) -> str | None:
    """Why kernels cannot run on a device, or None if they can.

    On the CPU they run in Triton's interpreter, where ``TRITON_INTERPRET=1`` asks for it: for tests, as it is slow.
    """
    return _missing(device.type)


@functools.cache
def _missing(device_type: str) -> str | None:
    if device_type not in ("cuda", "cpu"):
        return f"kernels are for CUDA, not for {device_type}"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on the CPU kernels run only in Triton's interpreter, TRITON_INTERPRET=1"
    if device_type == "cuda" and torch.version.hip:
        return "kernels were not tried on AMD's devices"
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton is not installed ({error})"
    return None
