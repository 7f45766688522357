"""What a measurement was made on."""

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
    """The processor's model, or the best that the system says about it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """What a report says of the machine that it was made on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
    }


def cores() -> int:
    """Cores that this process may use, which in a container can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def driver(backend: str, device: str) -> str:
    """What drives a backend's device; never raises, and imports no framework.

    Args:
        backend: a framework or an adapter, such as "torch" or "magma_torch"; CUDA's version is known only of
            frameworks that this process has imported.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        Such as "CUDA 12.8, driver 570.86.15", or as much of it as could be found out; empty for the processor.

    Example:
        >>> driver("torch", "cpu")
        ''
    """
    if device.partition(":")[0] != "cuda":
        return ""
    name = backend.removeprefix("magma_")
    cuda, nvidia = "", ""
    with suppress(Exception):  # whatever a framework of another version does: a report is worth more than this line
        cuda = _CUDA[name](sys.modules[name])
    with suppress(Exception):
        nvidia = _nvidia_driver()
    return ", ".join(f"{what} {version}" for what, version in (("CUDA", cuda), ("driver", nvidia)) if version)


def _jax_cuda(jax: ModuleType) -> str:
    """From a line such as "cuda 12080" in what its runtime says of itself."""
    said = re.search(r"cuda (\d+)", jax.devices("cuda")[0].client.platform_version)
    return f"{int(said[1]) // 1000}.{int(said[1]) % 1000 // 10}" if said else ""


_CUDA: dict[str, Callable[[ModuleType], str]] = {
    "torch": lambda torch: torch.version.cuda or "",
    "jax": _jax_cuda,
    "tensorflow": lambda tf: tf.sysconfig.get_build_info().get("cuda_version", ""),
}
"""CUDA's version as each framework tells it: the one that it was built with or runs with."""


def _nvidia_driver() -> str:
    """From the kernel's module, or, where a container hides that, from the driver's own tool."""
    if _NVIDIA.exists():
        said = _NVIDIA.read_text(encoding="utf-8")
    else:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", said)
    return version[0] if version else ""
