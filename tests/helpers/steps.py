"""Shared by the tests of steps: bases, rules, parameters of every layout, and runs on any backend."""

from typing import Any

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal

import magma_core
from backends import BACKENDS, load_backend
from magma_core import SGD, Adam, AdamW, LaProp, Report, RMSProp, State, damping, dense, magma, score_survival
from magma_core import skip_update as skip

BASES = [
    SGD(),
    SGD(nesterov=True, weight_decay=0.1),
    RMSProp(weight_decay=0.1),
    Adam(),
    AdamW(),
    LaProp(weight_decay=0.1),
]
RULES = [
    dense(),
    skip(p=0.3),
    magma(),
    magma(momentum="before", decay="dense", tau=0.5),
    damping(),
    score_survival(),
    score_survival(damped=True, decay="dense"),
]
PAIRS = [(AdamW(), magma()), (SGD(nesterov=True, weight_decay=0.1), skip(p=0.3, decay="dense"))]
PAIRS += [(RMSProp(weight_decay=0.1), score_survival(damped=True)), (LaProp(), damping(momentum="before"))]

# One parameter cut into rows, one whole, one whose axes are out of order, one that is not masked, a scalar, and one
# with no elements: each must find its own among the blocks of all.
LAYOUT = {
    "w": ((6, 8), (0,)),
    "v": ((4,), ()),
    "u": ((2, 3, 4), (2, 0)),
    "plain": ((4,), None),
    "scalar": ((), ()),
    "empty": ((0, 3), (0,)),
}
AXES = {name: axes for name, (_, axes) in LAYOUT.items()}
NAMES = list(LAYOUT)


def label(value: Any) -> str:
    """``SGD-nesterov``, ``p-score``: enough to tell the cases apart."""
    if isinstance(value, magma_core.Rule):
        return f"{value.survival}.{value.weight}.{value.momentum}.{value.decay}"
    if isinstance(value, tuple):
        return "+".join(map(label, value))
    return type(value).__name__ + ("nesterov" if getattr(value, "nesterov", False) else "")


def on_every_backend(name: str, values: list[Any], *, jax: int) -> Any:
    """Parametrise over backends and values, over the first ``jax`` values on JAX: eager, it compiles each
    operation for each shape, and what is compared here does not depend on the framework."""
    cases = [
        pytest.param(backend, value, id=f"{label(value)}-{backend}")
        for backend in BACKENDS
        for value in (values[:jax] if backend == "jax" else values)
    ]
    return pytest.mark.parametrize(("backend", name), cases, indirect=["backend"])


def parameters(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, (shape, _) in LAYOUT.items()}


def gradients(step: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Of many magnitudes, with zeros, subnormals and values on both sides of 2⁻¹⁰⁰."""
    rng = np.random.default_rng(step)
    grads = {}
    for name, (shape, _) in LAYOUT.items():
        x = np.ldexp(rng.normal(size=shape), rng.integers(-12, 3, shape)).astype(dtype)
        flat = x.reshape(-1)
        flat[3:7] = np.array([0.0, -0.0, 2.0**-101, 1e-40], dtype)[: len(flat[3:7])]
        grads[name] = x
    return grads


def to_numpy(backend: Any, results: Any) -> Any:
    """The same nest of lists and NamedTuples with NumPy arrays."""
    if results is None:
        return None
    if isinstance(results, State | Report):
        return type(results)(*(to_numpy(backend, x) for x in results))
    if isinstance(results, list | tuple):
        return [to_numpy(backend, x) for x in results]
    return backend.to_numpy(results)


def from_numpy(backend: Any, results: Any) -> Any:
    if results is None:
        return None
    if isinstance(results, State):
        return State(*(from_numpy(backend, x) for x in results))
    return [from_numpy(backend, x) for x in results] if isinstance(results, list) else backend.from_numpy(results)


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Bits of whole nests, with the path to the first difference."""
    if expected is None:
        assert actual is None, where
    elif isinstance(expected, list | tuple):
        fields = getattr(expected, "_fields", range(len(expected)))
        assert len(actual) == len(expected), where
        for field, a, b in zip(fields, actual, expected, strict=True):
            assert_same(a, b, f"{where}.{field}")
    else:
        assert_bits_equal(actual, expected, where)


class Run:
    """An optimisation of ``names``, step by step; ``results`` are NumPy arrays (params, states, reports)."""

    def __init__(self, backend: Any, base: Any, rule: Any, names: list[str] = NAMES, dtype: Any = np.float32):
        self.backend, self.names, self.dtype, self.step = backend, names, dtype, 0
        self.options = {"base": base, "rule": rule, "xp": backend.xp}
        self.params = [backend.from_numpy(parameters(dtype)[name]) for name in names]
        self.states = [
            magma_core.init(p, block_axes=AXES[name], name=name, **self.options)
            for p, name in zip(self.params, names, strict=True)
        ]
        self.reports: list[Report] = []

    def advance(self, steps: int = 1, seed: int = 7, lr: float = 0.05) -> "Run":
        for _ in range(steps):
            self.step += 1
            given = gradients(self.step, self.dtype)
            self.params, self.states, self.reports = magma_core.update_all(
                self.params,
                [self.backend.from_numpy(given[name]) for name in self.names],
                self.states,
                names=self.names,
                step=self.step,
                lr=lr,
                seed=seed,
                block_axes={name: AXES[name] for name in self.names},
                **self.options,
            )
        return self

    @property
    def results(self) -> Any:
        return to_numpy(self.backend, [self.params, self.states, self.reports])


def one_step(backend: Any, param: np.ndarray, grad: np.ndarray, axes: Any, base: Any, rule: Any, **changes: Any) -> Any:
    """(param, state, report) as NumPy arrays after the first step."""
    options = {"base": base, "rule": rule, "block_axes": axes, "xp": backend.xp}
    p = backend.from_numpy(param)
    arguments = {"name": "w", "step": 1, "lr": 0.1, "seed": 3} | changes
    result = magma_core.update(p, backend.from_numpy(grad), magma_core.init(p, **options), **arguments, **options)
    return to_numpy(backend, result)


HOSTILE = np.float32([np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38, 2.0**-149, -(2.0**-127), 2.0**-100])
HOSTILE = np.concatenate([HOSTILE, np.float32([2.0**-101, 0.0, -0.0, 1.0, 2.0**64, -(2.0**-64), 1e-8, 2.0**-60])])


def keep_of(shape: tuple[int, ...], axes: Any = (0,), rule: Any = None, **changes: Any) -> np.ndarray:
    x = np.zeros(shape, np.float32)
    return one_step(load_backend("numpy"), x, x, axes, SGD(), rule or skip(), **changes)[2].keep


def any_bits(kind: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Random patterns with −0 and the smallest and largest subnormals; ``kind`` says whether with NaNs."""
    bits = 8 * dtype.itemsize
    x = np.random.default_rng(11).integers(0, 2**bits, shape).astype(f"u{dtype.itemsize}")
    x[:, :3] = [1 << (bits - 1), 1, (1 << (bits - 1)) + 1]
    x = x.view(dtype)
    with np.errstate(invalid="ignore"):
        return x if kind == "nan" else np.where(np.isfinite(x), x, np.ones((), dtype))
