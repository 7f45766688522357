"""A leg in PyTorch: the model of the conformance run, and `magma_torch.Magma`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from magma_core.optional import require

torch = require("torch", extra="torch")

from magma_torch import Magma, load_state, save_state  # noqa: E402

from magma_conformance.cases.language_model import LanguageModel  # noqa: E402
from magma_conformance.cases.real_text import LEARNING_RATE, SEED, block_axes  # noqa: E402
from magma_conformance.relay.folder import Station  # noqa: E402
from magma_conformance.relay.plan import RelayPlan  # noqa: E402
from magma_conformance.task import Arrays  # noqa: E402


def language_model(plan: RelayPlan) -> LanguageModel:
    """The conformance run's model in the plan's size; it also makes the initial weights and the batches."""
    return LanguageModel(
        width=plan.width,
        layers=plan.layers,
        heads=plan.heads,
        hidden=plan.hidden,
        batch=plan.batch,
        length=plan.length,
    )


class Runner:
    """See `magma_conformance.relay.legs.leg.Runner`.

    The files have PyTorch's layout, so nothing is transposed here, and the model makes the batches itself.
    """

    def __init__(self, plan: RelayPlan, batches: Mapping[int, np.ndarray]) -> None:
        del batches
        self.versions = {"torch": torch.__version__}
        self._model = language_model(plan)
        self._params = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in self._model.shapes.items()}
        groups: dict[Any, list[Any]] = {}
        for name, param in self._params.items():
            groups.setdefault(block_axes(name), []).append((name, param))
        self._optimizer = Magma(
            [
                {"params": named} | ({"masked": False} if axes is None else {"block_axes": axes})
                for axes, named in groups.items()
            ],
            lr=LEARNING_RATE,
            seed=SEED,
            compile=False,  # same bits, no compile time
        )

    def start(self, weights: Arrays) -> None:
        """Replace the weights."""
        if weights.keys() != self._params.keys():
            raise ValueError(f"weights differ in {sorted(weights.keys() ^ self._params.keys())[0]!r} from the model's")
        with torch.no_grad():
            for name, param in self._params.items():
                param.copy_(torch.from_numpy(weights[name]))

    def take_over(self, station: Station) -> None:
        """See `Runner`."""
        self.start(station.read_weights())
        load_state(self._optimizer, station.state)

    def hand_over(self, station: Station) -> None:
        """See `Runner`."""
        station.write_weights({name: param.detach().numpy() for name, param in self._params.items()})
        save_state(self._optimizer, station.state)

    def loss_and_gradients(self, step: int) -> tuple[float, Any]:
        """See `Runner`."""
        weights = {name: param.detach().numpy() for name, param in self._params.items()}
        loss, gradients = self._model.loss_and_gradients(weights, step)
        return loss, self.given(gradients)

    def given(self, gradients: Arrays) -> Any:
        """See `Runner`."""
        return {name: torch.from_numpy(gradient) for name, gradient in gradients.items()}

    def step(self, gradients: Any) -> dict[str, np.ndarray]:
        """See `Runner`."""
        for name, param in self._params.items():
            param.grad = gradients[name]
        self._optimizer.step()
        return {name: own.keep.numpy() for name, own in self._optimizer.alignment().items()}
