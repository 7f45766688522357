"""The environment of the proof: hardware, drivers and versions."""

import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from magma_conformance.device.finding import Finding
from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.machine import cores, driver, environment

PACKAGES = (
    *("numpy", "ml_dtypes", "array-api-compat", "torch", "triton", "pytorch_optimizer"),
    *("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "optax", "keras"),
)

_ASKED = "name,driver_version,memory.total,memory.free,clocks.max.sm,clocks.max.memory,power.limit,mig.mode.current"


def check(device: str) -> Finding:
    """Passes if torch or JAX has the device."""
    finding = Finding({**environment(), "cores": cores(), "device": device, "versions": {}, "devices": {}})
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            finding.facts["versions"][package] = version(package)
    finding.lines.append(", ".join(f"{name} {found}" for name, found in finding.facts["versions"].items()))
    for backend in ("torch", "jax"):
        try:
            found = BACKENDS[backend][1](device)[0].hardware or finding.facts["processor"]
        except (ImportError, LookupError) as error:
            finding.lines.append(f"{backend}: {error}")
        else:
            finding.facts["devices"][backend] = {"name": found, "driver": driver(backend, device)}
            finding.lines.append(f"{backend}: {found}, {driver(backend, device) or 'no driver'}")
    finding.facts["nvidia_smi"] = _nvidia_smi() if device != "cpu" else []
    finding.lines += finding.facts["nvidia_smi"]
    finding.expect(bool(finding.facts["devices"]), f"torch or JAX has the device {device}")
    return finding


def _nvidia_smi() -> list[Any]:
    """The output of nvidia-smi, if installed."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    return []
