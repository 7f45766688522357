"""Our optimizers in the frameworks' own interfaces, as implementations under test beside the core."""

from importlib import import_module
from typing import NamedTuple

from magma_conformance.task import Implementation


class Adapter(NamedTuple):
    """The adapter of one framework."""

    backend: str  # of `magma_conformance.modes.BACKENDS`, for its version and devices
    modes: tuple[str, ...]
    module: str  # where ``implementation(mode, device)`` is found

    def open(self, mode: str, device: str) -> Implementation:
        """The optimizer in one mode; ImportError or LookupError where it cannot run."""
        return import_module(self.module).implementation(mode, device)


ADAPTERS = {
    "magma_torch": Adapter("torch", ("eager", "compile", "ddp", "fsdp2"), "magma_conformance.torch_optimizer"),
    "magma_jax": Adapter("jax", ("jit", "apply", "scan", "sharded"), "magma_conformance.jax_optimizer"),
}
"""Adapters by the names of their packages."""
