"""The reference for an optimizer: magma_core on NumPy, through the suite's interface.

It gets the gradients that reached the step, so that Keras's own arithmetic before it (clipping, accumulation, the model
itself) need not be reproducible.
"""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
from magma_conformance.bits import assert_bits_equal
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.task import Task
from magma_keras import MaskedOptimizer
from magma_numpy import namespace as xp

import magma_core
from magma_core import Base, Rule, State
from magma_core.config import SEED
from magma_core.state_file.config import base_to_plain, rule_to_plain

SHAPES = {"w": (4, 3), "b": (3,), "plain": (3,)}
AXES: dict[str, Any] = {"w": (0,), "plain": None}
"""Rows, one block, and a variable whose update is that of the base alone; also as an argument of an optimizer."""

_SUFFIXES = {"mu": "momentum", "nu": "velocity", "score": "score"}
_POWERS = {"mu_power": "beta_1_power", "nu_power": "beta_2_power"}
_NUMPY = open_implementation("numpy", "eager", "cpu")


def host(x: Any) -> np.ndarray:
    """A variable or a tensor on NumPy's side; slices of embeddings as the whole."""
    if hasattr(x, "todense"):
        x = x.todense()
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(x)))


def variables(dtype: str = "float32", shapes: Any = None, **options: Any) -> list[Any]:
    """Variables with values of their own, named as their shapes are."""
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=shape), dtype=dtype, name=name, **options)
        for name, shape in (shapes or SHAPES).items()
    ]


def gradients(step: int, of: Any) -> list[Any]:
    """Tensors of many magnitudes, with zeros, for variables or arrays."""
    rng = np.random.default_rng(step)
    made = []
    for x in of:
        grad = np.asarray(np.ldexp(rng.normal(size=x.shape), rng.integers(-8, 2, x.shape)), np.float32)
        grad.reshape(-1)[:1] *= step % 2
        made.append(keras.ops.convert_to_tensor(grad, dtype=keras.backend.standardize_dtype(x.dtype)))
    return made


def weights(optimizer: Any) -> list[np.ndarray]:
    return [host(x) for x in optimizer.variables]


def check_same(actual: Any, expected: Any, label: str = "") -> None:
    """The same bits in two lists of arrays, variables or tensors."""
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_bits_equal(host(a), host(b), f"{label} {i}")


def any_differ(actual: Any, expected: Any) -> bool:
    return any(not np.array_equal(host(a), host(b)) for a, b in zip(actual, expected, strict=True))


class Recorder:
    """The steps that were made: (gradients by path, learning rate), NumPy arrays."""

    def __init__(self, monkeypatch: Any) -> None:
        self.steps: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        original = MaskedOptimizer._update

        def update(optimizer: Any, grads: Any, variables: Any, learning_rate: Any) -> None:
            seen = {variable.path: host(grad) for grad, variable in zip(grads, variables, strict=True)}
            self.steps.append((seen, host(learning_rate).astype(np.float32)))
            original(optimizer, grads, variables, learning_rate)

        monkeypatch.setattr(MaskedOptimizer, "_update", update)


class Reference:
    """The same steps by magma_core on NumPy, by the paths of the variables.

    Each variable is a task of its own, as only then one may decay and another not; what all of them share, the running
    products, moves at every step, also for variables without a gradient.
    """

    def __init__(
        self,
        of: Any,
        base: Base,
        rule: Rule,
        axes: Any = None,
        *,
        seed: int = SEED,
        no_decay: Any = (),
        names: Any = None,
    ) -> None:
        self.base, self.rule, self.seed, self.no_decay = base, rule, seed, no_decay
        self.names = {x.path: (names or {}).get(x.path, x.path) for x in of}
        self.axes = {x.path: (AXES if axes is None else axes).get(x.path, ()) for x in of}
        self.params = {x.path: host(x) for x in of}
        self.count = 0
        self.reports: dict[str, dict[str, np.ndarray]] = {}
        self.states = {
            path: magma_core.init(
                param,
                base=base,
                rule=rule,
                block_axes=self.axes[path],
                xp=xp,
            )._asdict()
            for path, param in self.params.items()
        }

    def step(self, grads: Any, lr: Any) -> "Reference":
        """One step of all whose paths ``grads`` has."""
        self.count += 1
        self.reports = {}
        powers = {}
        for path, grad in grads.items():
            name = self.names[path]
            base = replace(self.base, weight_decay=0.0) if path in self.no_decay else self.base
            state = {f"{name}/{field}": x for field, x in self.states[path].items() if x is not None}
            task = Task(
                key=repr((path, self.axes[path], base, self.rule, self.seed, grad.shape)),
                params={name: self.params[path]},
                gradients=[{name: grad.astype(self.params[path].dtype)}],
                learning_rates=[float(lr)],
                base=base_to_plain(base),
                rule=rule_to_plain(self.rule),
                block_axes={name: self.axes[path]},
                seed=self.seed,
                first_step=self.count,
                state=state,
            )
            [record] = _NUMPY.run(task)
            fields = {label.rpartition("/")[2]: x for label, x in record.items()}
            self.params[path] = fields.pop("param")
            self.states[path] = {field: fields.pop(field, None) for field in State._fields}
            self.reports[path] = fields
            powers = {field: self.states[path][field] for field in _POWERS}
        for state in self.states.values():
            state.update(powers)
        return self

    def check(self, of: Any, optimizer: Any) -> None:
        """The same bits of the variables and of everything that the optimizer remembers."""
        own = {x.name: x for x in optimizer.variables}
        for variable in of:
            path = variable.path
            assert_bits_equal(host(variable), self.params[path], path)
            for field, x in self.states[path].items():
                name = _POWERS.get(field) or f"{path.replace('/', '_')}_{_SUFFIXES[field]}"
                if x is None:
                    assert name not in own or field in _POWERS
                else:
                    assert_bits_equal(host(own[name]), x, f"{field} of {path}")
        assert int(optimizer.iterations) == self.count


class Run:
    """An optimizer on variables of its own, and the reference beside it."""

    def __init__(self, optimizer: Any, of: Any = None, axes: Any = None, **options: Any) -> None:
        self.optimizer, self.variables = optimizer, variables() if of is None else of
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        self.reference = Reference(self.variables, inner.base, inner.rule, axes, **options)
        self.calls = 0

    def apply(self, grads: Any = None) -> "Run":
        """A call of ``apply``, which may be less than a step."""
        self.calls += 1
        self.optimizer.apply(gradients(self.calls, self.variables) if grads is None else grads, self.variables)
        return self

    def check(self) -> None:
        self.reference.check(self.variables, getattr(self.optimizer, "inner_optimizer", self.optimizer))

    def step(self, recorder: Recorder) -> "Run":
        """A call that is a step, and the comparison."""
        self.apply()
        self.reference.step(*recorder.steps[-1])
        self.check()
        return self
