"""Every fence in docs/numerics.md is still needed: without it, some mode differs from NumPy."""

from dataclasses import replace

import magma_conformance.implementations.core as core
import numpy as np
import pytest
from fence_tasks import mismatch, mode, task

import magma_core
from magma_core import numerics
from magma_core.numerics import Real
from magma_core.state_file.config import base_from_plain, rule_from_plain


def without_fence(self: Real) -> object:
    return self._value


def without_hiding(self: Real, array: object, other: object) -> object:
    return array


def constant_zero(bits: object, /, *, xp: object) -> object:
    return xp.full((), 0, dtype=xp.int32)


def second_bit(bits: object, /, *, xp: object) -> object:
    """Of a square: also always 0, and known to be."""
    return xp.bitwise_and(xp.multiply(bits, bits), 2)


# fence, where it is, what it is replaced by, the mode that then differs, the format that shows it
DELETIONS = [
    ("F1", Real, "fenced", without_fence, ("jax", "jit"), "float32"),
    ("F1", Real, "fenced", without_fence, ("jax", "scan"), "float32"),
    ("F1", Real, "fenced", without_fence, ("tensorflow", "xla"), "float32"),
    ("F1: zero", numerics, "run_time_zero", constant_zero, ("jax", "jit"), "float32"),
    ("F1: zero", numerics, "run_time_zero", second_bit, ("jax", "jit"), "float32"),
    ("F2", Real, "_hidden", without_hiding, ("tensorflow", "graph"), "float32"),
    ("F5", Real, "flush", lambda self: self, ("jax", "jit"), "float32"),
    ("F5", Real, "flush", lambda self: self, ("tensorflow", "eager"), "float32"),
]


@pytest.mark.parametrize(
    ("fence", "owner", "name", "substitute", "where", "fmt"),
    DELETIONS,
    ids=[f"{d[0]}-{' '.join(d[4])}-{d[3].__name__.strip('<>')}" for d in DELETIONS],
)
def test_fence_is_needed(monkeypatch, fence, owner, name, substitute, where, fmt):
    there = mode(*where)
    assert mismatch(there, task(fmt)) is None
    monkeypatch.setattr(owner, name, substitute)
    assert mismatch(there, task(fmt)) is not None, f"{fence} is no longer needed in {' '.join(where)}"


def test_f3_torch_sqrt_is_needed(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from magma_torch import namespace

    there = mode("torch", "eager")
    assert mismatch(there, task()) is None
    monkeypatch.setattr(namespace, "sqrt", torch.sqrt)
    assert mismatch(there, task()) is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own, from inductor's imports
def test_f4_narrowing_is_needed(monkeypatch):
    """Two steps in one graph: inductor would carry the parameter over in float32."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from magma_torch import namespace

    there = mode("torch", "compile")
    what = task("bfloat16", ["normal", "normal"])
    if reason := core.implementation(there).refuses(what):
        pytest.skip(reason)

    def two_steps() -> np.ndarray:
        params = [there.put(what.params["w"])]
        options = {"base": base_from_plain(what.base), "rule": rule_from_plain(what.rule), "xp": namespace}
        states = [magma_core.init(params[0], block_axes=None, **options)]
        plans = magma_core.plan_all(params, names=["w"], seed=0, block_axes={"w": None}, **options)

        def both(params, states, first, second):
            for step, grads in ((1, first), (2, second)):
                params, states, _ = magma_core.update_planned(
                    plans, params, grads, states, step=step, lr=0.02, xp=namespace
                )
            return params[0]

        torch.compiler.reset()
        grads = [[there.put(g["w"])] for g in what.gradients]
        return there.get(torch.compile(both, fullgraph=True)(params, states, *grads))

    expected = core.implementation(mode("numpy", "eager")).run(replace(what, block_axes={"w": None}))[-1]["w/param"]
    np.testing.assert_array_equal(two_steps().view(np.int16), expected.view(np.int16))
    monkeypatch.setattr(namespace, "astype", lambda x, dtype: x.to(dtype))
    assert (two_steps().view(np.int16) != expected.view(np.int16)).any()
