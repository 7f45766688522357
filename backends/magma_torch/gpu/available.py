"""Whether the kernels can run, and when they must not start."""

import functools
import os
import shutil
import sysconfig
from importlib import import_module
from pathlib import Path

import torch


def triton_missing(device: torch.device, /) -> str | None:
    """Why kernels cannot run on a device, or None if they can.

    On the CPU they run in Triton's interpreter if ``TRITON_INTERPRET=1``: slow, for tests.
    """
    return _missing(device.type)


@functools.cache
def _missing(device_type: str) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type not in ("cuda", "cpu"):
        return f"kernels are for CUDA, not for {device_type}"
    if device_type == "cpu" and not interpreted:
        return "on the CPU kernels run only in Triton's interpreter, TRITON_INTERPRET=1"
    if device_type == "cuda" and interpreted:
        return "Triton's interpreter cannot follow addresses of a device"
    if device_type == "cuda" and torch.version.hip:
        return "kernels were not tried on AMD's devices"
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton is not installed ({error})"
    return None if interpreted else _compiler_missing()


def _compiler_missing() -> str | None:
    """Triton needs a C compiler at the first launch, to build the launcher, and raises without one."""
    named = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([named] if named else ["gcc", "clang", "cc"])):
        return "Triton needs a C compiler: install gcc, or name one in CC"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Triton needs Python.h: install Python's headers (python3-dev)"
    return None


def check_not_captured(device: torch.device) -> None:
    """Raise RuntimeError if a CUDA graph would capture, and repeat, the creation of state and tables."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured, and this step would first make state or tables anew: "
            "take one step with the same parameters, options and kind of gradients before the capture"
        )
