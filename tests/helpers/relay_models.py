"""The inputs on which relay models are compared, and the required tolerance."""

import numpy as np
from magma_conformance.relay.plan import RelayPlan

PLAN = RelayPlan(steps=2, width=32, layers=2, batch=3, length=24)
TOLERANCE = 3e-5
"""Of the largest magnitude in an array. The models are the same function of the same float32 weights; what differs is
the order of the sums and how exp and rsqrt are rounded, a few units of 2⁻²⁴ = 6e-8 for each of some dozen operations in
a row, and again for gradients. Measured: 1.0e-6 for logits, 5.1e-6 for gradients at most, which leaves other
processors some room. It is the optimizer that promises bits, not a framework's kernels."""


def weights(plan: RelayPlan) -> dict[str, np.ndarray]:
    """Weights of which none is as it was initially: norms that are 1 would hide a scale that is not used."""
    from magma_conformance.relay.legs.torch_leg import language_model

    rng = np.random.default_rng(5)
    return {
        name: (array + 0.3 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in language_model(plan).parameters().items()
    }


def logits(plan: RelayPlan, params: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """What the model of the conformance run, in torch, says."""
    import torch
    from magma_conformance.relay.legs.torch_leg import language_model

    tensors = {name: torch.from_numpy(array) for name, array in params.items()}
    return language_model(plan)._logits(tensors, torch.from_numpy(tokens)).numpy()


def assert_agree(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """To `TOLERANCE`."""
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype == np.float32, what
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, f"{what}: {error:.1e} of the largest magnitude"
