"""Every bad input is refused before anything changes, with a message that names the argument and its value."""

import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal

import magma_core
from magma_core import SGD, Adam, AdamW, LaProp, RMSProp, Rule, State
from magma_core.optional import require

ABOVE_BETA = 1 - 2.0**-25  # rounds to 1 in binary32, where bias correction would divide by 0
BELOW_SMALLEST = 2.0**-101
NAN, INF = float("nan"), float("inf")

IN_UNIT = [-0.1, 1.5, -INF, INF, NAN]
BETA = [-0.1, 1.0, 2, ABOVE_BETA, NAN]
POSITIVE = [0, 0.0, -1.0, BELOW_SMALLEST, INF, NAN, 1e39]
NOT_NEGATIVE = [-1e-9, -1, INF, NAN, 1e39]
NOT_NUMBERS = [True, False, "0.5", None, 0.5j, [0.5], np.float32([0.5])]

RULE_VALUES = {"p": IN_UNIT, "initial_score": IN_UNIT, "ema": BETA, "tau": POSITIVE}
BASE_VALUES = {
    "momentum": BETA,
    "beta1": BETA,
    "beta2": BETA,
    "eps": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
}
BASES = {
    SGD: ("momentum", "weight_decay"),
    RMSProp: ("beta2", "eps", "momentum", "weight_decay"),
    Adam: ("beta1", "beta2", "eps"),
    AdamW: ("beta1", "beta2", "eps", "weight_decay"),
    LaProp: ("beta1", "beta2", "eps", "weight_decay"),
}
HELPERS = {
    magma_core.dense: (),
    magma_core.skip_update: ("p",),
    magma_core.magma: ("p", "tau", "ema", "initial_score"),
    magma_core.damping: ("tau", "ema", "initial_score"),
    magma_core.score_survival: ("tau", "ema", "initial_score"),
}


def shown(value: Any) -> str:
    """How a message quotes a value: the start is enough."""
    return re.escape(repr(value)[:30])


def label(value: Any) -> str:
    return repr(value)[:12] if not callable(value) else value.__name__


def cases(table, values):
    return [(make, name, value) for make, names in table.items() for name in names for value in values[name]]


# Hyper-parameters


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(BASES, BASE_VALUES) + cases({Rule: RULE_VALUES}, RULE_VALUES) + cases(HELPERS, RULE_VALUES),
    ids=label,
)
def test_hyper_parameter_out_of_range(make, name, value):
    """The message gives the name, the value and the range, which is the remedy."""
    with pytest.raises(ValueError, match=rf"{name} must (lie in|be)") as error:
        make(**{name: value})
    assert repr(value)[:30] in str(error.value)


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=label)
@pytest.mark.parametrize(
    ("make", "name"),
    [(make, name) for table in (BASES, {Rule: RULE_VALUES}, HELPERS) for make in table for name in table[make]],
    ids=label,
)
def test_hyper_parameter_of_wrong_type(make, name, value):
    with pytest.raises(TypeError, match=rf"{name} must be .*{shown(value)}"):
        make(**{name: value})


@pytest.mark.parametrize(("make", "name"), [(Rule, "p"), (Rule, "tau"), (SGD, "momentum"), (AdamW, "weight_decay")])
@pytest.mark.parametrize("sign", [1, -1])
def test_hyper_parameter_that_no_float_holds(make, name, sign):
    """An integer so large that ``float`` raises an OverflowError of its own."""
    with pytest.raises(ValueError, match=rf"{name} must (lie in|be)"):
        make(**{name: sign * 10**400})


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("survival", "coin", "'p', 'score'"),
        ("weight", "p", "'inverse_p', 'score', 'one'"),
        ("momentum", "during", "'after', 'before'"),
        ("momentum", 0.9, "'after', 'before'"),
        ("decay", "skip", "'masked', 'dense'"),
        ("decay", None, "'masked', 'dense'"),
        ("decay", True, "'masked', 'dense'"),
    ],
)
def test_choice_not_among_the_choices(name, value, remedy):
    with pytest.raises(ValueError, match=rf"{name} must be one of {remedy}, got {shown(value)}"):
        Rule(**{name: value})


@pytest.mark.parametrize("value", ["no", None])
@pytest.mark.parametrize(("make", "name"), [(SGD, "nesterov"), (magma_core.score_survival, "damped")], ids=label)
def test_flag_that_is_not_a_bool(make, name, value):
    """``nesterov="no"`` must not switch it on."""
    with pytest.raises(TypeError, match=rf"{name}.*{shown(value)}"):
        make(**{name: value})


def test_hyper_parameters_on_the_edge_are_accepted():
    """The bounds themselves, and NumPy's numbers."""
    largest_beta, smallest = 1 - 2.0**-24, 2.0**-100
    for value in (0, 0.0, 1, 1.0, np.float32(0.5), np.float64(0.5), np.int64(1)):
        Rule(p=value, initial_score=value)
    Rule(ema=largest_beta, tau=smallest)
    Rule(ema=0, tau=3e38)
    for make, names in BASES.items():
        for name in names:
            low, high = {"eps": (smallest, 3e38), "weight_decay": (0, 3e38)}.get(name, (0, largest_beta))
            make(**{name: low})
            make(**{name: high})


def test_hyper_parameters_are_frozen():
    """A changed field would escape its check."""
    for instance in (SGD(), RMSProp(), Adam(), AdamW(), LaProp(), Rule()):
        name = next(iter(vars(instance)))
        with pytest.raises(AttributeError, match=f"cannot assign to field '{name}'"):
            setattr(instance, name, 2.0)


# The arguments of a step


class Call:
    """A valid call of `update_all` with two parameters, in which one thing can be made wrong."""

    def __init__(self, backend: Any) -> None:
        self.shapes = {"a": (2, 3), "b": (4,)}
        xp = self.xp = backend.xp
        self.backend = backend
        self.base, self.rule = AdamW(), magma_core.magma()
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=shape).astype(np.float32) for shape in self.shapes.values()]
        self.params = [backend.from_numpy(x) for x in arrays]
        self.grads = [backend.from_numpy(x) for x in arrays]
        self.names = list(self.shapes)
        self.block_axes = {"a": (0,), "b": ()}
        self.step, self.seed, self.lr = 1, 0, 0.1
        self.states = [
            magma_core.init(p, base=self.base, rule=self.rule, block_axes=self.block_axes[name], name=name, xp=xp)
            for p, name in zip(self.params, self.names, strict=True)
        ]

    def state(self, **fields: Any) -> list[State]:
        return [self.states[0]._replace(**fields), self.states[1]]

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        return self.backend.from_numpy(np.zeros(shape, dtype))

    def copies(self) -> list[np.ndarray]:
        leaves = [*self.params, *self.grads, *(x for state in self.states for x in state if x is not None)]
        return [np.array(self.backend.to_numpy(x)) for x in leaves]

    def refuses(self, error: Any, pattern: str, **changes: Any) -> None:
        arguments = {**vars(self), **changes}
        options = {name: arguments[name] for name in ("names", "step", "lr", "base", "rule", "seed", "block_axes")}
        before = self.copies()
        with pytest.raises(error, match=pattern):
            magma_core.update_all(arguments["params"], arguments["grads"], arguments["states"], **options, xp=self.xp)
        for now, then in zip(self.copies(), before, strict=True):
            assert_bits_equal(now, then)


@pytest.fixture
def call(backend):
    return Call(backend)


@pytest.mark.parametrize("backend", ["numpy", "strict", "torch", "tensorflow"], indirect=True)
def test_valid_call_is_accepted(call):
    """Otherwise every refusal below could have another reason than it says. (JAX would compile for seconds.)"""
    options = {name: vars(call)[name] for name in ("names", "step", "lr", "base", "rule", "seed", "block_axes")}
    params, _, _ = magma_core.update_all(call.params, call.grads, call.states, **options, xp=call.xp)
    assert [tuple(p.shape) for p in params] == list(call.shapes.values())


@pytest.mark.parametrize("step", [0, -1, 2**32, 2**64])
def test_step_out_of_range(call, step):
    call.refuses(ValueError, rf"step must lie in \[1, 4294967295\], got {step}: the first step is 1", step=step)


@pytest.mark.parametrize("step", [1.0, True, "1", None, NAN], ids=repr)
def test_step_not_an_integer(call, step):
    call.refuses(TypeError, f"step must be an integer, got {shown(step)}", step=step)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(call, seed):
    call.refuses(ValueError, rf"seed must lie in \[0, .*got {seed}: take it modulo", seed=seed)


@pytest.mark.parametrize("seed", [0.0, True, "7", None], ids=repr)
def test_seed_not_an_integer(call, seed):
    call.refuses(TypeError, f"seed must be an integer, got {shown(seed)}", seed=seed)


@pytest.mark.parametrize("lr", [-1e-3, -1, INF, -INF, NAN, 1e39], ids=repr)
def test_learning_rate_out_of_range(call, lr):
    call.refuses(ValueError, rf"lr must be .*{shown(lr)}", lr=lr)


@pytest.mark.parametrize("lr", ["0.1", True, None, 1j, [0.1]], ids=repr)
def test_learning_rate_not_a_number(call, lr):
    call.refuses(TypeError, f"lr must be a real number, got {shown(lr)}", lr=lr)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", np.float32(1.5)),
        ("step", np.ones(2, np.int32)),
        ("seed", np.float32(1.5)),
        ("seed", np.ones(2, np.int32)),
        ("lr", np.ones(2, np.float32)),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{x.dtype}{list(x.shape)}",
)
def test_scalar_argument_as_an_array_of_wrong_shape_or_dtype(call, name, value):
    """Its value may be known to nobody yet, its shape and dtype always are; one value per block would go unnoticed."""
    call.refuses((TypeError, ValueError), name, **{name: call.backend.from_numpy(value.reshape(value.shape))})


@pytest.mark.parametrize("base", ["adamw", AdamW, None, Rule()], ids=repr)
def test_base_of_wrong_type(call, base):
    call.refuses(TypeError, f"base must be an instance of one of SGD.*AdamW.*got {shown(base)}", base=base)


@pytest.mark.parametrize("rule", ["magma", Rule, magma_core.magma, None, AdamW()], ids=label)
def test_rule_of_wrong_type(call, rule):
    call.refuses(TypeError, rf"rule must be a magma_core.Rule such as magma\(\).*{shown(rule)}", rule=rule)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.complex64, np.int64, bool], ids=lambda d: d.__name__)
def test_parameter_of_unsupported_dtype(call, dtype):
    bad = call.array((2, 3), dtype)
    pattern = rf"parameter 'a' must be .*float32.*got .*{np.dtype(dtype).name}.*: cast it"
    call.refuses(TypeError, pattern, params=[bad, call.params[1]], grads=[bad, call.grads[1]])
    with pytest.raises(TypeError, match=pattern):
        magma_core.init(bad, base=call.base, rule=call.rule, block_axes=(0,), name="a", xp=call.xp)


@pytest.mark.parametrize("backend", ["numpy"], indirect=True)
def test_parameter_of_another_library(call):
    """Only who calls the core gives a namespace; users of a framework hear nothing of it."""
    tensor = SimpleNamespace(dtype="torch.float32", shape=(2, 3))
    pattern = "parameter 'a' must be .* of torch.float32: pass the namespace that it belongs to as xp"
    call.refuses(TypeError, pattern, params=[tensor, call.params[1]])


@pytest.mark.parametrize("value", [[1.0, 2.0], 1.0, None, "w"], ids=repr)
def test_parameter_not_an_array(call, value):
    pattern = rf"parameter 'b' must be an array .*{type(value).__name__}"
    call.refuses(TypeError, pattern, params=[call.params[0], value])
    with pytest.raises(TypeError, match=pattern):
        magma_core.init(value, base=call.base, rule=call.rule, block_axes=(), name="b", xp=call.xp)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (6,), (), (2, 0)])
def test_gradient_of_wrong_shape(call, shape):
    pattern = rf"gradient of 'a' must have shape \(2, 3\), got {re.escape(str(shape))}"
    call.refuses(ValueError, pattern, grads=[call.array(shape), call.grads[1]])


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.float16], ids=lambda d: d.__name__)
def test_gradient_of_wrong_dtype(call, dtype):
    if dtype is np.float16 and "float16" not in call.backend.formats:
        pytest.skip("the standard has no half precision")
    pattern = rf"gradient of 'a' must have dtype .*float32.*got .*{np.dtype(dtype).name}.*: cast it"
    call.refuses(TypeError, pattern, grads=[call.array((2, 3), dtype), call.grads[1]])


@pytest.mark.parametrize("value", [None, 1.0, [[0.0] * 3] * 2], ids=repr)
def test_gradient_not_an_array(call, value):
    pattern = f"gradient of 'a' must be an array, got {type(value).__name__}"
    call.refuses(TypeError, pattern, grads=[value, call.grads[1]])


@pytest.mark.parametrize(
    ("field", "shape"),
    [("mu", (3, 2)), ("nu", (2,)), ("mu_power", (1,)), ("nu_power", (2, 3)), ("score", (3,)), ("score", (2, 1))],
)
def test_state_of_wrong_shape(call, field, shape):
    pattern = rf"state.{field} of 'a' must have shape .*, got {re.escape(str(shape))}"
    call.refuses(ValueError, pattern, states=call.state(**{field: call.array(shape)}))


@pytest.mark.parametrize("field", State._fields)
@pytest.mark.parametrize("dtype", [np.float64, np.int32], ids=lambda d: d.__name__)
def test_state_of_wrong_dtype(call, field, dtype):
    bad = call.array(tuple(getattr(call.states[0], field).shape), dtype)
    pattern = rf"state.{field} of 'a' must have dtype .*float32.*got .*{np.dtype(dtype).name}"
    call.refuses(TypeError, pattern, states=call.state(**{field: bad}))


@pytest.mark.parametrize("field", State._fields)
def test_state_with_a_missing_field(call, field):
    pattern = rf"state.{field} of 'a' is missing: make the state with init\(\)"
    call.refuses(ValueError, pattern, states=call.state(**{field: None}))


@pytest.mark.parametrize(
    ("base", "rule", "field"),
    [
        (SGD(), magma_core.magma(), "nu"),
        (SGD(), magma_core.magma(), "nu_power"),
        (RMSProp(), magma_core.skip_update(), "mu"),
        (AdamW(), magma_core.skip_update(), "score"),
        (AdamW(), magma_core.dense(), "score"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_state_with_a_superfluous_field(call, base, rule, field):
    """It would be carried along unchanged, and the caller believe that it took part."""
    states = [
        magma_core.init(p, base=base, rule=rule, block_axes=call.block_axes[name], xp=call.xp)
        for p, name in zip(call.params, call.names, strict=True)
    ]
    states[0] = states[0]._replace(**{field: getattr(call.states[0], field)})
    pattern = rf"state.{field} of 'a' must be None .*: make the state with init\(\)"
    call.refuses(ValueError, pattern, states=states, base=base, rule=rule)


def test_state_score_of_an_unmasked_parameter(call):
    pattern = r"state.score of 'a' must be None .*: make the state with init\(\)"
    call.refuses(ValueError, pattern, block_axes={"a": None, "b": ()})


@pytest.mark.parametrize("value", [None, (), {}, "state"], ids=repr)
def test_state_of_wrong_type(call, value):
    pattern = f"state of 'a' must be a magma_core.State, got {type(value).__name__}"
    call.refuses(TypeError, pattern, states=[value, call.states[1]])
    call.refuses(TypeError, "magma_core.State, got tuple", states=[tuple(call.states[0]), call.states[1]])


@pytest.mark.parametrize("name", ["names", "grads", "states", "params"])
def test_lists_of_different_length(call, name):
    """The message names a list that is too short or too long, and both lengths."""
    for changed in (getattr(call, name)[:1], [*getattr(call, name), getattr(call, name)[0]]):
        call.refuses(ValueError, rf"(params|grads|states|names).*{len(changed)}", **{name: changed})


def test_names_twice(call):
    call.refuses(ValueError, "names must all be different, but 'a' is there twice", names=["a", "a"])


@pytest.mark.parametrize("name", [3, None, b"b", ("b",)], ids=repr)
def test_names_not_strings(call, name):
    call.refuses(TypeError, f"names must be strings, got {shown(name)}", names=["a", name])


@pytest.mark.parametrize("backend", ["numpy"], indirect=True)
def test_names_that_utf8_cannot_write(call):
    """A lone surrogate has no UTF-8, so no mask key (spec 7.2)."""
    axes = {"a": (0,), "\ud800": ()}
    call.refuses(ValueError, r"name.*'\\ud800'", names=["a", "\ud800"], block_axes=axes)


def test_block_axes_without_an_entry(call):
    pattern = r"block_axes has no entry for 'b': give the axes .*\(\) for one block, or None not to mask it"
    call.refuses(ValueError, pattern, block_axes={"a": (0,)})


def refuses_axes(call: Call, error: type[Exception], pattern: str, axes: Any) -> None:
    """By `update_all`, `init` and `cut` alike."""
    call.refuses(error, pattern, block_axes={"a": axes, "b": ()})
    with pytest.raises(error, match=pattern):
        magma_core.init(call.params[0], base=call.base, rule=call.rule, block_axes=axes, name="a", xp=call.xp)
    with pytest.raises(error, match=pattern):
        magma_core.cut((2, 3), axes, name="a")


@pytest.mark.parametrize("axes", [(2,), (-3,), (0, 5), (2**40,)])
def test_block_axes_out_of_range(call, axes):
    bad = next(axis for axis in axes if not -2 <= axis < 2)
    refuses_axes(call, ValueError, rf"block_axes of 'a' .*{bad}.* shape \(2, 3\): use axes from -2 to 1", axes)


@pytest.mark.parametrize("axes", [(0, 0), (0, -2), (1, 0, -1)])
def test_block_axes_repeated(call, axes):
    pattern = rf"block_axes of 'a' names an axis twice: {re.escape(str(axes))}; name each once"
    refuses_axes(call, ValueError, pattern, axes)


@pytest.mark.parametrize("axes", [(0.0,), ("0",), (None,), 0, "0", ((0,),), (NAN,), (True,)], ids=repr)
def test_block_axes_not_integers(call, axes):
    refuses_axes(call, TypeError, rf"block_axes of 'a' must be a sequence of integers, got {shown(axes)}", axes)


def test_block_axes_of_a_scalar_parameter(call):
    """Axis 0 of no axes; the only valid answer is ()."""
    for axes in [(0,), (-1,)]:
        with pytest.raises(ValueError, match=r"block_axes of 's' has axis .* shape \(\).*\(\) for a single block"):
            magma_core.cut((), axes, name="s")
    assert magma_core.cut((), (), name="s").count == 1


@pytest.mark.parametrize(
    ("axes", "pattern"),
    [
        ((), r"a block of 'w' has 8589934592 elements, more than 2\*\*32: name more of the axes"),
        ((0, 1), r"'w' has 8589934592 blocks, more than 2\*\*32: name fewer of the axes"),
    ],
)
def test_block_of_more_than_2_32_elements(axes, pattern):
    """Or more than 2³² blocks, whose index would not fit a word. NumPy gives the shape without the memory."""
    from magma_numpy import namespace as xp

    shape = (2**17, 2**16)
    large = np.broadcast_to(np.float32(0), shape)
    options = {"base": SGD(), "rule": magma_core.magma(), "xp": xp}
    with pytest.raises(ValueError, match=pattern):
        magma_core.cut(shape, axes, name="w")
    with pytest.raises(ValueError, match=pattern):
        magma_core.init(large, block_axes=axes, name="w", **options)
    with pytest.raises(ValueError, match=pattern):
        magma_core.update(
            large, large, State(large, score=large), name="w", step=1, lr=0.1, seed=0, block_axes=axes, **options
        )


def test_block_of_exactly_2_32_elements_is_accepted():
    assert magma_core.cut((2**16, 2**16), (), name="w").block_size == 2**32
    assert magma_core.cut((2**16, 2**16), (0, 1), name="w").count == 2**32


def test_second_parameter_is_checked_before_the_first_moves(call):
    """An error in the last parameter leaves all as they were: `refuses` compares them."""
    call.refuses(ValueError, "gradient of 'b'", grads=[call.grads[0], call.array((5,))])
    call.refuses(ValueError, "state.mu of 'b'", states=[call.states[0], call.states[1]._replace(mu=None)])


def test_update_of_one_parameter_checks_too(call):
    options = {"base": call.base, "rule": call.rule, "block_axes": (0,), "xp": call.xp, "name": "a", "seed": 0}
    with pytest.raises(ValueError, match="step must lie in"):
        magma_core.update(call.params[0], call.grads[0], call.states[0], step=0, lr=0.1, **options)
    with pytest.raises(ValueError, match="gradient of 'a'"):
        magma_core.update(call.params[0], call.array((3, 2)), call.states[0], step=1, lr=0.1, **options)


# Frameworks


def python(code: str) -> str:
    """The output of a Python of its own: what is imported here must not matter."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize(
    ("package", "framework", "extra"),
    [
        ("magma_torch", "torch", "torch"),
        ("magma_torch.namespace", "torch", "torch"),
        ("magma_jax", "jax", "jax"),
        ("magma_jax.namespace", "jax", "jax"),
        ("magma_tensorflow", "tensorflow", "tensorflow"),
        ("magma_tensorflow.namespace", "tensorflow", "tensorflow"),
        ("magma_conformance.implementations.strict", "array_api_strict", "strict"),
    ],
)
def test_framework_missing(package, framework, extra):
    message = python(
        f"""
        import sys
        sys.modules["{framework}"] = None  # what a meta-path finder does for a module that is not there
        try:
            import {package}
        except ImportError as error:
            print(error)
        """
    )
    other_build = ", or pip install tensorflow-cpu" if framework == "tensorflow" else ""
    assert message == f"{framework} is not installed: pip install 'magma-optim[{extra}]'{other_build}"


def test_framework_installed_but_broken(tmp_path, monkeypatch):
    """Then the advice to install it would mislead: the error of what is missing passes through."""
    (tmp_path / "framework_that_is_broken.py").write_text("import something_that_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'something_that_it_needs'"):
        require("framework_that_is_broken", extra="torch")


def test_import_of_the_core_imports_no_framework():
    loaded = python(
        """
        import sys
        import magma_core, pkgutil, importlib
        for module in pkgutil.walk_packages(magma_core.__path__, "magma_core."):
            importlib.import_module(module.name)
        names = ("torch", "jax", "tensorflow", "keras", "numpy", "ml_dtypes", "array_api_compat")
        print([name for name in names if name in sys.modules])
        """
    )
    assert loaded == "[]"


@pytest.mark.parametrize("package", ["magma_numpy", "magma_torch", "magma_jax"])
def test_import_of_a_backend_imports_no_other_framework(package):
    """Frameworks that meet in one process may disturb each other; only the caller brings them together.

    TensorFlow is not here: it imports JAX by itself where it finds it.
    """
    others = {"torch", "jax", "tensorflow"} - {package.removeprefix("magma_")}
    loaded = python(f"import sys, {package}.namespace; print({others!r} & set(sys.modules))")
    assert loaded == "set()"
