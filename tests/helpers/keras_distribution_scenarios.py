"""Makes the results that test_distribution.py compares, in a process with eight virtual devices."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from magma_conformance.cases.inputs import FORMATS, make, make_mixture
from magma_keras import MaskedOptimizer

from magma_core import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule, damping, magma, score_survival, skip_update

ENVIRONMENT = {
    "KERAS_BACKEND": "jax",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
    "PYTHONWARNINGS": "error",
}
"""What the process needs before it imports Keras."""

STEPS = 4
RATE = 0.05
BATCH = 16

Axes = tuple[int, ...]
Record = dict[str, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """What NumPy and the devices agree on."""

    base: Base
    rule: Rule
    axes: Axes
    fmt: str = "float32"

    def of(self, name: str) -> Axes:
        """The block axes of a variable: a bias has one axis less."""
        return tuple(axis for axis in self.axes if axis < len(SHAPES[name]))


SHAPES: dict[str, tuple[int, ...]] = {"dense/kernel": (16, 8), "dense/bias": (8,), "table/embeddings": (24, 16)}
PROBLEMS = {
    "adamw": Problem(AdamW(weight_decay=0.1), magma(), ()),
    "sgd": Problem(SGD(nesterov=True, weight_decay=0.05), skip_update(p=0.3, decay="dense"), (0,)),
    "rmsprop": Problem(RMSProp(), score_survival(damped=True), (1,)),
    "adam": Problem(Adam(), damping(), (0,)),
    "laprop": Problem(LaProp(weight_decay=0.1), magma(momentum="before", decay="dense", p=0.7), (0, 1)),
    "bfloat16": Problem(AdamW(weight_decay=0.1), magma(tau=0.5), (0,), "bfloat16"),
    "bfloat16 sgd": Problem(SGD(), damping(), (), "bfloat16"),
    "bfloat16 columns": Problem(LaProp(), score_survival(), (1,), "bfloat16"),
}


def start(problem: Problem) -> Record:
    rng = np.random.default_rng(0)
    return {name: make_mixture(shape, problem.fmt, rng) for name, shape in SHAPES.items()}


def gradients(problem: Problem, step: int) -> Record:
    """Hard ones, of another kind at each step."""
    rng = np.random.default_rng(step)
    kind = ["normal", "wide", "outlier", "not-finite"][step - 1]
    return {name: make(kind, shape, problem.fmt, rng) for name, shape in SHAPES.items()}


def sample(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Small integers, whose products and means are exact in every format and order."""
    rng = np.random.default_rng(step)
    shapes = (BATCH, SHAPES["dense/kernel"][0]), (BATCH, SHAPES["dense/kernel"][1])
    return tuple(rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes)


def fitted_gradients(problem: Problem, step: int) -> Record:
    """Those of `correlation`, which do not depend on the parameters."""
    x, y = sample(step)
    exact = {"dense/kernel": x.T @ y / y.size, "dense/bias": y.sum(0) / y.size}
    return {name: grad.astype(FORMATS[problem.fmt]) for name, grad in exact.items()}


def correlation(y: Any, predicted: Any) -> Any:
    return keras.ops.mean(keras.ops.cast(y, predicted.dtype) * predicted, axis=-1)


# Distributions


Specs = dict[str, tuple[str | None, ...]]
LAYOUTS: dict[str, tuple[tuple[int, ...], Specs] | None] = {
    "data": None,
    "rows": ((2, 4), {".*kernel": ("model", None), ".*embeddings": ("model", None)}),
    "columns": ((2, 4), {".*kernel": (None, "model"), ".*bias": ("model",), ".*embeddings": (None, "model")}),
    "both": ((2, 4), {".*kernel": ("batch", "model"), ".*bias": ("batch",), ".*embeddings": ("model", "batch")}),
    # patterns that are found in the names of optimizers' variables, too
    "greedy": ((2, 4), {".*kernel.*": ("model", "batch"), ".*bias.*": ("model",), ".*embeddings": (None, "model")}),
    "eight": ((1, 8), {".*(kernel|embeddings).*": ("model", None), ".*bias": ("model",)}),
}


def distribution(layout: str) -> Any:
    chosen = LAYOUTS[layout]
    if chosen is None:
        return keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))
    mesh = keras.distribution.DeviceMesh(chosen[0], ("batch", "model"), keras.distribution.list_devices("cpu"))
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, spec in chosen[1].items():
        layouts[pattern] = spec
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


@dataclass
class Run:
    """What was seen of one scenario."""

    problem: str
    fitted: bool = False  # with the gradients of `fitted_gradients`
    steps: list[Record] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)  # what does not lie where it should
    spread: int = 0  # variables of the state of which no device has the whole
    made_again: int = 0  # how often a step was compiled


def make_variables(problem: Problem) -> list[Any]:
    values = start(problem)
    made = []
    for name, value in values.items():
        layer, own = name.split("/")
        with keras.name_scope(layer):
            made.append(keras.Variable(np.asarray(value, np.float32), dtype=problem.fmt, name=own))
    assert [variable.path for variable in made] == list(SHAPES)
    for variable, value in zip(made, values.values(), strict=True):
        variable.assign(keras.ops.array(value))  # a conversion might lose a payload
    return made


def make_optimizer(problem: Problem, **options: Any) -> MaskedOptimizer:
    axes = {name: problem.of(name) for name in SHAPES}
    return MaskedOptimizer(RATE, problem.rule, problem.base, block_axes=axes, name="magma", **options)


_FIELDS = {"momentum": "mu", "velocity": "nu", "score": "score"}


def state_of(optimizer: Any, variables: Any) -> dict[str, Any]:
    """The optimizer's variables by the labels of a record."""
    found = {}
    for variable in variables:
        for own in optimizer.variables:
            name, _, kind = own.name.rpartition("_")
            if name == variable.path.replace("/", "_") and kind in _FIELDS:
                found[f"{variable.path}/{_FIELDS[kind]}"] = own
    return found


def look(run: Run, optimizer: Any, variables: Any) -> None:
    state = state_of(optimizer, variables)
    seen = {f"{variable.path}/param": variable for variable in variables} | state
    run.steps.append({label: np.asarray(x.value) for label, x in seen.items()})
    problem = PROBLEMS[run.problem]
    for variable in variables:
        mesh, spec = placement(variable.value)
        for kind in _FIELDS.values():
            label = f"{variable.path}/{kind}"
            if label not in state:
                continue
            own = state[label].value
            kept = problem.of(in_problem(variable.path)) if kind == "score" else range(len(variable.shape))
            wanted = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[spec[axis] for axis in kept]))
            if not own.sharding.is_equivalent_to(wanted, own.ndim):
                run.misplaced.append(f"{label} lies as {own.sharding}, not as {wanted}")
            run.spread += not own.sharding.is_fully_replicated


def placement(x: jax.Array) -> tuple[Any, list[Any]]:
    """Mesh, and what each axis is spread over."""
    spec = list(x.sharding.spec)
    return x.sharding.mesh, spec + [None] * (x.ndim - len(spec))


# Scenarios


def run_apply(layout: str, problem_name: str) -> Run:
    """Eagerly: variables are assigned to."""
    run, problem = Run(problem_name), PROBLEMS[problem_name]
    with distribution(layout).scope():
        variables, optimizer = make_variables(problem), make_optimizer(problem)
        for step in range(1, STEPS + 1):
            grads = gradients(problem, step)
            optimizer.apply([keras.ops.array(grads[variable.path]) for variable in variables], variables)
            look(run, optimizer, variables)
    return run


def run_jit(layout: str, problem_name: str) -> Run:
    """`stateless_apply` in jax.jit; gradients lie on one device, or like their parameters."""
    run, problem = Run(problem_name), PROBLEMS[problem_name]
    with distribution(layout).scope():
        variables, optimizer = make_variables(problem), make_optimizer(problem)
        optimizer.build(variables)

        @jax.jit
        def advance(params: Any, grads: Any, state: Any) -> Any:
            run.made_again += 1
            return optimizer.stateless_apply(state, grads, params)

        for step in range(1, STEPS + 1):
            grads = gradients(problem, step)
            placed = [jax.device_put(grads[variable.path], variable.value.sharding) for variable in variables]
            params, state = advance([x.value for x in variables], placed, [x.value for x in optimizer.variables])
            for variable, value in zip([*variables, *optimizer.variables], [*params, *state], strict=True):
                if value.sharding != variable.value.sharding and not value.sharding.is_equivalent_to(
                    variable.value.sharding, value.ndim
                ):
                    run.misplaced.append(f"{variable.path} comes back as {value.sharding}")
                variable.assign(value)
            look(run, optimizer, variables)
    return run


def make_model(problem: Problem) -> Any:
    layer = keras.layers.Dense(SHAPES["dense/kernel"][1], name="dense", dtype=problem.fmt)
    model = keras.Sequential([keras.Input(SHAPES["dense/kernel"][:1]), layer], name="model")
    values = start(problem)
    for variable in layer.trainable_variables:
        variable.assign(keras.ops.array(values[in_problem(variable.path)]))
    names = {variable.path: in_problem(variable.path) for variable in model.trainable_variables}
    axes = {name: problem.of(name) for name in names.values()}
    model.compile(
        optimizer=MaskedOptimizer(RATE, problem.rule, problem.base, block_axes=axes, mask_names=names, name="magma"),
        loss=correlation,
    )
    return model


def in_problem(path: str) -> str:
    """The name of a model's variable in the problem."""
    return path.partition("/")[2] if path.startswith("model/") else path


def train(model: Any, run: Run, steps: range) -> None:
    for step in steps:
        x, y = sample(step)
        model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
        look(run, model.optimizer, model.trainable_variables)
        run.steps[-1] = {
            f"{in_problem(label.rpartition('/')[0])}/{label.rpartition('/')[2]}": value
            for label, value in run.steps[-1].items()
        }


def run_fit(layout: str, problem_name: str) -> Run:
    run = Run(problem_name, fitted=True)
    with distribution(layout).scope():
        train(make_model(PROBLEMS[problem_name]), run, range(1, STEPS + 1))
    return run


def run_saved(layout: str, problem_name: str, saved_under: bool) -> Run:
    """Two steps with or without a distribution, and two more in the loaded model without or with one."""
    run, problem = Run(problem_name, fitted=True), PROBLEMS[problem_name]
    halves = [range(1, 3), range(3, STEPS + 1)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        for i, steps in enumerate(halves):
            keras.utils.clear_session()
            if (i == 0) == saved_under:
                with distribution(layout).scope():
                    _part(file, problem, run, steps)
            else:
                _part(file, problem, run, steps)
    return run


def _part(file: Path, problem: Problem, run: Run, steps: range) -> None:
    if file.exists():
        model = keras.models.load_model(file, custom_objects={"correlation": correlation})
    else:
        model = make_model(problem)
    alone = keras.distribution.distribution() is None
    seen = Run(run.problem)
    train(model, seen, steps) if not alone else _train_alone(model, seen, steps)
    run.steps += seen.steps
    run.misplaced += seen.misplaced
    run.spread += seen.spread
    model.save(file)


def _train_alone(model: Any, run: Run, steps: range) -> None:
    """On one device, where nothing can be misplaced."""
    for step in steps:
        x, y = sample(step)
        model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
        seen = {f"{x.path}/param": x for x in model.trainable_variables}
        seen |= state_of(model.optimizer, model.trainable_variables)
        run.misplaced += [label for label, x in seen.items() if len(x.value.sharding.device_set) > 1]
        run.steps.append({in_problem(label): np.asarray(x.value) for label, x in seen.items()})


SCENARIOS: dict[str, Callable[[], Run]] = {
    **{f"jit both {problem}": partial(run_jit, "both", problem) for problem in PROBLEMS},
    **{
        f"jit {layout} {problem}": partial(run_jit, layout, problem)
        for layout, problem in zip(
            ("data", "rows", "columns", "greedy", "eight"),
            ("bfloat16 sgd", "rmsprop", "bfloat16", "adamw", "bfloat16 columns"),
            strict=True,
        )
    },
    "apply greedy sgd": partial(run_apply, "greedy", "sgd"),
    "apply data bfloat16 sgd": partial(run_apply, "data", "bfloat16 sgd"),
    "fit data adamw": partial(run_fit, "data", "adamw"),
    "fit columns laprop": partial(run_fit, "columns", "laprop"),
    "fit greedy bfloat16": partial(run_fit, "greedy", "bfloat16"),
    "fit eight sgd": partial(run_fit, "eight", "sgd"),
    "saved both adamw": partial(run_saved, "both", "adamw", True),
    "saved rows bfloat16": partial(run_saved, "rows", "bfloat16", True),
    "loaded columns adam": partial(run_saved, "columns", "adam", False),
}


def solve(name: str) -> Run:
    """What a scenario saw."""
    keras.utils.clear_session()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*copy keyword.*", DeprecationWarning)  # of Keras with NumPy 2
        return SCENARIOS[name]()
