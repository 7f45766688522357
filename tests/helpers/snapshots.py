"""Copies of everything that a torch optimizer changed, for bitwise comparison."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from magma_conformance.bits import assert_bits_equal


def snapshot(model: Any, optimizer: Any) -> dict[str, Any]:
    """Parameters, all state, every learning rate, and what the last step saw, keep masks among it."""
    found: dict[str, Any] = {}
    for name, param in model.named_parameters():
        found[name] = param.detach().clone()
        found |= {f"{name} {key}": value.clone() for key, value in optimizer.state.get(param, {}).items()}
    ours = optimizer if hasattr(optimizer, "alignment") else optimizer.optimizer  # Accelerate wraps it
    for name, seen in ours.alignment().items():
        found |= {f"{name} seen {key}": x.clone() for key, x in seen._asdict().items() if x is not None}
    return found | {f"lr {i}": float(group["lr"]) for i, group in enumerate(optimizer.param_groups)}


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same entries and the same bits."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("lr "):
            assert actual[name] == value, name
        else:
            assert_bits_equal(_to_numpy(actual[name]), _to_numpy(value), name)


def _to_numpy(x: Any) -> np.ndarray:
    """NumPy and torch do not know each other's bfloat16, so the bits travel as integers."""
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def assert_same_run(actual: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """As many steps, each with the same bits."""
    assert len(actual) == len(expected)
    for step, (a, b) in enumerate(zip(actual, expected, strict=True), 1):
        try:
            assert_same(a, b)
        except AssertionError as error:
            error.add_note(f"at step {step} of {len(expected)}")
            raise
