"""The constants of `magma_conformance.cases.language_model`, without importing torch."""

import numpy as np

RMS_EPS = 1e-5
"""Under the root of RMSNorm."""


def rotation(length: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of rotary positions, float32, each (length, head / 2)."""
    angle = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, head, 2) / head)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
