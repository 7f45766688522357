"""Makes the results that test_mirrored.py compares, in a process with three logical TensorFlow devices."""

import functools
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

with suppress(ModuleNotFoundError):
    import_module("torch")  # it and TensorFlow live in one process only if it comes first

import keras
import numpy as np
import tensorflow as tf
from magma_conformance.cases.inputs import FORMATS
from magma_keras import MaskedOptimizer

from magma_core import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule, damping, magma, skip_update

ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONWARNINGS": "error",
}
"""What the process needs before it imports Keras."""

STEPS = 4
RATE = 0.05
BATCH = 12
DEVICES = 3

Axes = tuple[int, ...]
Record = dict[str, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """What NumPy and the replicas agree on."""

    base: Base
    rule: Rule
    axes: Axes = ()
    fmt: str = "float32"

    def of(self, name: str) -> Axes:
        """The block axes of a variable: a bias has one axis less."""
        return tuple(axis for axis in self.axes if axis < len(SHAPES[name]))


SHAPES: dict[str, tuple[int, ...]] = {"dense/kernel": (6, 8), "dense/bias": (8,), "table/embeddings": (9, 4)}
PROBLEMS = {
    "adamw": Problem(AdamW(weight_decay=0.1), magma()),
    "sgd": Problem(SGD(nesterov=True, weight_decay=0.05), skip_update(p=0.3, decay="dense"), (0,)),
    "rmsprop": Problem(RMSProp(), damping(), (1,)),
    "adam": Problem(Adam(), magma(momentum="before"), (0,)),
    "laprop": Problem(LaProp(weight_decay=0.1), magma(decay="dense", p=0.7), (0, 1)),
    "bfloat16": Problem(AdamW(weight_decay=0.1), magma(tau=0.5), (0,), "bfloat16"),
}


def start(problem: Problem) -> Record:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(FORMATS[problem.fmt]) for name, shape in SHAPES.items()}


def whole(problem: Problem, step: int) -> Record:
    """What all replicas' gradients add up to: few bits, so that every sum of shares is exact."""
    rng = np.random.default_rng(step)
    return {
        name: (rng.integers(-15, 16, shape) * 2.0 ** rng.integers(-7, 2)).astype(FORMATS[problem.fmt])
        for name, shape in SHAPES.items()
    }


SHARES = {1: (1,), 2: (3, -2), 3: (2, -3, 2)}
"""What each replica's gradient is of the whole, by the number of replicas."""


def sample(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Small integers, whose products and means over eight columns are exact in every format and order."""
    rng = np.random.default_rng(step)
    shapes = (BATCH, SHAPES["dense/kernel"][0]), (BATCH, SHAPES["dense/kernel"][1])
    return tuple(rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes)


class Correlation(keras.losses.Loss):
    """Its gradient does not depend on the parameters, and is added up, not averaged."""

    def __init__(self, reduction: str = "sum", name: str = "correlation", dtype: Any = None) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y: Any, predicted: Any) -> Any:
        return tf.reduce_sum(tf.cast(y, predicted.dtype) * predicted, axis=-1)


def fitted_gradients(problem: Problem, step: int) -> Record:
    x, y = sample(step)
    return {
        name: grad.astype(FORMATS[problem.fmt])
        for name, grad in {"dense/kernel": x.T @ y, "dense/bias": y.sum(0)}.items()
    }


# Strategies


@functools.cache
def open_strategy(name: str, fmt: str) -> Any:
    """One for all scenarios: the collectives of two in one process are taken for each other's."""
    if name == "one":
        return tf.distribute.OneDeviceStrategy("CPU:1")
    if name == "first":  # XLA takes variables of no other
        return tf.distribute.OneDeviceStrategy("CPU:0")
    if name == "none":
        return None
    devices = [f"CPU:{i}" for i in range(int(name))]
    if (
        fmt != "float32" or len(devices) > 2
    ):  # collectives on CPUs know no bfloat16, and one size of groups in a process
        return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    return tf.distribute.MirroredStrategy(devices)


def inside(strategy: Any) -> Any:
    return nullcontext() if strategy is None else strategy.scope()


def replicas(strategy: Any) -> int:
    return 1 if strategy is None else strategy.num_replicas_in_sync


MODES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


@dataclass
class Run:
    """What was seen of one scenario."""

    problem: str
    kind: str = "whole"  # of gradients
    steps: list[Record] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)  # what replicas do not agree on
    traces: int = 0
    copies: set[int] = field(default_factory=set)  # how many of each variable there are


_FIELDS = {"momentum": "mu", "velocity": "nu", "score": "score"}


def native(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def whole_path(variable: Any) -> str:
    return variable.path if isinstance(variable, keras.Variable) else variable.name.partition(":")[0]


def path(variable: Any) -> str:
    return whole_path(variable).removeprefix("model/")


def look(run: Run, strategy: Any, optimizer: Any, variables: Any) -> None:
    """The values of the first replica, if the others have the same bits."""
    seen = {f"{path(variable)}/param": variable for variable in variables}
    names = {path(variable).replace("/", "_"): path(variable) for variable in variables}
    others = {}
    for own in optimizer.variables:
        name, _, kind = own.name.rpartition("_")
        name = name.removeprefix("model_")
        if name in names and kind in _FIELDS:
            seen[f"{names[name]}/{_FIELDS[kind]}"] = own
        else:
            others[own.name] = own
    record = {}
    for label, variable in (seen | others).items():
        values = [native(variable)] if strategy is None else strategy.experimental_local_results(native(variable))
        values = [value.numpy() for value in values]
        run.copies.add(len(values))
        if any(value.tobytes() != values[0].tobytes() for value in values):
            run.apart.append(label)
        if label in seen:
            record[label] = values[0]
    run.steps.append(record)


def make_variables(problem: Problem, plain: bool) -> list[Any]:
    made = []
    for name, value in start(problem).items():
        if plain:
            made.append(tf.Variable(value, name=name))
            continue
        layer, own = name.split("/")
        with keras.name_scope(layer):
            made.append(keras.Variable(value, dtype=problem.fmt, name=own))
    assert [path(variable) for variable in made] == list(SHAPES)
    return made


def make_optimizer(problem: Problem, variables: list[Any], **options: Any) -> MaskedOptimizer:
    names = {whole_path(variable): path(variable) for variable in variables}
    axes = {name: problem.of(name) for name in names.values()}
    return MaskedOptimizer(RATE, problem.rule, problem.base, block_axes=axes, mask_names=names, name="magma", **options)


# Scenarios


def as_slices(grad: Any) -> Any:
    """The same as rows, of which some occur twice, in two halves."""
    rows = tf.concat([tf.range(grad.shape[0])] * 2, 0)
    return tf.IndexedSlices(tf.concat([grad * 2.0, -grad], 0), rows, tf.constant(list(grad.shape)))


def run_loop(
    strategy_name: str,
    mode: str,
    problem_name: str,
    plain: bool = False,
    slices: bool = False,
    times: int = 1,
    **options: Any,
) -> Run:
    """`apply` in replica context, each with its share; for gradient accumulation several times with the same."""
    run, problem, strategy = (
        Run(problem_name, "clipped" if options.get("clipvalue") else "whole"),
        PROBLEMS[problem_name],
        open_strategy(strategy_name, PROBLEMS[problem_name].fmt),
    )
    with inside(strategy):
        variables = make_variables(problem, plain)
        optimizer = make_optimizer(problem, variables, **options)
        optimizer.build(variables)
    shares = tf.constant(SHARES[replicas(strategy)], tf.float32)

    def in_replica(*grads: Any) -> None:
        own = shares[tf.distribute.get_replica_context().replica_id_in_sync_group]
        grads = [grad * tf.cast(own, grad.dtype) for grad in grads]
        if slices:
            grads[-1] = as_slices(grads[-1])
        optimizer.apply(grads, variables)

    def everywhere(*grads: Any) -> None:
        run.traces += 1
        strategy.run(in_replica, args=grads)

    step = MODES[mode](everywhere)
    for t in range(1, STEPS + 1):
        for _ in range(times):
            step(*[tf.constant(grad) for grad in whole(problem, t).values()])
        look(run, strategy, optimizer, variables)
    return run


def make_model(problem: Problem) -> Any:
    layer = keras.layers.Dense(SHAPES["dense/kernel"][1], name="dense", dtype=problem.fmt)
    model = keras.Sequential([keras.Input(SHAPES["dense/kernel"][:1]), layer], name="model")
    values = start(problem)
    for variable in layer.trainable_variables:
        variable.assign(values[path(variable)])
    return model


def train(run: Run, strategy: Any, model: Any, steps: range) -> None:
    for t in steps:
        x, y = sample(t)
        model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
        look(run, strategy, model.optimizer, model.trainable_variables)


def compiled(problem: Problem, **how: Any) -> Any:
    model = make_model(problem)
    model.compile(optimizer=make_optimizer(problem, model.trainable_variables), loss=Correlation(), **how)
    return model


def run_fit(strategy_name: str, problem_name: str, **how: Any) -> Run:
    run, problem, strategy = (
        Run(problem_name, "fitted"),
        PROBLEMS[problem_name],
        open_strategy(strategy_name, PROBLEMS[problem_name].fmt),
    )
    with inside(strategy):
        model = compiled(problem, **how)
    train(run, strategy, model, range(1, STEPS + 1))
    return run


def run_resumed(first: str, second: str, way: str, problem_name: str) -> Run:
    """Two steps under a strategy, two under another."""
    run, problem = Run(problem_name, "fitted"), PROBLEMS[problem_name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("model.keras" if way == "keras" else "at")
        for name, steps in ((first, range(1, 3)), (second, range(3, STEPS + 1))):
            keras.utils.clear_session()
            strategy = open_strategy(name, problem.fmt)
            with inside(strategy):
                if way == "keras" and file.exists():
                    model = keras.models.load_model(file, custom_objects={"Correlation": Correlation})
                else:
                    model = compiled(problem)
                if way == "checkpoint":
                    model.optimizer.build(model.trainable_variables)
                    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
                    if name == second and run.steps:
                        checkpoint.read(str(file)).expect_partial().assert_existing_objects_matched()
            train(run, strategy, model, steps)
            if way == "keras":
                model.save(file)
            else:
                checkpoint.write(str(file))
    return run


SCENARIOS: dict[str, Callable[[], Run]] = {
    **{f"loop 2 eager {problem}": partial(run_loop, "2", "eager", problem) for problem in PROBLEMS},
    "loop 3 eager bfloat16": partial(run_loop, "3", "eager", "bfloat16"),
    "loop 2 graph adamw": partial(run_loop, "2", "graph", "adamw"),
    "loop 3 graph bfloat16": partial(run_loop, "3", "graph", "bfloat16"),
    "loop one eager laprop": partial(run_loop, "one", "eager", "laprop"),
    "loop one graph adamw": partial(run_loop, "one", "graph", "adamw"),
    "loop first xla bfloat16": partial(run_loop, "first", "xla", "bfloat16"),
    "plain 2 graph sgd": partial(run_loop, "2", "graph", "sgd", plain=True),
    "plain 3 eager adam": partial(run_loop, "3", "eager", "adam", plain=True),
    "slices 2 graph rmsprop": partial(run_loop, "2", "graph", "rmsprop", slices=True),
    "slices 3 eager adamw": partial(run_loop, "3", "eager", "adamw", slices=True),
    "clipped 2 graph sgd": partial(run_loop, "2", "graph", "sgd", clipvalue=0.5),
    "average 2 graph sgd": partial(run_loop, "2", "graph", "sgd", use_ema=True, ema_momentum=0.9),
    "average 3 eager sgd": partial(run_loop, "3", "eager", "sgd", use_ema=True, ema_momentum=0.9),
    # in a graph, Keras itself accumulates under no strategy of several replicas
    "accumulated 2 eager adamw": partial(run_loop, "2", "eager", "adamw", times=2, gradient_accumulation_steps=2),
    "fit 2 adamw": partial(run_fit, "2", "adamw"),
    "fit 2 eagerly laprop": partial(run_fit, "2", "laprop", run_eagerly=True),
    # under XLA, TensorFlow takes variables of the first device alone
    "fit first xla sgd": partial(run_fit, "first", "sgd", jit_compile=True),
    "checkpoint 2 none adamw": partial(run_resumed, "2", "none", "checkpoint", "adamw"),
    "checkpoint none 3 laprop": partial(run_resumed, "none", "3", "checkpoint", "laprop"),
    "keras 2 none adamw": partial(run_resumed, "2", "none", "keras", "adamw"),
}


@functools.cache
def open_devices() -> None:
    """TensorFlow takes this only before it has looked for devices."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)


def solve(name: str) -> Run:
    """What a scenario saw."""
    open_devices()
    keras.utils.clear_session()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*copy keyword.*", DeprecationWarning)  # of Keras with NumPy 2
        warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)  # of fit under a strategy
        return SCENARIOS[name]()
