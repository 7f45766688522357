"""Compiled programs give the bits of eager ones.

Which values are traced and which are constants decides what a compiler may fold, and so which operations it may then
contract or rewrite.
"""

from typing import Any

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from steps import any_bits, assert_same, from_numpy, label, to_numpy

import magma_core
from magma_core import SGD, Adam, AdamW, LaProp, Report, RMSProp, dense, magma, score_survival
from magma_core import skip_update as skip

INPUTS = ("param", "grad", "state", "lr", "step", "seed")
CONSTANTS = [
    (),
    ("state", "step", "seed", "lr"),
    ("state", "param", "step", "seed", "lr"),
    ("param", "grad", "state", "step", "seed"),
]
COMPILED_PAIRS = [
    (AdamW(), magma()),
    (Adam(), skip()),
    (SGD(nesterov=True, weight_decay=0.1), magma(decay="dense", momentum="before")),
    (RMSProp(), score_survival(damped=True)),
    (LaProp(weight_decay=0.1), dense(decay="dense")),
]


class Program:
    """Two steps of one parameter large enough for a contracted operation to show, and what NumPy makes of them."""

    shape = (16, 64)
    axes = (0,)

    def __init__(self, numpy_backend: Any, base: Any, rule: Any, dtype: Any = np.float32) -> None:
        rng = np.random.default_rng(8)
        self.options = {"base": base, "rule": rule, "block_axes": self.axes}
        self.numpy = numpy_backend
        self.start = rng.normal(size=self.shape).astype(dtype)
        self.grads = [rng.normal(size=self.shape).astype(dtype) for _ in range(3)]
        self.states = [magma_core.init(self.start, **self.options, xp=numpy_backend.xp)]
        self.params, self.results = [self.start], []
        for step, grad in enumerate(self.grads, 1):
            result = self.update(numpy_backend.xp, self.params[-1], grad, self.states[-1], step=step)
            self.results.append(to_numpy(numpy_backend, list(result)))
            self.params.append(result[0])
            self.states.append(result[1])

    def update(self, xp: Any, param: Any, grad: Any, state: Any, *, step: Any, lr: Any = 0.05, seed: Any = 7) -> Any:
        return magma_core.update(param, grad, state, name="w", step=step, lr=lr, seed=seed, **self.options, xp=xp)

    def inputs(self, backend: Any, step: int) -> dict[str, Any]:
        """As arrays that can be traced."""
        arrays = [self.params[step - 1], self.grads[step - 1], self.states[step - 1]]
        values = dict(zip(INPUTS, [from_numpy(backend, x) for x in arrays], strict=False))
        return values | {
            "lr": backend.from_numpy(np.float32(0.05)),
            "step": backend.from_numpy(np.int32(step)),
            "seed": backend.from_numpy(np.int32(7)),
        }

    def check(self, backend: Any, compile: Any, constants: tuple[str, ...], step: int) -> None:
        """Compile a step with some inputs closed over, and compare with the reference."""
        values = self.inputs(backend, step)
        python = {"lr": 0.05, "step": step, "seed": 7}  # a constant is written as a Python number
        fixed = {name: python.get(name, values[name]) for name in constants}
        traced = {name: value for name, value in values.items() if name not in constants}

        def program(given: dict[str, Any]) -> Any:
            every = fixed | given
            arrays = [every.pop(name) for name in ("param", "grad", "state")]
            return list(self.update(backend.xp, *arrays, **every))

        assert_same(to_numpy(backend, compile(program)(traced)), self.results[step - 1])


@pytest.fixture(scope="module", params=COMPILED_PAIRS, ids=label)
def program(request, numpy_backend):
    return Program(numpy_backend, *request.param)


only_jax = pytest.mark.parametrize("backend", ["jax"], indirect=True)
only_tensorflow = pytest.mark.parametrize("backend", ["tensorflow"], indirect=True)


def plus(names: tuple[str, ...]) -> str:
    return "constant-" + "-".join(names) if names else "all-traced"


@only_jax
@pytest.mark.parametrize("constants", CONSTANTS, ids=plus)
def test_jit_is_eager(backend, program, constants):
    import jax

    program.check(backend, jax.jit, constants, step=1)


@only_jax
def test_jit_of_a_later_step_with_constant_state(backend, program):
    """A state that is not all zeros and ones; the second gradient is what is new."""
    import jax

    program.check(backend, jax.jit, ("state", "param", "step", "seed", "lr"), step=2)


@only_jax
@pytest.mark.parametrize("pair", COMPILED_PAIRS, ids=label)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_jit_in_half_precision(backend, numpy_backend, pair, kind):
    """Widened halves have zeros at the end, which a compiler may know of; the moments are float32 and show more."""
    import jax

    program = Program(numpy_backend, *pair, dtype=backend.numpy_dtype(kind))
    program.check(backend, jax.jit, (), step=2)


@only_jax
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
@pytest.mark.parametrize("constants", CONSTANTS[:2], ids=plus)
def test_jit_with_x64_on(backend, program, constants):
    """What ``jax_enable_x64`` says outside changes no bit and no dtype."""
    import jax

    with jax.enable_x64(True):
        program.check(backend, jax.jit, constants, step=1)
        program.check(backend, lambda f: f, constants, step=1)


@only_jax
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
def test_jit_under_strict_promotion(backend, program):
    """Users forbid implicit changes of dtype and rank; the core makes none."""
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        program.check(backend, jax.jit, (), step=1)


@only_jax
@pytest.mark.parametrize(("length", "wide"), [(1, False), (3, True)])
def test_scan_is_a_loop(backend, program, length, wide):
    """With a constant first carry: XLA unrolls a loop of one, and then sees zeros and ones in the state.

    In one of the cases ``jax_enable_x64`` is on outside, which must not matter.
    """
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(wide):
        first = program.inputs(backend, 1)

        @jax.jit
        def train(grads):
            def body(carry, given):
                step, grad = given
                param, state, report = program.update(backend.xp, carry[0], grad, carry[1], step=step)
                return (param, state), report

            return jax.lax.scan(body, (first["param"], first["state"]), (jnp.arange(1, length + 1), grads))

        (param, state), reports = train(jnp.stack([backend.from_numpy(g) for g in program.grads[:length]]))
    last = Report(*(x if x is None else x[-1] for x in reports))
    assert_same(to_numpy(backend, [param, state, last]), program.results[length - 1])


def from_the_start(program: Program, backend: Any) -> Any:
    """`init` and the first step in one program: the state is known to the compiler."""

    def start(param, grad):
        state = magma_core.init(param, **program.options, xp=backend.xp)
        return list(program.update(backend.xp, param, grad, state, step=1))

    return start


@only_jax
def test_jit_of_init_and_step(backend, program):
    import jax

    first = program.inputs(backend, 1)
    result = jax.jit(from_the_start(program, backend))(first["param"], first["grad"])
    assert_same(to_numpy(backend, result), program.results[0])


def unrolled(program: Program, backend: Any) -> Any:
    """Three steps in one program."""

    def train(param, state, grads):
        for step, grad in enumerate(grads, 1):
            param, state, report = program.update(backend.xp, param, grad, state, step=step)
        return [param, state, report]

    return train


@only_jax
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
def test_jit_of_three_steps(backend, program):
    import jax

    first = program.inputs(backend, 1)
    grads = [backend.from_numpy(g) for g in program.grads]
    result = jax.jit(unrolled(program, backend))(first["param"], first["state"], grads)
    assert_same(to_numpy(backend, result), program.results[2])


@only_jax
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
def test_vmap_over_seeds(backend, program):
    """One optimisation for each seed, all at once."""
    import jax

    values = program.inputs(backend, 1)
    seeds = [7, 8, 2**31 - 1]

    def step(seed):
        return program.update(backend.xp, values["param"], values["grad"], values["state"], step=1, seed=seed)

    batched = to_numpy(backend, list(jax.jit(jax.vmap(step))(backend.from_numpy(np.int32(seeds)))))
    for i, seed in enumerate(seeds):
        start = [program.params[0], program.grads[0], program.states[0]]
        expected = to_numpy(program.numpy, list(program.update(program.numpy.xp, *start, step=1, seed=seed)))
        one = [
            batched[0][i],
            *(type(nest)(*(x if x is None else x[i] for x in nest)) for nest in batched[1:]),
        ]
        assert_same(one, expected)


@only_jax
def test_jit_masked_blocks_keep_their_bits(backend, numpy_backend):
    """XLA on CPU flushes subnormals in arithmetic; a selection is none."""
    import jax

    param = any_bits("finite", (8, 16), np.dtype(np.float32))
    options = {"base": SGD(), "rule": magma(p=0), "block_axes": (0,), "xp": backend.xp}
    p = backend.from_numpy(param)
    state = magma_core.init(p, **options)
    step = jax.jit(lambda p, s: magma_core.update(p, p, s, name="w", step=1, lr=0.1, seed=3, **options)[0])
    assert_bits_equal(backend.to_numpy(step(p, state)), param)


def tf_function(compiled: bool) -> Any:
    import tensorflow as tf

    return lambda function: tf.function(function, autograph=False, jit_compile=compiled)


@only_tensorflow
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("constants", CONSTANTS[:2], ids=plus)
def test_tf_function_is_eager(backend, program, constants, compiled):
    program.check(backend, tf_function(compiled), constants, step=1)


@only_tensorflow
@pytest.mark.parametrize("pair", COMPILED_PAIRS[1:3], ids=label)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_tf_function_in_half_precision(backend, numpy_backend, pair, kind):
    program = Program(numpy_backend, *pair, dtype=backend.numpy_dtype(kind))
    program.check(backend, tf_function(True), ("step", "seed", "lr"), step=2)


@only_tensorflow
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_tf_function_of_init_and_step(backend, program, compiled):
    first = program.inputs(backend, 1)
    result = tf_function(compiled)(from_the_start(program, backend))(first["param"], first["grad"])
    assert_same(to_numpy(backend, result), program.results[0])


@only_tensorflow
@pytest.mark.parametrize("program", COMPILED_PAIRS[:1], indirect=True, ids=label)
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_tf_function_of_three_steps(backend, program, compiled):
    first = program.inputs(backend, 1)
    grads = [backend.from_numpy(g) for g in program.grads]
    result = tf_function(compiled)(unrolled(program, backend))(first["param"], first["state"], grads)
    assert_same(to_numpy(backend, result), program.results[2])


@only_tensorflow
@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_tf_function_masked_blocks_keep_their_bits(backend, numpy_backend, compiled):
    param = any_bits("finite", (8, 16), np.dtype(np.float32))
    options = {"base": SGD(), "rule": magma(p=0), "block_axes": (0,), "xp": backend.xp}
    p = backend.from_numpy(param)
    state = magma_core.init(p, **options)
    step = tf_function(compiled)(
        lambda p, s: magma_core.update(p, p, s, name="w", step=1, lr=0.1, seed=3, **options)[0]
    )
    assert_bits_equal(backend.to_numpy(step(p, state)), param)
