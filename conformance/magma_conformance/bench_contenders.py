"""What takes part in the benchmark: magma_core in each mode, and the frameworks' own AdamW."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np

from magma_conformance.modes import Mode
from magma_core import AdamW, init, magma, plan_all, update_planned
from magma_core.extras import require

Step: TypeAlias = Callable[[], Any]
"""One step, finished when it returns."""

MAGMA = "magma_core"
MAGMA_TORCH = "magma_torch"
MAGMA_JAX = "magma_jax step"
MAGMA_JAX_UPDATES = "magma_jax update"
MAGMA_KERAS = "magma_keras"
OURS = (MAGMA, MAGMA_TORCH, MAGMA_JAX, MAGMA_JAX_UPDATES, MAGMA_KERAS)
"""The core's functions as a program of their own, and the adapters' optimizers."""

_BASE, _RULE, _LEARNING_RATE = AdamW(), magma(), 1e-3


@dataclass(frozen=True)
class Data:
    """Parameters and gradients that every contender starts from; none writes to them."""

    params: Sequence[np.ndarray]
    grads: Sequence[np.ndarray]

    @classmethod
    def random(cls, tensors: int, rows: int, columns: int) -> "Data":
        """Values of ordinary size: how long a step takes does not depend on them."""
        rng = np.random.default_rng(0)

        def draw(scale: float) -> list[np.ndarray]:
            shape = rows, columns
            return [rng.standard_normal(shape, dtype=np.float32) * np.float32(scale) for _ in range(tensors)]

        return cls(draw(0.02), draw(1e-3))


@dataclass(frozen=True)
class Contender:
    """One line of the benchmark.

    Args:
        backend: a key of `magma_conformance.modes.BACKENDS`.
        mode: one of its modes.
        optimizer: one of `OURS`, or what others call theirs.
        prepare: puts the data on the mode's device and returns the step.
    """

    backend: str
    mode: str
    optimizer: str
    prepare: Callable[[Mode, Data], Step]


def _magma(mode: Mode, data: Data) -> Step:
    """AdamW+Magma, a block for each parameter, as a training loop would call it."""
    params = [mode.put(x.copy()) for x in data.params]  # jax may keep the memory, and donates it
    grads = [mode.put(x) for x in data.grads]
    names = [f"layers.{i}.weight" for i in range(len(params))]
    states = [init(param, base=_BASE, rule=_RULE, block_axes=(), xp=mode.xp) for param in params]
    plans = plan_all(
        params,
        names=names,
        base=_BASE,
        rule=_RULE,
        seed=0,
        block_axes=dict.fromkeys(names, ()),
        xp=mode.xp,
    )

    def program(params: Any, grads: Any, states: Any, step: Any, lr: Any) -> Any:
        return update_planned(plans, params, grads, states, step=step, lr=lr, xp=mode.xp)[:2]

    if mode.backend == "jax":
        update = import_module("jax").jit(program, donate_argnums=(0, 2))
    else:
        update = mode.compile(program)
    rate = mode.put(np.asarray(_LEARNING_RATE, np.float32))
    t = 0

    def step() -> None:
        nonlocal params, states, t
        t += 1
        params, states = update(params, grads, states, mode.put(np.asarray(t, np.int32)), rate)
        _wait(mode, (params, states), states[-1].score)

    return step


def _torch_adamw(params: Any, **implementation: bool) -> Any:
    """torch.optim.AdamW; ``implementation`` chooses among its three."""
    return import_module("torch").optim.AdamW(
        params,
        lr=_LEARNING_RATE,
        betas=(_BASE.beta1, _BASE.beta2),
        eps=_BASE.eps,
        weight_decay=_BASE.weight_decay,
        **implementation,
    )


def _pytorch_optimizer(params: Any) -> Any:
    """The Magma of the package pytorch_optimizer, over fused AdamW."""
    return require("pytorch_optimizer", extra="dev").Magma(_torch_adamw(params, fused=True))


def _magma_torch(params: Any, *, compile: bool) -> Any:
    """Our optimizer, a block for each parameter."""
    from magma_torch import Magma

    named = [(f"layers.{i}.weight", param) for i, param in enumerate(params)]
    return Magma(named, lr=_LEARNING_RATE, base=_BASE, compile=compile)


def _torch_optimizer(mode: Mode, data: Data, make: Callable[[Any], Any]) -> Step:
    """An optimizer in the manner of torch.optim."""
    params = [mode.put(x) for x in data.params]
    for param, grad in zip(params, data.grads, strict=True):
        param.grad = mode.put(grad)
    optimizer = make(params)

    def step() -> None:
        optimizer.step()
        _wait(mode, params, params[-1][0, 0])

    return step


def _optax_adamw(mode: Mode, data: Data) -> Step:
    """optax.adamw."""
    optimizer = require("optax", extra="jax").adamw(
        _LEARNING_RATE, b1=_BASE.beta1, b2=_BASE.beta2, eps=_BASE.eps, weight_decay=_BASE.weight_decay
    )
    return _optax_optimizer(mode, data, optimizer, _through_updates(optimizer))


def _magma_jax(mode: Mode, data: Data, *, updates: bool) -> Step:
    """Our transformation, a block for each parameter; by ``step``, or by updates that optax adds."""
    from magma_jax import magma

    optimizer = magma(_LEARNING_RATE, _BASE)
    return _optax_optimizer(mode, data, optimizer, _through_updates(optimizer) if updates else optimizer.step)


def _through_updates(optimizer: Any) -> Callable[[Any, Any, Any], Any]:
    apply_updates = require("optax", extra="jax").apply_updates

    def program(params: Any, grads: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return apply_updates(params, updates), state

    return program


def _optax_optimizer(mode: Mode, data: Data, optimizer: Any, program: Callable[[Any, Any, Any], Any]) -> Step:
    """An optimizer in the manner of optax under jit, parameters and state donated."""
    params, grads = [mode.put(x.copy()) for x in data.params], [mode.put(x) for x in data.grads]
    state = optimizer.init(params)
    update = import_module("jax").jit(program, donate_argnums=(0, 2))

    def step() -> None:
        nonlocal params, state
        params, state = update(params, grads, state)
        _wait(mode, (params, state), params[-1])

    return step


def _keras_adamw(keras: Any) -> Any:
    """Keras's AdamW."""
    return keras.optimizers.AdamW(
        _LEARNING_RATE, beta_1=_BASE.beta1, beta_2=_BASE.beta2, epsilon=_BASE.eps, weight_decay=_BASE.weight_decay
    )


def _magma_keras(keras: Any) -> Any:
    """Our optimizer, a block for each variable."""
    return import_module("magma_keras").Magma(_LEARNING_RATE, _BASE)


def _keras_optimizer(mode: Mode, data: Data, *, make: Callable[[Any], Any]) -> Step:
    """An optimizer of Keras on TensorFlow, compiled as the mode compiles."""
    keras = require("keras", extra="keras")
    if keras.backend.backend() != "tensorflow":
        raise LookupError(f"Keras runs on {keras.backend.backend()} here")
    grads = [mode.put(x) for x in data.grads]
    with mode.framework.device(grads[0].device):
        variables = [keras.Variable(mode.put(x), name=f"weight_{i}") for i, x in enumerate(data.params)]
        optimizer = make(keras)
        optimizer.build(variables)

    def program(*grads: Any) -> Any:
        optimizer.apply(list(grads), variables)
        return variables[-1].value[0, 0]

    update = mode.compile(program)
    return lambda: mode.get(update(*grads))


def _wait(mode: Mode, everything: Any, last: Any) -> None:
    """Until the step is done: the last of its results, on the host, is proof where operations run in order."""
    if mode.backend == "jax":
        import_module("jax").block_until_ready(everything)
    else:
        mode.get(last)


CONTENDERS = (
    Contender("numpy", "eager", MAGMA, _magma),
    Contender("torch", "eager", MAGMA, _magma),
    Contender("torch", "compile", MAGMA, _magma),
    Contender("torch", "eager", MAGMA_TORCH, partial(_torch_optimizer, make=partial(_magma_torch, compile=False))),
    Contender("torch", "compile", MAGMA_TORCH, partial(_torch_optimizer, make=partial(_magma_torch, compile=True))),
    Contender("torch", "eager", "AdamW fused", partial(_torch_optimizer, make=partial(_torch_adamw, fused=True))),
    Contender("torch", "eager", "AdamW foreach", partial(_torch_optimizer, make=partial(_torch_adamw, foreach=True))),
    Contender(
        "torch",
        "eager",
        "AdamW for-loop",
        partial(_torch_optimizer, make=partial(_torch_adamw, foreach=False, fused=False)),
    ),
    Contender("torch", "eager", "pytorch_optimizer Magma", partial(_torch_optimizer, make=_pytorch_optimizer)),
    Contender("jax", "jit", MAGMA, _magma),
    Contender("jax", "jit", MAGMA_JAX, partial(_magma_jax, updates=False)),
    Contender("jax", "jit", MAGMA_JAX_UPDATES, partial(_magma_jax, updates=True)),
    Contender("jax", "jit", "optax adamw", _optax_adamw),
    Contender("tensorflow", "graph", MAGMA, _magma),
    Contender("tensorflow", "xla", MAGMA, _magma),
    Contender("tensorflow", "xla", MAGMA_KERAS, partial(_keras_optimizer, make=_magma_keras)),
    Contender("tensorflow", "xla", "Keras AdamW", partial(_keras_optimizer, make=_keras_adamw)),
)
"""All of them, Magma before the frameworks' own. NumPy has no AdamW of its own."""
