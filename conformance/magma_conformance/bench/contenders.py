"""The contenders of the benchmark: magma_core in each mode, our optimizers, and the frameworks' own AdamW."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from magma_conformance.bench import memory
from magma_conformance.bench.arrays import PARAM_SCALE, Gradients, draw, wait
from magma_conformance.bench.workload import Workload
from magma_conformance.implementations.modes import Mode
from magma_core import AdamW, init, magma, plan_all, update_planned
from magma_core.optional import require

MAGMA = "magma_core"
MAGMA_TORCH = "magma_torch"
MAGMA_JAX = "magma_jax step"
MAGMA_JAX_UPDATES = "magma_jax update"
MAGMA_JAX_XLA = "magma_jax step by XLA"
MAGMA_KERAS = "magma_keras"
OURS = (MAGMA, MAGMA_TORCH, MAGMA_JAX, MAGMA_JAX_UPDATES, MAGMA_JAX_XLA, MAGMA_KERAS)
"""The core's functions compiled directly, and the adapters' optimizers."""

BASELINES = {"torch": "AdamW fused", "jax": "optax adamw", "tensorflow": "Keras AdamW"}
"""The baseline of each framework."""

_BASE, _RULE, _LEARNING_RATE = AdamW(), magma(), 1e-3


class Step(NamedTuple):
    """A contender, ready to run.

    Attributes:
        run: starts one step; it may return before the step is done.
        wait: blocks until it is.
        renew: draws new gradients.
        extra_bytes: runs a step and returns its peak memory beyond inputs and state; None if unknown.
    """

    run: Callable[[], Any]
    wait: Callable[[], Any]
    renew: Callable[[], Any]
    extra_bytes: Callable[[], int | None]


@dataclass(frozen=True)
class Contender:
    """One line of the benchmark.

    Args:
        backend: a key of `magma_conformance.implementations.modes.BACKENDS`.
        mode: one of its modes.
        optimizer: one of `OURS`, or the name of another optimizer.
        prepare: puts the parameters on the mode's device and returns the step.
    """

    backend: str
    mode: str
    optimizer: str
    prepare: Callable[[Mode, Workload], Step]

    @property
    def baseline(self) -> bool:
        """Whether it is its framework's baseline."""
        return self.optimizer == BASELINES.get(self.backend)


def _block_axes(workload: Workload) -> dict[str, tuple[int, ...] | None]:
    return {tensor.name: tensor.block_axes for tensor in workload.tensors}


def _magma(mode: Mode, workload: Workload) -> Step:
    """AdamW+Magma as a training loop would call it."""
    params, grads = draw(mode, workload, PARAM_SCALE, 1), Gradients(mode, workload)
    axes = _block_axes(workload)
    states = [
        init(param, base=_BASE, rule=_RULE, block_axes=axes[name], name=name, xp=mode.xp)
        for name, param in zip(axes, params, strict=True)
    ]
    plans = plan_all(params, names=list(axes), base=_BASE, rule=_RULE, seed=0, block_axes=axes, xp=mode.xp)

    def program(params: Any, grads: Any, states: Any, step: Any, lr: Any) -> Any:
        return update_planned(plans, params, grads, states, step=step, lr=lr, xp=mode.xp)[:2]

    jax = mode.backend == "jax"
    update = import_module("jax").jit(program, donate_argnums=(0, 2)) if jax else mode.compile(program)
    rate = mode.put(np.asarray(_LEARNING_RATE, np.float32))
    t = 0

    def run() -> None:
        nonlocal params, states, t
        t += 1
        params, states = update(params, grads.arrays, states, mode.put(np.asarray(t, np.int32)), rate)

    return Step(run, lambda: wait(mode, (params, states)), grads.renew, memory.of_step(mode, run))


def _torch_adamw(params: Any, workload: Workload, **implementation: bool) -> Any:
    """torch.optim.AdamW; ``implementation`` picks one of its three implementations."""
    return import_module("torch").optim.AdamW(
        params,
        lr=_LEARNING_RATE,
        betas=(_BASE.beta1, _BASE.beta2),
        eps=_BASE.eps,
        weight_decay=_BASE.weight_decay,
        **implementation,
    )


def _pytorch_optimizer(params: Any, workload: Workload) -> Any:
    """Magma of the package pytorch_optimizer, over fused AdamW; it masks every parameter."""
    return require("pytorch_optimizer", extra="dev").Magma(_torch_adamw(params, workload, fused=True))


def _magma_torch(params: Any, workload: Workload, *, compile: bool) -> Any:
    """Our optimizer."""
    from magma_torch import Magma

    groups: dict[tuple[int, ...] | None, list[Any]] = {}
    for tensor, param in zip(workload.tensors, params, strict=True):
        groups.setdefault(tensor.block_axes, []).append((tensor.name, param))
    return Magma(
        [{"params": own, "masked": axes is not None, "block_axes": axes or ()} for axes, own in groups.items()],
        lr=_LEARNING_RATE,
        base=_BASE,
        compile=compile,
    )


def _torch_optimizer(mode: Mode, workload: Workload, make: Callable[[Any, Workload], Any]) -> Step:
    """An optimizer with the interface of torch.optim."""
    params, grads = draw(mode, workload, PARAM_SCALE, 1), Gradients(mode, workload)
    for param, grad in zip(params, grads.arrays, strict=True):
        param.grad = grad
    optimizer = make(params, workload)
    return Step(optimizer.step, lambda: wait(mode, params), grads.renew, memory.of_step(mode, optimizer.step))


def _optax_adamw(mode: Mode, workload: Workload) -> Step:
    """optax.adamw."""
    optimizer = require("optax", extra="jax").adamw(
        _LEARNING_RATE, b1=_BASE.beta1, b2=_BASE.beta2, eps=_BASE.eps, weight_decay=_BASE.weight_decay
    )
    return _optax_optimizer(mode, workload, optimizer, _through_updates(optimizer))


def _magma_jax(mode: Mode, workload: Workload, *, kernels: bool | None, updates: bool = False) -> Step:
    """Our transformation: ``step``, or updates that optax applies."""
    from magma_jax import magma

    axes = _block_axes(workload)
    optimizer = magma(_LEARNING_RATE, _BASE, block_axes=lambda name, leaf: axes[name], kernels=kernels)
    return _optax_optimizer(mode, workload, optimizer, _through_updates(optimizer) if updates else optimizer.step)


def _through_updates(optimizer: Any) -> Callable[[Any, Any, Any], Any]:
    apply_updates = require("optax", extra="jax").apply_updates

    def program(params: Any, grads: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return apply_updates(params, updates), state

    return program


def _optax_optimizer(mode: Mode, workload: Workload, optimizer: Any, program: Callable[[Any, Any, Any], Any]) -> Step:
    """An optimizer with optax's interface, jitted, with parameters and state donated."""
    names, grads = [tensor.name for tensor in workload.tensors], Gradients(mode, workload)
    params = dict(zip(names, draw(mode, workload, PARAM_SCALE, 1), strict=True))
    jax = import_module("jax")
    state = jax.tree.map(mode.put, optimizer.init(params))  # commits the state to a device, else step two recompiles
    update = jax.jit(program, donate_argnums=(0, 2))

    def run() -> None:
        nonlocal params, state
        params, state = update(params, dict(zip(names, grads.arrays, strict=True)), state)

    def extra_bytes() -> int | None:
        return memory.of_program(update, params, dict(zip(names, grads.arrays, strict=True)), state)

    return Step(run, lambda: wait(mode, (params, state)), grads.renew, extra_bytes)


def _keras_adamw(keras: Any, workload: Workload) -> Any:
    """Keras's AdamW."""
    return keras.optimizers.AdamW(
        _LEARNING_RATE, beta_1=_BASE.beta1, beta_2=_BASE.beta2, epsilon=_BASE.eps, weight_decay=_BASE.weight_decay
    )


def _magma_keras(keras: Any, workload: Workload) -> Any:
    """Our optimizer."""
    axes = {f"^{re.escape(name)}$": axes for name, axes in _block_axes(workload).items()}
    return import_module("magma_keras").Magma(_LEARNING_RATE, _BASE, block_axes=axes)


def _keras_optimizer(mode: Mode, workload: Workload, *, make: Callable[[Any, Workload], Any]) -> Step:
    """A Keras optimizer, compiled as the mode compiles."""
    keras = require("keras", extra="keras")
    if keras.backend.backend() != mode.backend:
        raise LookupError(f"Keras runs on {keras.backend.backend()} here: set KERAS_BACKEND={mode.backend}")
    grads = Gradients(mode, workload)
    with keras.device("gpu:0" if mode.hardware else "cpu:0"):
        values = draw(mode, workload, PARAM_SCALE, 1)
        variables = [keras.Variable(x, name=tensor.name) for x, tensor in zip(values, workload.tensors, strict=True)]
        optimizer = make(keras, workload)
        optimizer.build(variables)

    def program(*grads: Any) -> Any:
        optimizer.apply(list(grads), variables)
        return variables[-1].value

    update = mode.compile(program)
    done: Any = None

    def run() -> None:
        nonlocal done
        done = update(*grads.arrays)

    return Step(run, lambda: wait(mode, [done]), grads.renew, lambda: None)


_TORCH, _KERAS = partial(partial, _torch_optimizer), partial(partial, _keras_optimizer)

_ALL = (
    Contender("numpy", "eager", MAGMA, _magma),
    Contender("torch", "eager", MAGMA, _magma),
    Contender("torch", "compile", MAGMA, _magma),
    Contender("torch", "compile", MAGMA_TORCH, _TORCH(make=partial(_magma_torch, compile=True))),
    Contender("torch", "eager", "AdamW fused", _TORCH(make=partial(_torch_adamw, fused=True))),
    Contender("torch", "eager", "AdamW foreach", _TORCH(make=partial(_torch_adamw, foreach=True))),
    Contender("torch", "eager", "pytorch_optimizer Magma", _TORCH(make=_pytorch_optimizer)),
    Contender("torch", "eager", "AdamW for-loop", _TORCH(make=partial(_torch_adamw, foreach=False, fused=False))),
    Contender("torch", "eager", MAGMA_TORCH, _TORCH(make=partial(_magma_torch, compile=False))),
    Contender("torch", "eager", MAGMA_KERAS, _KERAS(make=_magma_keras)),
    Contender("torch", "eager", "Keras AdamW", _KERAS(make=_keras_adamw)),
    Contender("jax", "jit", MAGMA, _magma),
    Contender("jax", "jit", MAGMA_JAX, partial(_magma_jax, kernels=True)),
    Contender("jax", "jit", MAGMA_JAX_UPDATES, partial(_magma_jax, kernels=None, updates=True)),
    Contender("jax", "jit", MAGMA_JAX_XLA, partial(_magma_jax, kernels=False)),
    Contender("jax", "jit", "optax adamw", _optax_adamw),
    Contender("jax", "eager", MAGMA_KERAS, _KERAS(make=_magma_keras)),
    Contender("jax", "eager", "Keras AdamW", _KERAS(make=_keras_adamw)),
    Contender("tensorflow", "graph", MAGMA, _magma),
    Contender("tensorflow", "xla", MAGMA, _magma),
    Contender("tensorflow", "xla", MAGMA_KERAS, _KERAS(make=_magma_keras)),
    Contender("tensorflow", "xla", "Keras AdamW", _KERAS(make=_keras_adamw)),
)

CONTENDERS = tuple(
    contender
    for contender in _ALL
    if "keras" not in contender.optimizer.lower() or contender.backend == os.environ.get("KERAS_BACKEND", "tensorflow")
)
"""All contenders, each framework's most important first. NumPy has no AdamW of its own; Keras has one backend."""
