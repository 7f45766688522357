"""Our adapters, under test through the frameworks' own optimizer interfaces."""

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from magma_conformance.implementations.modes import BACKENDS
from magma_conformance.implementations.other_process import OtherProcess
from magma_conformance.task import Implementation
from magma_core.optional import not_installed


class Adapter(NamedTuple):
    """The adapter of one framework."""

    modes: tuple[str, ...]
    framework: str
    module: str  # has ``implementation(mode, device)``

    def open(self, mode: str, device: str) -> Implementation:
        """The optimizer in one mode; ImportError or LookupError if it cannot run."""
        import_module(f"magma_{self.framework}")  # says what to install if the framework is missing
        return import_module(self.module).implementation(mode, device)


class KerasAdapter(NamedTuple):
    """The adapter of Keras, which has one backend per process."""

    modes: tuple[str, ...]  # backend-mode
    framework: str = "keras"

    def open(self, mode: str, device: str) -> Implementation:
        """See `Adapter.open`."""
        backend, _, name = mode.partition("-")
        for package in ("keras", backend):
            if find_spec(package) is None:
                raise ImportError(not_installed(package, extra=package))
        if device != "cpu":
            BACKENDS[backend][1](device)  # raises LookupError if there is none
        environment = {"KERAS_BACKEND": backend}
        label = f"magma_keras {mode}"
        return OtherProcess(
            label, "magma_conformance.implementations.keras_adapter", name, device, environment=environment
        )


_KERAS_MODES = {"tensorflow": ("eager", "graph", "xla"), "jax": ("eager", "jit"), "torch": ("eager", "compile")}

ADAPTERS: dict[str, Adapter | KerasAdapter] = {
    "magma_native": Adapter(("numpy",), "numpy", "magma_conformance.implementations.native_adapter"),
    "magma_torch": Adapter(
        ("eager", "compile", "triton", "graph", "ddp", "fsdp2"),
        "torch",
        "magma_conformance.implementations.torch_adapter",
    ),
    "magma_jax": Adapter(
        ("native", "native-apply", "jit", "kernels", "apply", "scan", "sharded"),
        "jax",
        "magma_conformance.implementations.jax_adapter",
    ),
    "magma_keras": KerasAdapter(tuple(f"{name}-{mode}" for name, modes in _KERAS_MODES.items() for mode in modes)),
}
"""The adapters by package name."""
