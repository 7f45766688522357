"""A leg in JAX: the model in jax.numpy, jitted, and `magma_jax.magma`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from magma_core.optional import require

jax = require("jax", extra="jax")
optax = require("optax", extra="jax")

from magma_jax import load_state, magma, save_state  # noqa: E402

from magma_conformance.cases.real_text import LEARNING_RATE, SEED  # noqa: E402
from magma_conformance.relay.folder import Station  # noqa: E402
from magma_conformance.relay.models import layout  # noqa: E402
from magma_conformance.relay.models.jax_model import flat, logits, tree  # noqa: E402
from magma_conformance.relay.plan import RelayPlan  # noqa: E402
from magma_conformance.task import Arrays  # noqa: E402


class Runner:
    """See `magma_conformance.relay.legs.leg.Runner`."""

    def __init__(self, plan: RelayPlan, batches: Mapping[int, np.ndarray]) -> None:
        self.versions = {"jax": jax.__version__, "optax": optax.__version__}
        self._batches = batches
        self._optimizer = magma(
            LEARNING_RATE, seed=SEED, block_axes=lambda name, leaf: layout.own_block_axes(name, leaf.shape)
        )

        def loss(params: Any, text: Any) -> Any:
            predicted = logits(params, text[:, :-1], plan)
            return optax.softmax_cross_entropy_with_integer_labels(predicted, text[:, 1:]).mean()

        def step(params: Any, gradients: Any, state: Any) -> Any:
            seen = self._optimizer.alignment(gradients, state, params)
            return *self._optimizer.step(params, gradients, state), {name: own.keep for name, own in seen.items()}

        self._loss_and_gradients = jax.jit(jax.value_and_grad(loss))
        self._step = jax.jit(step)

    def take_over(self, station: Station) -> None:
        """See `Runner`."""
        self._params = tree(station.read_weights())
        self._state = load_state(self._optimizer, self._params, station.state, axes=layout.axes)

    def hand_over(self, station: Station) -> None:
        """See `Runner`."""
        station.write_weights(flat(self._params))
        save_state(self._optimizer, self._params, self._state, station.state, axes=layout.axes)

    def loss_and_gradients(self, step: int) -> tuple[float, Any]:
        """See `Runner`."""
        loss, gradients = self._loss_and_gradients(self._params, self._batches[step].astype(np.int32))
        return float(loss), gradients

    def given(self, gradients: Arrays) -> Any:
        """See `Runner`."""
        return tree(gradients)

    def step(self, gradients: Any) -> dict[str, np.ndarray]:
        """See `Runner`."""
        self._params, self._state, keep = self._step(self._params, gradients, self._state)
        return {name: np.asarray(mask) for name, mask in keep.items()}
