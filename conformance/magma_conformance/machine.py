"""Describes the machine that a measurement ran on."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

_NVIDIA = Path("/proc/driver/nvidia/version")


def processor() -> str:
    """The processor's model, or the closest that the system reports."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """The machine's description in a report."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
    }


def cores() -> int:
    """Cores that this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def driver(backend: str, device: str) -> str:
    """The driver of a backend's device. Never raises, and imports no framework.

    Args:
        backend: a framework or an adapter, such as "torch" or "magma_torch". CUDA's version is known only if this
            process has imported the framework.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        Such as "CUDA 12.8, driver 570.86.15", or the part that could be found; empty for the CPU.

    Example:
        >>> driver("torch", "cpu")
        ''
    """
    if device.partition(":")[0] != "cuda":
        return ""
    name = backend.removeprefix("magma_")
    cuda, nvidia = "", ""
    with suppress(Exception):  # frameworks of other versions may fail in any way; the report matters more
        cuda = _CUDA[name](sys.modules[name])
    with suppress(Exception):
        nvidia = _nvidia_driver()
    return ", ".join(f"{what} {version}" for what, version in (("CUDA", cuda), ("driver", nvidia)) if version)


def _jax_cuda(jax: ModuleType) -> str:
    """CUDA's version from the runtime's platform version, in a line such as "cuda 12080"."""
    said = re.search(r"cuda (\d+)", jax.devices("cuda")[0].client.platform_version)
    return f"{int(said[1]) // 1000}.{int(said[1]) % 1000 // 10}" if said else ""


_CUDA: dict[str, Callable[[ModuleType], str]] = {
    "torch": lambda torch: torch.version.cuda or "",
    "jax": _jax_cuda,
    "tensorflow": lambda tf: tf.sysconfig.get_build_info().get("cuda_version", ""),
}
"""How each framework reports the CUDA version that it was built with or runs with."""


def _nvidia_driver() -> str:
    """From the kernel module, or, if a container hides it, from the driver's tool."""
    if _NVIDIA.exists():
        said = _NVIDIA.read_text(encoding="utf-8")
    else:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", said)
    return version[0] if version else ""
