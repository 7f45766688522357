"""Plain TensorFlow loops around the optimizer; other computations in the step's program do not change it.

NumPy is the reference for every bit. It gets the loop's values from a separate program.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from magma_conformance.bits import first_difference
from magma_conformance.cases.inputs import FORMATS, POISON, make, make_mixture
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.task import Record, Task
from magma_keras import MaskedOptimizer

from magma_core import SGD, Adam, AdamW, Base, LaProp, RMSProp, Rule, damping, magma, score_survival, skip_update
from magma_core.config import SEED
from magma_core.state_file.config import base_to_plain, rule_to_plain

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytestmark = pytest.mark.backends("tensorflow")

MODES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}
every_mode = pytest.mark.parametrize("mode", MODES)
NUMPY = open_implementation("numpy", "eager", "cpu")
SHAPE = (24, 20)
RATE = 0.05
FIELDS = {"mu": "momentum", "nu": "velocity", "score": "score"}


@dataclass
class Reference:
    """NumPy beside an optimizer, one step at a time."""

    base: Base
    rule: Rule
    axes: tuple[int, ...] = ()
    step: int = 0
    state: Record | None = field(default=None, repr=False)

    def take(self, params: Mapping[str, Any], grads: Mapping[str, Any], rate: float = RATE) -> Record:
        """The record after one more step, of parameters and gradients as they reach it."""
        params = {name: np.asarray(x) for name, x in params.items()}
        grads = {name: np.asarray(x, params[name].dtype) for name, x in grads.items()}
        self.step += 1
        block_axes = dict.fromkeys(params, self.axes)
        key = f"{self.base} {self.rule} {self.axes} {[(name, x.shape, x.dtype) for name, x in params.items()]}"
        plain = base_to_plain(self.base), rule_to_plain(self.rule)
        task = Task(key, params, [grads], [rate], *plain, block_axes, SEED, self.step, self.state)
        with np.errstate(all="ignore"):
            (self.state,) = NUMPY.run(task)
        return self.state


def differences(optimizer: Any, variables: Mapping[str, Any], record: Record) -> dict[str, str]:
    """Where parameters or state are not those of NumPy."""
    made = {variable.name.rpartition("/")[2]: variable for variable in optimizer.variables}
    found = {}
    for name, variable in variables.items():
        actual = {"param": variable} | {
            own: made[f"{name}_{theirs}"] for own, theirs in FIELDS.items() if f"{name}/{own}" in record
        }
        for key, x in actual.items():
            difference = first_difference(x.numpy(), record[f"{name}/{key}"])
            if difference:
                found[f"{name}/{key}"] = str(difference)
    return found


def draw(i: int, fmt: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(i).standard_normal(shape, dtype=np.float32).astype(FORMATS[fmt])


# What a loop computes in the program of a step


def wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


Part = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
ROUNDED_ONCE: dict[str, Part] = {
    "theta_scaled": lambda q, y: (q * 0.3, y),
    "both_scaled": lambda q, y: (q * 0.3, y * 0.7),
    "products": lambda q, y: (q * y, y * q),
    "negated_products": lambda q, y: (-(q * 0.3), -(y * q)),
    "quotients": lambda q, y: (q / y, y / q),
    "roots": lambda q, y: (tf.sqrt(tf.abs(q)), tf.sqrt(tf.abs(y))),
    "differences": lambda q, y: (q - y, y - q),
    "gradient_is_theta_scaled": lambda q, y: (q, q * 0.01),
    "known_gradient": lambda q, y: (q * 0.3, tf.fill(SHAPE, tf.cast(0.1, y.dtype))),
    "known_theta": lambda q, y: (tf.fill(SHAPE, tf.cast(0.1, q.dtype)), y * 0.3),
    "cast_both": lambda q, y: (tf.cast(wide(q) * 0.3, q.dtype), tf.cast(wide(y) * wide(q), y.dtype)),
    "cast_by_the_optimizer": lambda q, y: (q, wide(y) * 0.7),
}
"""θ and the gradient from two tensors; every compiler gives the bits of eager execution, if it stops there."""

ROUNDED_OFTEN: dict[str, Part] = {
    "divided_by_constants": lambda q, y: (q / 3, y / 7),
    "scaled_twice": lambda q, y: ((q * 0.7) * 0.3, (y * 0.7) * 0.3),
    "sums_of_products": lambda q, y: (q * 0.3 + y * 0.7, y * q + q * 0.7),
    "three_terms": lambda q, y: (q, y + q + y * 0.3),
    "functions": lambda q, y: (tf.tanh(q), tf.exp(-y) * tf.sigmoid(q)),
    "reduced": lambda q, y: (q, y - tf.reduce_mean(y * q, axis=0)),
    "matrix_products": lambda q, y: (q, tf.matmul(y, q, transpose_b=True)[:, :1] * y),
}
"""Compilers change these within themselves; they are taken for what the program itself says that they are."""

PARTS = ROUNDED_ONCE | ROUNDED_OFTEN

SETTINGS: dict[str, tuple[Base, Rule, tuple[int, ...]]] = {
    "sgd": (SGD(), damping(), ()),
    "nesterov": (SGD(nesterov=True, weight_decay=0.1), magma(p=0.7), (1,)),
    "rmsprop": (RMSProp(weight_decay=0.1), magma(momentum="before"), ()),
    "adam": (Adam(), score_survival(damped=True), (0,)),
    "adamw": (AdamW(weight_decay=0.3), damping(), ()),
    "laprop": (LaProp(weight_decay=0.1), damping(decay="dense", momentum="before"), (0, 1)),
}
PROGRAMS = [
    ("graph", "sgd", "float32", 1),
    ("graph", "adamw", "bfloat16", 2),
    ("xla", "sgd", "float32", 0),
    ("xla", "laprop", "float32", 1),
    ("xla", "rmsprop", "float32", 2),
    ("xla", "sgd", "bfloat16", 2),
    ("xla", "adamw", "bfloat16", 0),
    ("xla", "nesterov", "bfloat16", 1),
]
"""Each with a third of the parts."""


def share_of_parts(which: int) -> dict[str, Part]:
    return dict(list(PARTS.items())[which::3])


@pytest.mark.parametrize(("mode", "setting", "fmt", "which"), PROGRAMS)
def test_a_step_sees_what_the_loop_computed_as_if_it_came_from_elsewhere(
    mode: str, setting: str, fmt: str, which: int
) -> None:
    """A program has a variable for each part; two steps, so that the state says something."""
    base, rule, axes = SETTINGS[setting]
    parts = share_of_parts(which)
    inputs = {name: (draw(2 * i, fmt), draw(2 * i + 1, fmt)) for i, name in enumerate(parts)}
    variables = {name: tf.Variable(q, name=name) for name, (q, _) in inputs.items()}
    optimizer = MaskedOptimizer(RATE, rule, base, block_axes=axes)
    optimizer.build(list(variables.values()))
    reference = Reference(base, rule, axes)

    def together(inputs: Any) -> Any:
        computed = {name: part(*inputs[name]) for name, part in parts.items()}
        for name, (theta, _) in computed.items():
            variables[name].assign(theta)
        optimizer.apply([grad for _, grad in computed.values()], list(variables.values()))
        return {name: pair for name, pair in computed.items() if name in ROUNDED_OFTEN}

    step = MODES[mode](together)
    for i in range(2):
        given = {name: (tf.constant(np.roll(q, i)), tf.constant(np.roll(y, -i))) for name, (q, y) in inputs.items()}
        seen = step(given)
        seen |= {name: part(*given[name]) for name, part in parts.items() if name in ROUNDED_ONCE}
        record = reference.take(*[{name: seen[name][j] for name in parts} for j in (0, 1)])
        assert differences(optimizer, variables, record) == {}


@pytest.mark.parametrize(
    ("mode", "setting"),
    [("graph", "adamw"), *(("xla", setting) for setting in ("nesterov", "rmsprop", "adamw", "laprop"))],
)
def test_a_state_may_be_scaled_in_the_program(mode: str, setting: str) -> None:
    """As when momentum is to fade at the start of an epoch."""
    base, rule, axes = SETTINGS[setting]
    variable = tf.Variable(draw(0, "float32"), name="w")
    optimizer = MaskedOptimizer(RATE, rule, base, block_axes=axes)
    optimizer.build([variable])
    state = [x for x in optimizer.variables if x.dtype == "float32" and x.name != "learning_rate"]
    assert state

    def fading(grad: tf.Tensor) -> None:
        for x in state:
            x.assign(x * 0.37)
        optimizer.apply([grad], [variable])

    reference = Reference(base, rule, axes)
    step = MODES[mode](fading)
    param = variable.numpy()
    optimizer.apply([tf.constant(draw(1, "float32"))], [variable])
    record = reference.take({"w": param}, {"w": draw(1, "float32")})
    for i in range(2, 4):
        for key, x in record.items():
            if key.rpartition("/")[2] in ("mu", "nu", "score", "mu_power", "nu_power"):
                record[key] = x * np.float32(0.37)
        step(tf.constant(draw(i, "float32")))
        record = reference.take({"w": record["w/param"]}, {"w": draw(i, "float32")})
        assert differences(optimizer, {"w": variable}, record) == {}


RATES: dict[str, Callable[[Any], Any]] = {
    "scaled": lambda t: t * 0.3,
    "scaled_twice": lambda t: (t * 0.3) * 0.7,
    "quotient": lambda t: 0.01 / t,
    "warmup": lambda t: 0.1 * tf.minimum(1.0, t / 7.0),
    "cosine": lambda t: 0.5 * 0.1 * (1.0 + tf.cos(t * 3.1)),
    "wide": lambda t: tf.cast(t, tf.float64) * 0.3,
}


@pytest.mark.parametrize(("mode", "given_as"), [("graph", "called"), ("xla", "assigned"), ("xla", "called")])
def test_a_learning_rate_may_be_computed_in_the_program(mode: str, given_as: str) -> None:
    """What the program says that it is counts; 1/p and dense decay multiply it once more. A variable for each rate."""
    base, rule = SGD(weight_decay=0.3), skip_update(decay="dense", p=0.7)
    t = tf.Variable(0.37, name="t")
    variables = {name: tf.Variable(draw(i, "float32"), name=name) for i, name in enumerate(RATES)}
    optimizers = {
        name: MaskedOptimizer(RATE if given_as == "assigned" else lambda rate=rate: rate(t.read_value()), rule, base)
        for name, rate in RATES.items()
    }
    for name, optimizer in optimizers.items():
        optimizer.build([variables[name]])

    def one(grad: tf.Tensor) -> dict[str, tf.Tensor]:
        rates = {name: tf.cast(rate(t.read_value()), tf.float32) for name, rate in RATES.items()}
        for name, optimizer in optimizers.items():
            if given_as == "assigned":
                optimizer.learning_rate.assign(rates[name])
            optimizer.apply([grad], [variables[name]])
        return rates

    step, references = MODES[mode](one), {name: Reference(base, rule) for name in RATES}
    params = {name: variable.numpy() for name, variable in variables.items()}
    for i in range(4):
        t.assign(0.37 + i)
        rates = step(tf.constant(draw(i, "float32")))
        for name, reference in references.items():
            rate = float(rates[name])
            record = reference.take({name: params[name]}, {name: draw(i, "float32")}, rate)
            assert differences(optimizers[name], {name: variables[name]}, record) == {}
            params[name] = record[f"{name}/param"]


# Loops


class Small(tf.Module):
    """A model without Keras: an embedding, a layer, and a bias in half precision."""

    def __init__(self) -> None:
        super().__init__(name="small")
        with self.name_scope:
            self.table = tf.Variable(draw(0, "float32", (11, 6)), name="table")
            self.kernel = tf.Variable(draw(1, "float32", (6, 4)), name="kernel")
            self.bias = tf.Variable(draw(2, "bfloat16", (4,)), name="bias")

    def loss(self, tokens: tf.Tensor) -> tf.Tensor:
        rows = tf.gather(self.table, tokens)
        out = tf.tanh(tf.matmul(rows, self.kernel) + tf.cast(self.bias, tf.float32))
        return tf.reduce_mean(tf.square(out - 0.5))


TOKENS = np.array([[3, 1, 3, 3, 10], [0, 0, 0, 0, 0], [9, 8, 7, 8, 9]])


def by_path(variables: Any) -> dict[str, Any]:
    return {variable.name.partition(":")[0]: variable for variable in variables}


def named_like_state(variables: Mapping[str, Any]) -> dict[str, Any]:
    """By the names that an optimizer makes for their state."""
    return {path.replace("/", "_"): variable for path, variable in variables.items()}


def renamed(record: Record) -> Record:
    return {
        f"{name.replace('/', '_')}/{field}": x for key, x in record.items() for name, _, field in [key.rpartition("/")]
    }


@every_mode
def test_a_loop_with_a_tape(mode: str) -> None:
    """Names have scopes, the table's gradient has rows more than once, and a step is traced once."""
    base, rule = AdamW(weight_decay=0.1), magma()
    model, traces = Small(), []
    variables = by_path(model.trainable_variables)
    assert sorted(variables) == ["small/bias", "small/kernel", "small/table"]
    optimizer = MaskedOptimizer(RATE, rule, base)
    optimizer.build(list(variables.values()))

    def train(tokens: tf.Tensor) -> Any:
        traces.append(tokens)
        with tf.GradientTape() as tape:
            loss = model.loss(tokens)
        grads = dict(zip(variables, tape.gradient(loss, list(variables.values())), strict=True))
        optimizer.apply_gradients(zip(grads.values(), variables.values(), strict=True))
        return {name: tf.convert_to_tensor(grad) for name, grad in grads.items()}

    step, reference = MODES[mode](train), Reference(base, rule)
    params = {name: variable.numpy() for name, variable in variables.items()}
    for tokens in TOKENS:
        grads = step(tf.constant(tokens))
        record = reference.take(params, grads)
        params = {name: record[f"{name}/param"] for name in params}
        assert differences(optimizer, named_like_state(variables), renamed(record)) == {}
    assert mode == "eager" or len(traces) == 1
    assert int(optimizer.iterations.numpy()) == len(TOKENS)


@pytest.mark.parametrize("sparse", ["slices", "tape"])
@every_mode
def test_rows_that_occur_twice_are_added(mode: str, sparse: str) -> None:
    """The step sees the sum, exact here; rows without a gradient have one of zeros, so their moments fade."""
    base, rule = Adam(), damping()
    table = tf.Variable(draw(0, "float32", (7, 3)), name="table")
    optimizer = MaskedOptimizer(RATE, rule, base, block_axes=(0,))
    optimizer.build([table])
    rows, values = np.array([5, 1, 5, 5, 0]), np.arange(15, dtype=np.float32).reshape(5, 3) - 7
    dense = np.zeros((7, 3), np.float32)
    np.add.at(dense, rows, values)

    def train(rows: tf.Tensor, values: tf.Tensor) -> None:
        if sparse == "slices":
            grad = tf.IndexedSlices(values, rows, tf.constant([7, 3]))
        else:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(table, rows) * values)
            grad = tape.gradient(loss, table)
            assert isinstance(grad, tf.IndexedSlices)
        optimizer.apply([grad], [table])

    step, reference, param = MODES[mode](train), Reference(base, rule, (0,)), table.numpy()
    for _ in range(3):
        step(tf.constant(rows), tf.constant(values))
        record = reference.take({"table": param}, {"table": dense})
        assert differences(optimizer, {"table": table}, record) == {}
        param = record["table/param"]


STEPS = 3


@pytest.mark.parametrize(
    ("mode", "loop", "setting", "fmt"),
    [
        ("graph", "unrolled", "adamw", "float32"),
        ("graph", "range", "sgd", "bfloat16"),
        ("xla", "unrolled", "sgd", "float32"),
        ("xla", "unrolled", "sgd", "bfloat16"),
        ("xla", "while_loop", "nesterov", "bfloat16"),
        ("xla", "range", "adamw", "float32"),
    ],
)
def test_several_steps_in_one_program(mode: str, loop: str, setting: str, fmt: str) -> None:
    """What a step writes is what the next one reads, rounded."""
    base, rule, axes = SETTINGS[setting]
    variable = tf.Variable(draw(0, fmt), name="w")
    optimizer = MaskedOptimizer(RATE, rule, base, block_axes=axes)
    optimizer.build([variable])
    grads = np.stack([draw(i, fmt) for i in range(1, STEPS + 1)])

    def turn(grads: tf.Tensor, i: Any) -> Any:
        optimizer.apply([grads[i]], [variable])
        return i + 1

    def unrolled(grads: tf.Tensor) -> None:
        for i in range(STEPS):
            turn(grads, i)

    def while_loop(grads: tf.Tensor) -> None:
        tf.while_loop(lambda i: i < STEPS, lambda i: (turn(grads, i),), (tf.constant(0),))

    def over_range(grads: tf.Tensor) -> None:
        for i in tf.range(STEPS):
            optimizer.apply([grads[i]], [variable])

    MODES[mode]({"unrolled": unrolled, "while_loop": while_loop, "range": over_range}[loop])(tf.constant(grads))
    reference, param = Reference(base, rule, axes), draw(0, fmt)
    for grad in grads:
        record = reference.take({"w": param}, {"w": grad})
        param = record["w/param"]
    assert differences(optimizer, {"w": variable}, record) == {}
    assert int(optimizer.iterations.numpy()) == STEPS


@pytest.mark.parametrize(
    ("mode", "fmt"), [("eager", "bfloat16"), ("graph", "float16"), ("xla", "float16"), ("xla", "float32")]
)
def test_formats_in_one_step(mode: str, fmt: str) -> None:
    """Hard values, a scalar and a tensor without elements beside another; the last two steps are not finite."""
    base, rule = AdamW(weight_decay=0.1), magma(p=0.7)
    shapes: dict[str, tuple[int, ...]] = {"matrix": (6, 5), "scalar": (), "empty": (0, 3), "vector": (9,)}
    kinds = ["normal", "wide", "tiny", "outlier", *POISON]
    rng = np.random.default_rng(0)
    params = {name: make_mixture(shape, fmt, rng) for name, shape in shapes.items()}
    variables = {name: tf.Variable(x, name=name) for name, x in params.items()}
    optimizer = MaskedOptimizer(RATE, rule, base)
    optimizer.build(list(variables.values()))
    step = MODES[mode](lambda grads: optimizer.apply(grads, list(variables.values())))
    reference = Reference(base, rule)
    for kind in kinds:
        grads = {name: make(kind, shape, fmt, rng) for name, shape in shapes.items()}
        step([tf.constant(x) for x in grads.values()])
        record = reference.take(params, grads)
        assert differences(optimizer, variables, record) == {}, kind
        params = {name: record[f"{name}/param"] for name in params}


@pytest.mark.parametrize("shape", [None, (None, None), (None, SHAPE[1])], ids=str)
def test_gradients_of_a_shape_that_is_not_known_before(shape: Any) -> None:
    base, rule = AdamW(), damping()
    variable = tf.Variable(draw(0, "float32"), name="w")
    optimizer = MaskedOptimizer(RATE, rule, base, block_axes=(1,))
    optimizer.build([variable])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def step(grad: tf.Tensor) -> None:
        optimizer.apply([grad], [variable])

    step(tf.constant(draw(1, "float32")))
    record = Reference(base, rule, (1,)).take({"w": draw(0, "float32")}, {"w": draw(1, "float32")})
    assert differences(optimizer, {"w": variable}, record) == {}
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        step(tf.zeros((3, SHAPE[1])))


def test_two_variables_of_one_name_are_refused_with_the_remedy() -> None:
    """tf.Variable calls all that have no name "Variable:0"."""
    variables = [tf.Variable([1.0]), tf.Variable([2.0])]
    optimizer = MaskedOptimizer(RATE, magma())
    with pytest.raises(ValueError, match=r"Variable.*name"):
        optimizer.apply([tf.constant([1.0])] * 2, variables)
    assert not optimizer.built
    np.testing.assert_array_equal([x.numpy() for x in variables], [[1.0], [2.0]])


@every_mode
def test_a_checkpoint_is_resumed(mode: str, tmp_path: Any) -> None:
    """In a new optimizer, built before or after the checkpoint is restored."""
    base, rule = AdamW(weight_decay=0.1), magma()
    grads = [draw(i, "float32") for i in range(1, 5)]

    def start() -> Any:
        variable = tf.Variable(draw(0, "float32"), name="w")
        optimizer = MaskedOptimizer(RATE, rule, base, block_axes=(0,))
        step = MODES[mode](lambda grad: optimizer.apply([grad], [variable]))
        return variable, optimizer, step, tf.train.Checkpoint(variable=variable, optimizer=optimizer)

    variable, optimizer, step, checkpoint = start()
    optimizer.build([variable])
    for grad in grads[:2]:
        step(tf.constant(grad))
    path = checkpoint.write(str(tmp_path / "at"))
    variable, optimizer, step, checkpoint = start()
    optimizer.build([variable])
    checkpoint.read(path).assert_consumed()
    for grad in grads[2:]:
        step(tf.constant(grad))
    reference, param = Reference(base, rule, (0,)), draw(0, "float32")
    for grad in grads:
        record = reference.take({"w": param}, {"w": grad})
        param = record["w/param"]
    assert differences(optimizer, {"w": variable}, record) == {}
