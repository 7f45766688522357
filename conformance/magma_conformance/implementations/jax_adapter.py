"""`magma_jax.by_rule` under test: jitted, in C, through `optax.apply_updates`, in a scan, by kernels, and sharded."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from magma_jax import MagmaState, MagmaTransformation, by_rule
from magma_jax.gpu import tiles

from magma_conformance.implementations.modes import BACKENDS, Mode
from magma_conformance.implementations.other_process import OtherProcess
from magma_conformance.task import Implementation, Record, Task
from magma_core import State
from magma_core.state import POWERS
from magma_core.state_file.config import base_from_plain, rule_from_plain

DEVICES = 8
_AXES = {"a": 4, "b": 2}
_LAST_STEP = 2**31 - 1


class OptimizerImplementation:
    """One jitted step at a time with everything donated; the learning rate is an argument."""

    KERNELS: ClassVar[bool | None] = False

    def __init__(self, name: str, mode: Mode) -> None:
        self.name, self.mode = name, mode
        self._compiled: tuple[str, Callable[..., Any]] | None = None  # for the last key

    def refuses(self, task: Task) -> str | None:
        """Refuse steps beyond optax's counter."""
        if task.first_step + len(task.gradients) - 1 > _LAST_STEP:
            return "optax counts steps in int32"
        return None

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        if self._compiled is None or self._compiled[0] != task.key:
            self._compiled = task.key, self._compile(task)
        params = {name: self._put(array.copy()) for name, array in task.params.items()}
        gradients = [{name: self._put(array) for name, array in step.items()} for step in task.gradients]
        rates = [jnp.float32(rate) for rate in task.learning_rates]
        return [_record(*one) for one in self._follow(params, gradients, rates, self._state(task, params))]

    def _optimizer(self, task: Task, rate: Any) -> MagmaTransformation:
        return _optimizer(task, rate, self.KERNELS)

    def _compile(self, task: Task) -> Callable[..., Any]:
        return jax.jit(lambda *arguments: self._step(task, *arguments), donate_argnums=(0, 2))

    def _step(self, task: Task, params: Any, grads: Any, state: MagmaState, rate: Any) -> Any:
        optimizer = self._optimizer(task, rate)
        seen = optimizer.alignment(grads, state, params)
        return *optimizer.step(params, grads, state), seen

    def _follow(self, params: Any, gradients: Sequence[Any], rates: Sequence[Any], state: MagmaState) -> list[Any]:
        assert self._compiled is not None
        results = []
        for grads, rate in zip(gradients, rates, strict=True):
            params, state, seen = self._compiled[1](params, grads, state, rate)
            results.append(jax.tree.map(self.mode.get, (params, state, seen)))
        return results

    def _put(self, array: np.ndarray) -> Any:
        return self.mode.put(array)

    def _state(self, task: Task, params: Any) -> MagmaState:
        state = self._optimizer(task, 1.0).init(params)
        if task.state is None:
            return state
        given, any_name = task.state, next(iter(task.params))

        def restore(field: str) -> Any:
            tree = getattr(state, field)
            return tree and {name: x if x is None else self._put(given[f"{name}/{field}"]) for name, x in tree.items()}

        powers = {key: self._put(given[f"{any_name}/{key}"]) for key in POWERS if getattr(state, key) is not None}
        trees = {field: restore(field) for field in ("mu", "nu", "score")}
        return state._replace(count=jnp.int32(task.first_step - 1), **powers, **trees)


class Native(OptimizerImplementation):
    """Steps in C, as by default on a CPU."""

    KERNELS = None


class Applied(OptimizerImplementation):
    """Updates in float32, added by `optax.apply_updates`."""

    def refuses(self, task: Task) -> str | None:
        """Refuse the two cases that no addition can give, see `magma_jax.updates`."""
        if task.rule["decay"] == "dense" and task.base.get("weight_decay"):
            return "dense decay is not an update to add"
        if any(np.any((x != 0) & (abs(x.astype(np.float32)) < 2.0**-126)) for x in task.params.values()):
            return "subnormal parameters are lost in an addition"
        return super().refuses(task)

    def _step(self, task: Task, params: Any, grads: Any, state: MagmaState, rate: Any) -> Any:
        optimizer = self._optimizer(task, rate)
        seen = optimizer.alignment(grads, state, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, seen


class NativeApplied(Applied):
    """The same, in C."""

    KERNELS = None


class Scanned(OptimizerImplementation):
    """All steps in one `jax.lax.scan`."""

    def _compile(self, task: Task) -> Callable[..., Any]:
        def turn(carry: Any, inputs: Any) -> Any:
            params, state, seen = self._step(task, carry[0], inputs[0], carry[1], inputs[1])
            return (params, state), (params, state, seen)

        return jax.jit(lambda carry, inputs: jax.lax.scan(turn, carry, inputs), donate_argnums=0)

    def _follow(self, params: Any, gradients: Sequence[Any], rates: Sequence[Any], state: MagmaState) -> list[Any]:
        assert self._compiled is not None
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *gradients)
        _, history = self._compiled[1]((params, state), (stacked, jnp.stack(rates)))
        history = jax.tree.map(self.mode.get, history)
        return [jax.tree.map(lambda x, i=i: x[i], history) for i in range(len(gradients))]


class Sharded(OptimizerImplementation):
    """Every array is sharded over a mesh of four by two devices, as far as its extents allow."""

    def __init__(self, name: str, mode: Mode) -> None:
        super().__init__(name, mode)
        self._mesh = Mesh(np.array(jax.devices("cpu")).reshape(tuple(_AXES.values())), tuple(_AXES))

    def _put(self, array: np.ndarray) -> Any:
        free, spec = dict(_AXES), []
        for extent in array.shape:
            axis = next((axis for axis, size in free.items() if extent and extent % size == 0), None)
            free.pop(axis or "", None)
            spec.append(axis)
        return jax.device_put(array, NamedSharding(self._mesh, PartitionSpec(*spec)))


class Kernels(OptimizerImplementation):
    """`magma_jax.gpu.kernels`, even for the cases' small blocks, where they do not pay.

    Tiles are small enough that these blocks have several.
    """

    KERNELS = True
    LEAST, TILE = 16, 32
    """Elements of a block and of a tile."""

    def run(self, task: Task) -> list[Record]:
        """The record after each step."""
        with patch.multiple(tiles, LEAST=self.LEAST, TILE=self.TILE):
            return super().run(task)


def _optimizer(task: Task, rate: Any, kernels: bool | None) -> MagmaTransformation:
    return by_rule(
        rate,
        rule_from_plain(task.rule),
        base_from_plain(task.base),
        seed=task.seed,
        block_axes=lambda name, _: task.block_axes[name],
        float32_updates=True,
        kernels=kernels,
    )


def _record(params: Any, state: MagmaState, seen: Any) -> Record:
    record: Record = {}
    for name, param in params.items():
        of_state = {field: getattr(state, field) for field in State._fields}
        fields = {key: x if x is None or key in POWERS else x[name] for key, x in of_state.items()}
        fields["param"] = param
        if name in seen:
            fields |= {"sums": seen[name].sums, "cosine": seen[name].cosine, "keep": seen[name].keep}
        record |= {f"{name}/{field}": np.asarray(x) for field, x in fields.items() if x is not None}
    return record


def _mode(device: str) -> Mode:
    return next(mode for mode in BACKENDS["jax"][1](device) if mode.name == "jit")


def local() -> Implementation:
    """The sharded implementation, in its own process: JAX fixes the number of devices when it starts."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    return Sharded("magma_jax sharded", _mode("cpu"))


def implementation(mode: str, device: str) -> Implementation:
    """The optimizer in one mode of `magma_conformance.implementations.adapters.ADAPTERS`."""
    name = f"magma_jax {mode}"
    if mode == "sharded":
        if device != "cpu":
            raise LookupError(f"{mode} is tested with virtual devices of the CPU")
        return OtherProcess(name, __name__)
    if mode == "kernels" and device == "cpu":
        raise LookupError("kernels are for CUDA: --device cuda")
    if mode.startswith("native") and device != "cpu":
        raise LookupError("steps in C are for the CPU")
    kinds = {
        "jit": OptimizerImplementation,
        "apply": Applied,
        "scan": Scanned,
        "native": Native,
        "native-apply": NativeApplied,
        "kernels": Kernels,
    }
    return kinds[mode](name, _mode(device))
