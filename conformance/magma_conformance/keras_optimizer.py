"""`magma_keras.MaskedOptimizer` under test, on each backend of Keras; imported in processes of their own."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import keras
import numpy as np
from magma_keras import Alignment, MaskedOptimizer
from magma_keras.memory import POWERS

from magma_conformance.modes import BACKENDS, Mode
from magma_conformance.task import Record, Task
from magma_core.plain import base_from_plain, rule_from_plain


class OptimizerImplementation:
    """`alignment`, then ``apply``, in one program; the learning rate is a variable.

    Keras makes its variables on a GPU wherever there is one, also beside tensors that were put in memory, so all is
    done where the mode is.
    """

    def __init__(self, name: str, mode: Mode, device: str = "cpu") -> None:
        self.name, self.mode, self.device = name, mode, device
        self._made: tuple[str, MaskedOptimizer, Any] | None = None  # for the last key

    def refuses(self, task: Task) -> str | None:
        """Nothing."""
        return None

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        with keras.device(self.device.replace("cuda", "gpu")):
            return self._follow(task)

    def _follow(self, task: Task) -> list[Record]:
        if self._made is None or self._made[0] != task.key:
            optimizer = _optimizer(task)
            self._made = task.key, optimizer, self._program(optimizer)
        _, optimizer, program = self._made
        variables = optimizer._trainable_variables
        for variable in variables:
            variable.assign(self.mode.put(task.params[variable.name]))
        _restore(optimizer, task)
        records = []
        for gradients, rate in zip(task.gradients, task.learning_rates, strict=True):
            optimizer.learning_rate = rate
            seen = program([self.mode.put(gradients[variable.name]) for variable in variables])
            records.append(self._record(optimizer, seen))
        return records

    def _program(self, optimizer: MaskedOptimizer) -> Callable[[Any], Any]:
        """One step, which returns what it saw."""

        def step(grads: Any) -> dict[str, Alignment]:
            seen = optimizer.alignment(grads)
            optimizer.apply(grads)
            return seen

        return step

    def _record(self, optimizer: MaskedOptimizer, seen: dict[str, Alignment]) -> Record:
        get, memory = self.mode.get, optimizer._memory
        record: Record = {}
        for variable, plan, own in zip(optimizer._trainable_variables, memory.plans, memory.own, strict=True):
            fields = own | memory.powers | {"param": variable}
            arrays = {field: get(x.value) for field, x in fields.items()}
            if plan.name in seen:
                it = seen[plan.name]
                parts = {"sums": it.sums, "cosine": it.cosine, "keep": it.keep}
                arrays |= {field: get(x) for field, x in parts.items() if x is not None}
            record |= {f"{variable.name}/{field}": np.array(x) for field, x in arrays.items()}
        return record


class Compiled(OptimizerImplementation):
    """The same as a function of TensorFlow."""

    def _program(self, optimizer: MaskedOptimizer) -> Callable[[Any], Any]:
        tf = import_module("tensorflow")
        return tf.function(super()._program(optimizer), autograph=False, jit_compile=self.mode.name == "xla")


class Stateless(OptimizerImplementation):
    """``stateless_apply`` on JAX."""

    def _program(self, optimizer: MaskedOptimizer) -> Callable[[Any], Any]:
        def step(params: Any, state: Any, grads: Any) -> Any:
            mapping = [*zip(optimizer._trainable_variables, params, strict=True)]
            with keras.StatelessScope(state_mapping=[*mapping, *zip(optimizer.variables, state, strict=True)]):
                seen = optimizer.alignment(grads)
            return *optimizer.stateless_apply(state, grads, params), seen

        compiled = self.mode.compile(step)

        def program(grads: Any) -> dict[str, Alignment]:
            own, state = optimizer._trainable_variables, optimizer.variables
            params, values, seen = compiled([x.value for x in own], [x.value for x in state], grads)
            for variable, value in zip([*own, *state], [*params, *values], strict=True):
                variable.assign(value)
            return seen

        return program


class Dynamo(OptimizerImplementation):
    """Under torch.compile."""

    def refuses(self, task: Task) -> str | None:
        """Everything on the CPU where there is no C++ compiler."""
        return None if self.mode.hardware else import_module("magma_torch.compiler").compiler_missing()

    def _program(self, optimizer: MaskedOptimizer) -> Callable[[Any], Any]:
        torch = import_module("torch")
        torch.compiler.reset()
        return torch.compile(super()._program(optimizer), dynamic=False)


def _optimizer(task: Task) -> MaskedOptimizer:
    axes = {f"^{re.escape(name)}$": axes for name, axes in task.block_axes.items()}
    optimizer = MaskedOptimizer(
        1.0, rule_from_plain(task.rule), base_from_plain(task.base), seed=task.seed, block_axes=axes
    )
    variables = [keras.Variable(x.astype("float32"), dtype=str(x.dtype), name=name) for name, x in task.params.items()]
    optimizer.build(variables)
    return optimizer


def _restore(optimizer: MaskedOptimizer, task: Task) -> None:
    """The state from which the task starts."""
    memory = optimizer._memory
    optimizer.iterations.assign(task.first_step - 1)
    for variable, plan, own in zip(optimizer._trainable_variables, memory.plans, memory.own, strict=True):
        for field, x in (own | memory.powers).items():
            if task.state is not None:
                x.assign(task.state[f"{variable.name}/{field}"])
            else:
                start = 1.0 if field in POWERS else plan.rule.initial_score if field == "score" else 0.0
                x.assign(np.full(x.shape, start, np.float32))


_KINDS: dict[tuple[str, str], type[OptimizerImplementation]] = {
    ("tensorflow", "graph"): Compiled,
    ("tensorflow", "xla"): Compiled,
    ("jax", "eager"): Stateless,
    ("jax", "jit"): Stateless,
    ("torch", "compile"): Dynamo,
}


def local(mode_name: str, device: str) -> OptimizerImplementation:
    """The optimizer in one mode of the backend of this process; LookupError if there is no such device."""
    backend = keras.backend.backend()
    mode = next(mode for mode in BACKENDS[backend][1](device) if mode.name == mode_name)
    return _KINDS.get((backend, mode_name), OptimizerImplementation)(f"magma_keras {backend}-{mode_name}", mode, device)
