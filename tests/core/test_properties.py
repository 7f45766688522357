"""Properties of steps for all numbers: two ways to a result must agree.

`tests/core/test_oracle.py` says which bits are right.
"""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from steps import (
    AXES,
    BASES,
    HOSTILE,
    NAMES,
    PAIRS,
    RULES,
    Run,
    assert_same,
    from_numpy,
    gradients,
    label,
    on_every_backend,
    one_step,
    parameters,
    to_numpy,
)

import magma_core
from magma_core import SGD, State, magma

# Every backend gives the reference's bits


@pytest.mark.parametrize("pair", PAIRS, ids=label)
def test_update_all_has_the_same_bits_on_every_backend(backend, numpy_backend, pair):
    assert_same(Run(backend, *pair).advance(3).results, Run(numpy_backend, *pair).advance(3).results)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_update_all_has_the_same_bits_in_half_precision(backend, numpy_backend, kind):
    if kind not in backend.formats:
        pytest.skip(f"{backend.name} has no {kind}: the standard has no half precision")
    dtype = backend.numpy_dtype(kind)
    for pair in PAIRS[:2]:
        actual, expected = (Run(one, *pair, dtype=dtype).advance(2) for one in (backend, numpy_backend))
        assert_same(actual.results, expected.results)
        assert {p.dtype for p in expected.params} == {dtype}
        assert {x.dtype for state in expected.states for x in state if x is not None} == {np.dtype(np.float32)}


@pytest.mark.parametrize("pair", PAIRS[:2], ids=label)
def test_update_of_hostile_values(backend, numpy_backend, pair):
    """Every one as a parameter against every one as a gradient, twice; each in a block of its own, or in a row."""
    param, grad = (x.copy() for x in np.broadcast_arrays(HOSTILE[:, None], HOSTILE[None, :]))
    for axes in ((0,), (0, 1))[: 1 if backend.name == "jax" else 2]:
        with np.errstate(all="raise"):  # what a user sets outside does not matter inside
            actual, expected = (
                one_step(one, param, grad, axes, *pair, seed=2, lr=0.5) for one in (backend, numpy_backend)
            )
        assert_same(actual, expected, backend.name)


@pytest.mark.parametrize("backend", ["numpy", "torch", "tensorflow"], indirect=True)
def test_update_all_of_mixed_formats(backend):
    """A network has some parameters in half precision and some not."""
    base, rule = PAIRS[0]
    names = ["w", "v", "plain"]
    arrays = [
        [given[name].astype(backend.numpy_dtype(kind)) for name, kind in zip(names, backend.formats, strict=True)]
        for given in (parameters(), gradients(1))
    ]
    options = {"base": base, "rule": rule, "xp": backend.xp}
    params, grads = from_numpy(backend, arrays)
    states = [magma_core.init(p, block_axes=AXES[name], **options) for p, name in zip(params, names, strict=True)]
    together = magma_core.update_all(
        params, grads, states, names=names, step=1, lr=0.1, seed=3, block_axes=AXES, **options
    )
    for i, name in enumerate(names):
        alone = one_step(backend, arrays[0][i], arrays[1][i], AXES[name], base, rule, name=name)
        assert_same([to_numpy(backend, kind[i]) for kind in together], alone, name)


# Many parameters


@on_every_backend("pair", PAIRS[:3], jax=1)
def test_update_all_is_update_one_at_a_time(backend, pair):
    """So masks depend neither on the other parameters nor on the position among them."""
    together = Run(backend, *pair).advance(2).results
    for i, name in enumerate(NAMES):
        if backend.name != "jax" or name == "w":  # the others take it ten seconds to compile
            alone = Run(backend, *pair, names=[name]).advance(2).results
            assert_same([[kind[i]] for kind in together], alone, name)


def test_update_of_one_parameter_is_update_all(backend):
    base, rule = PAIRS[0]
    run = Run(backend, base, rule, names=["w"]).advance()
    param, grad = parameters()["w"], gradients(1)["w"]
    one = one_step(backend, param, grad, (0,), base, rule, lr=0.05, seed=7)
    assert_same([[x] for x in one], run.results)


def test_update_all_in_another_order(backend):
    order = [3, 5, 0, 4, 2, 1]
    expected = Run(backend, *PAIRS[0]).advance(2).results
    actual = Run(backend, *PAIRS[0], names=[NAMES[i] for i in order]).advance(2).results
    assert_same(actual, [[kind[i] for i in order] for kind in expected])


def test_update_all_of_nothing(backend):
    empty = {"names": [], "block_axes": {}}
    options = {"base": SGD(), "rule": magma(), "step": 1, "lr": 0.1, "seed": 0, "xp": backend.xp}
    assert magma_core.update_all([], [], [], **empty, **options) == ([], [], [])


def test_update_planned_is_update_all(backend):
    """Plans made once serve every step."""
    base, rule = PAIRS[0]
    run = Run(backend, base, rule)
    options = {"names": NAMES, "base": base, "rule": rule, "seed": 7, "block_axes": AXES, "xp": backend.xp}
    plans = magma_core.plan_all(run.params, **options)
    params, states = run.params, run.states
    for step in (1, 2):
        given = [backend.from_numpy(gradients(step)[name]) for name in NAMES]
        params, states, reports = magma_core.update_planned(
            plans, params, given, states, step=step, lr=0.05, xp=backend.xp
        )
    assert_same(to_numpy(backend, [params, states, reports]), run.advance(2).results)


# Resuming and purity


@on_every_backend("pair", PAIRS, jax=1)
def test_resuming_is_not_to_be_told_from_going_on(backend, pair):
    """State and parameters through NumPy, as a checkpoint takes them, after two of four steps."""
    whole = Run(backend, *pair).advance(4)
    first = Run(backend, *pair).advance(2)
    saved = to_numpy(backend, [first.params, first.states])
    second = Run(backend, *pair)
    second.step = 2
    second.params, second.states = from_numpy(backend, saved)
    assert_same(second.advance(2).results, whole.results)


@on_every_backend("pair", PAIRS, jax=1)
def test_inputs_are_not_modified(backend, pair):
    run = Run(backend, *pair).advance()
    before = to_numpy(backend, [run.params, run.states])
    before = [[p.copy() for p in before[0]], [State(*(x if x is None else x.copy() for x in s)) for s in before[1]]]
    lists = [run.params, run.states]
    kept = [list(x) for x in lists]
    run.advance()
    assert all(a is b for old, new in zip(lists, kept, strict=True) for a, b in zip(old, new, strict=True))
    assert_same(to_numpy(backend, lists), before)


@pytest.mark.parametrize("base", BASES, ids=label)
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_read_only_arrays_are_accepted(numpy_backend, base, rule):
    """A memory-mapped checkpoint is read-only: writing in place would raise here."""
    grad, param = gradients(1)["w"], parameters()["w"]
    options = {"base": base, "rule": rule, "block_axes": (0,), "xp": numpy_backend.xp}
    state = magma_core.init(param, **options)
    for x in (param, grad, *state):
        if x is not None:
            x.flags.writeable = False
    for step in (1, 2):
        param, state, _ = magma_core.update(param, grad, state, name="w", step=step, lr=0.1, seed=3, **options)
        for x in (param, *state):
            if x is not None:
                x.flags.writeable = False


class Recorder:
    """The NumPy namespace, noting the shapes that `divide` meets."""

    def __init__(self, xp: ModuleType) -> None:
        self.xp, self.shapes = xp, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.xp, name)

    def divide(self, x1: Any, x2: Any, /) -> Any:
        self.shapes.append((x1.shape, x2.shape))
        return self.xp.divide(x1, x2)


@pytest.mark.parametrize("base", BASES, ids=label)
def test_many_values_are_never_divided_by_one(numpy_backend, base):
    """XLA turns that into a multiplication by the reciprocal, also in eager JAX (docs/numerics.md, F2)."""
    recorder = Recorder(numpy_backend.xp)
    for rule in RULES:
        for axes in ((0,), (), None):
            param = parameters()["w"]
            options = {"base": base, "rule": rule, "block_axes": axes, "xp": recorder}
            state = magma_core.init(param, **options)
            magma_core.update(param, param, state, name="w", step=1, lr=0.1, seed=3, **options)
    assert recorder.shapes
    assert all(np.broadcast_shapes(x1, x2) == x2 for x1, x2 in recorder.shapes)


# PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def through(result: Any, backend: Any) -> Any:
    return to_numpy(backend, list(result))


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("kind", ["transposed", "strided", "expanded", "offset"])
def test_torch_tensors_that_are_not_contiguous(backend, numpy_backend, torch, kind):
    base, rule = PAIRS[0]
    view = {
        "transposed": lambda x: x.T,
        "strided": lambda x: x[::2, ::3],
        "expanded": lambda x: x[:1].expand(6, 8),
        "offset": lambda x: x[1:, 2:],
    }[kind]
    options = {"base": base, "rule": rule, "block_axes": (0,)}
    arguments = {"name": "w", "step": 1, "lr": 0.1, "seed": 3}
    tensors = [view(torch.from_numpy(x)) for x in (parameters()["w"], gradients(1)["w"])]
    plain = [np.ascontiguousarray(x.numpy()) for x in tensors]
    expected = one_step(numpy_backend, *plain, (0,), base, rule)
    state = magma_core.init(tensors[0], **options, xp=backend.xp)
    if kind == "transposed":
        state = State(*(x.T.contiguous().T if x is not None and x.ndim == 2 else x for x in state))
    result = magma_core.update(*tensors, state, **arguments, **options, xp=backend.xp)
    assert_same(through(result, backend), expected)


@pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)
@pytest.mark.parametrize("pair", PAIRS, ids=label)
def test_hardware_that_flushes_subnormals_changes_no_bit(backend, torch, pair):
    """N2. torch sets the processor's flags, for NumPy as well; JAX and TensorFlow have them always set."""
    param, grad = (x.copy() for x in np.broadcast_arrays(HOSTILE[:, None], HOSTILE[None, :]))
    calls = [
        lambda: one_step(backend, param, grad, (0,), *pair, seed=2),
        lambda: Run(backend, *pair).advance(3).results,
    ]
    expected = [call() for call in calls]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such flag")
    try:
        flushed = np.float32([2.0**-126]) * np.float32([0.5])
        actual = [call() for call in calls]
    finally:
        torch.set_flush_denormal(False)
    assert flushed.view(np.int32)[0] == 0
    assert_same(actual, expected)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_torch_default_dtype_does_not_matter(backend, numpy_backend, torch):
    base, rule = PAIRS[0]
    param, grad = parameters()["w"], gradients(1)["w"]
    torch.set_default_dtype(torch.float64)
    try:
        actual = one_step(backend, param, grad, (0,), base, rule)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(actual, one_step(numpy_backend, param, grad, (0,), base, rule))


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_torch_parameters_that_require_gradients(backend, numpy_backend, torch):
    """A step is not differentiated, and what it returns carries no graph."""
    base, rule = PAIRS[0]
    param, grad = parameters()["w"], gradients(1)["w"]
    options = {"base": base, "rule": rule, "block_axes": (0,), "xp": backend.xp}
    leaf = torch.nn.Parameter(torch.from_numpy(param.copy()))
    state = magma_core.init(leaf, **options)
    result = magma_core.update(leaf, torch.from_numpy(grad), state, name="w", step=1, lr=0.1, seed=3, **options)
    assert not any(x.requires_grad for x in (result[0], *result[1], *result[2]) if x is not None)
    assert_same(through(result, backend), one_step(numpy_backend, param, grad, (0,), base, rule))
