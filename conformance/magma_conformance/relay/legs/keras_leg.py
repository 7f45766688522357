"""A leg in Keras on TensorFlow: a model of layers, gradients from a tape, and `magma_keras.Magma`."""

import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np

from magma_core.optional import require

tf = require("tensorflow", extra="tensorflow")
keras = require("keras", extra="keras")

from magma_keras import Magma, load_state, save_state  # noqa: E402

from magma_conformance.cases.real_text import LEARNING_RATE, SEED  # noqa: E402
from magma_conformance.relay.folder import Station  # noqa: E402
from magma_conformance.relay.models import layout  # noqa: E402
from magma_conformance.relay.models.keras_model import file_name, language_model  # noqa: E402
from magma_conformance.relay.plan import RelayPlan  # noqa: E402
from magma_conformance.task import Arrays  # noqa: E402


class Runner:
    """See `magma_conformance.relay.legs.leg.Runner`."""

    def __init__(self, plan: RelayPlan, batches: Mapping[int, np.ndarray]) -> None:
        self.versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
        self._batches = batches
        model = language_model(plan)
        variables = model.trainable_variables
        self._variables = {file_name(variable.path): variable for variable in variables}
        self._optimizer = Magma(
            learning_rate=LEARNING_RATE,
            seed=SEED,
            # kernels are (in, out): a row of wq in PyTorch is a column here
            block_axes={r"attention/wq/": (1,), r"(attention|mlp)/": (), "": None},
            mask_names=file_name,
        )
        self._optimizer.build(variables)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @tf.function(autograph=False)
        def loss_and_gradients(text: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = cross_entropy(text[:, 1:], model(text[:, :-1], training=True))
            return loss, tape.gradient(loss, variables)

        @tf.function(autograph=False)
        def step(gradients: Any) -> Any:
            seen = self._optimizer.alignment(gradients, variables)
            self._optimizer.apply(gradients, variables)
            return {name: own.keep for name, own in seen.items()}

        self._loss_and_gradients, self._step = loss_and_gradients, step

    def take_over(self, station: Station) -> None:
        """See `Runner`."""
        weights = station.read_weights()
        if weights.keys() != self._variables.keys():
            raise ValueError(
                f"weights differ in {sorted(weights.keys() ^ self._variables.keys())[0]!r} from the model's"
            )
        for name, variable in self._variables.items():
            variable.assign(layout.turned(name, weights[name]))
        load_state(self._optimizer, station.state, axes=layout.axes)

    def hand_over(self, station: Station) -> None:
        """See `Runner`."""
        station.write_weights(
            {name: layout.turned(name, variable.numpy()) for name, variable in self._variables.items()}
        )
        save_state(self._optimizer, station.state, axes=layout.axes)

    def loss_and_gradients(self, step: int) -> tuple[float, Any]:
        """See `Runner`."""
        loss, gradients = self._loss_and_gradients(tf.constant(self._batches[step], tf.int32))
        return float(loss), gradients

    def given(self, gradients: Arrays) -> Any:
        """See `Runner`."""
        return [tf.constant(layout.turned(name, gradients[name])) for name in self._variables]

    def step(self, gradients: Any) -> dict[str, np.ndarray]:
        """See `Runner`."""
        return {name: mask.numpy() for name, mask in self._step(gradients).items()}
