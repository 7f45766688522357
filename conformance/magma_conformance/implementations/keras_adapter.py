"""`magma_keras.MaskedOptimizer` under test, on each Keras backend; each is imported in its own process."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import keras
import numpy as np
from magma_keras import MaskedOptimizer
from magma_keras.memory import POWERS

from magma_conformance.implementations.inductor import compiler_missing
from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.task import Record, Task
from magma_core import Report
from magma_core.state_file.config import base_from_plain, rule_from_plain


class OptimizerImplementation:
    """``apply`` as one program that also returns what it observed; the learning rate is a variable.

    Keras puts its variables on a GPU if there is one, even beside tensors in host memory. So everything runs under the
    mode's device.
    """

    def __init__(self, name: str, mode: Mode, device: str = "cpu") -> None:
        self.name, self.mode, self.device = name, mode, device
        self._made: tuple[str, Observed, Any] | None = None  # for the last key

    def refuses(self, task: Task) -> str | None:
        """Refuse steps beyond Keras's counter."""
        kind = keras.backend.standardize_dtype("int")  # of `iterations`
        if task.first_step + len(task.gradients) - 1 > np.iinfo(kind).max:
            return f"Keras counts steps in {kind} on this backend"
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
        for variable, array in zip(variables, task.params.values(), strict=True):
            variable.assign(self.mode.put(array))
        _restore(optimizer, task)
        records = []
        for gradients, rate in zip(task.gradients, task.learning_rates, strict=True):
            optimizer.learning_rate = rate
            seen = program([self.mode.put(gradients[name]) for name in task.params])
            records.append(self._record(optimizer, seen))
        return records

    def _program(self, optimizer: "Observed") -> Callable[[Any], Any]:
        """One step, which returns what it observed."""

        def step(grads: Any) -> Sequence[Report]:
            optimizer.apply(grads)
            return optimizer.last.seen

        return step

    def _record(self, optimizer: "Observed", seen: Sequence[Report]) -> Record:
        get, memory = self.mode.get, optimizer._memory
        record: Record = {}
        for variable, plan, own, report in zip(
            optimizer._trainable_variables, memory.plans, memory.own, seen, strict=True
        ):
            fields = own | memory.powers | {"param": variable}
            arrays = {field: get(x.value) for field, x in fields.items()}
            arrays |= {field: get(x) for field, x in report._asdict().items() if x is not None}
            record |= {f"{plan.name}/{field}": np.array(x) for field, x in arrays.items()}
        return record


class _Last:
    """What the last step observed, per variable."""

    seen: Sequence[Report] = ()


class Observed(MaskedOptimizer):
    """An optimizer that remembers what its last step observed.

    `alignment` gives the same, but computes the whole step again: compiling would take twice as long.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.last = _Last()  # Keras would wrap lists that are attributes of the optimizer

    def _step(self, grads: Any, variables: Any, learning_rate: Any) -> Any:
        params, states, self.last.seen = super()._step(grads, variables, learning_rate)
        return params, states, self.last.seen


class Compiled(OptimizerImplementation):
    """``apply`` as a tf.function."""

    def _program(self, optimizer: Observed) -> Callable[[Any], Any]:
        tf = import_module("tensorflow")
        return tf.function(super()._program(optimizer), autograph=False, jit_compile=self.mode.name == "xla")


class Stateless(OptimizerImplementation):
    """``stateless_apply`` on JAX."""

    def _program(self, optimizer: Observed) -> Callable[[Any], Any]:
        def step(params: Any, state: Any, grads: Any) -> Any:
            return *optimizer.stateless_apply(state, grads, params), optimizer.last.seen

        compiled = self.mode.compile(step)

        def program(grads: Any) -> Sequence[Report]:
            own, state = optimizer._trainable_variables, optimizer.variables
            params, values, seen = compiled([x.value for x in own], [x.value for x in state], grads)
            for variable, value in zip([*own, *state], [*params, *values], strict=True):
                variable.assign(value)
            return seen

        return program


class Dynamo(OptimizerImplementation):
    """``apply`` under torch.compile."""

    def refuses(self, task: Task) -> str | None:
        """Also refuse on the CPU if there is no C++ compiler."""
        missing = None if self.mode.hardware else compiler_missing()
        return missing or super().refuses(task)

    def _program(self, optimizer: Observed) -> Callable[[Any], Any]:
        torch = import_module("torch")
        torch.compiler.reset()
        return torch.compile(super()._program(optimizer), dynamic=False)


def _optimizer(task: Task) -> Observed:
    """Variables get names of their own: Keras rejects "/" in names, and empty ones."""
    names = {f"p{i}": name for i, name in enumerate(task.params)}
    optimizer = Observed(
        1.0,
        rule_from_plain(task.rule),
        base_from_plain(task.base),
        seed=task.seed,
        block_axes={f"^{own}$": task.block_axes[name] for own, name in names.items()},
        mask_names=names,
    )
    variables = [
        keras.Variable(x.astype("float32"), dtype=str(x.dtype), name=own)
        for own, x in zip(names, task.params.values(), strict=True)
    ]
    optimizer.build(variables)
    return optimizer


def _restore(optimizer: Observed, task: Task) -> None:
    """Load the task's initial state."""
    memory = optimizer._memory
    optimizer.iterations.assign(task.first_step - 1)
    for plan, own in zip(memory.plans, memory.own, strict=True):
        for field, x in (own | memory.powers).items():
            if task.state is not None:
                x.assign(task.state[f"{plan.name}/{field}"])
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
    """The optimizer in one mode of this process's backend; LookupError if there is no such device."""
    backend = keras.backend.backend()
    mode = next(mode for mode in BACKENDS[backend][1](device) if mode.name == mode_name)
    return _KINDS.get((backend, mode_name), OptimizerImplementation)(f"magma_keras {backend}-{mode_name}", mode, device)
