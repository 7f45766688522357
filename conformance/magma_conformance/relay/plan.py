"""The plan of a relay: the model's size, the legs, and the settings that they share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Framework:
    """The framework of a leg.

    Attributes:
        label: its name in tables and pictures.
        module: under `magma_conformance.relay`; has ``Runner(plan, batches)``.
        needs: the modules that it imports, each with the extra that installs it.
    """

    label: str
    module: str
    needs: Mapping[str, str]


FRAMEWORKS = {
    "torch": Framework("PyTorch", "torch_leg", {"torch": "torch"}),
    "jax": Framework("JAX", "jax_leg", {"jax": "jax", "optax": "jax"}),
    "keras": Framework("Keras/TensorFlow", "keras_leg", {"keras": "keras", "tensorflow": "tensorflow"}),
}
LEGS = ("torch", "jax", "keras", "torch")


@dataclass(frozen=True)
class RelayPlan:
    """The size of the model and the length of the legs.

    Args:
        steps: of each leg.
        width: of the residual stream, a multiple of twice the heads.
        layers: number of blocks.
        heads: of attention.
        batch: sequences per batch.
        length: predicted bytes per sequence.

    Raises:
        ValueError: for an impossible size.
    """

    steps: int = 25
    width: int = 192
    layers: int = 2
    heads: int = 4
    batch: int = 8
    length: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of {2 * self.heads}, twice the heads, got {self.width}")

    @property
    def total(self) -> int:
        """Steps of the whole relay."""
        return self.steps * len(LEGS)

    @property
    def hidden(self) -> int:
        """Width of the SwiGLU."""
        return 3 * self.width

    def leg_steps(self, leg: int) -> range:
        """The steps t of a leg; legs count from 0."""
        return range(leg * self.steps + 1, (leg + 1) * self.steps + 1)
