"""The public API: names, fields, defaults, and examples that run."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
from typing import Any

import magma_conformance.bits
import ml_dtypes
import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal, first_difference

import magma_core
from magma_core import SGD, Adam, AdamW, LaProp, Report, RMSProp, Rule, State

MODULES = [module.name for module in pkgutil.walk_packages(magma_core.__path__, "magma_core.")]
MODULES += [magma_core.__name__, magma_conformance.bits.__name__]

HELPERS = {
    magma_core.dense: {"survival": "p", "weight": "one", "p": 1.0},
    magma_core.skip_update: {"survival": "p", "weight": "inverse_p"},
    magma_core.magma: {"survival": "p", "weight": "score"},
    magma_core.damping: {"survival": "p", "weight": "score", "p": 1.0},
    magma_core.score_survival: {"survival": "score", "weight": "one"},
}

DEFAULTS = {
    SGD: {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    RMSProp: {"beta2": 0.99, "eps": 1e-8, "momentum": 0.9, "weight_decay": 0.0},
    Adam: {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    AdamW: {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    LaProp: {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    Rule: {
        "survival": "p",
        "weight": "score",
        "p": 0.5,
        "tau": 2.0,
        "ema": 0.9,
        "initial_score": 0.5,
        "momentum": "after",
        "decay": "masked",
    },
}
"""Written once more, from docs/spec.md sections 4 and 6: a default that drifts changes every run that relies on it."""

MOMENTS = {
    SGD: {"mu"},
    RMSProp: {"nu"},
    Adam: {"mu", "nu", "mu_power", "nu_power"},
    AdamW: {"mu", "nu", "mu_power", "nu_power"},
    LaProp: {"mu", "nu", "mu_power", "nu_power"},
}


def name_of(value: Any) -> str:
    return getattr(value, "__name__", str(value))


# Examples


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    outcome = doctest.testmod(importlib.import_module(module), verbose=False)
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples in {module} failed, see above"


@pytest.mark.parametrize("function", [magma_core.init, magma_core.update, magma_core.cut, first_difference])
def test_docstring_of_a_public_function_has_an_example(function):
    """So that the test above tests something."""
    assert doctest.DocTestFinder().find(function, function.__name__)[0].examples


@pytest.mark.parametrize("name", magma_core.__all__)
def test_public_names_exist_and_are_documented(name):
    member = getattr(magma_core, name)
    if inspect.isclass(member) or inspect.isfunction(member):
        assert inspect.getdoc(member), f"{name} has no docstring"


# Defaults


@pytest.mark.parametrize("config", DEFAULTS, ids=name_of)
def test_config_defaults_are_those_of_the_specification(config):
    assert {field.name: field.default for field in dataclasses.fields(config)} == DEFAULTS[config]
    assert dataclasses.asdict(config()) == DEFAULTS[config]


@pytest.mark.parametrize("config", DEFAULTS, ids=name_of)
def test_config_is_a_value(config):
    """Keyword-only: a number cannot land in the wrong field. Hashable: a compiler's cache can key on it."""
    assert config() == config()
    assert hash(config()) == hash(config())
    with pytest.raises(TypeError, match="positional"):
        config(0.5)


def test_adam_has_no_weight_decay():
    """Adam with decoupled decay is AdamW, which is an Adam."""
    assert Adam.weight_decay == 0
    assert isinstance(AdamW(), Adam)
    with pytest.raises(TypeError, match="weight_decay"):
        Adam(weight_decay=0.1)


@pytest.mark.parametrize("helper", HELPERS, ids=name_of)
def test_rule_helper_defaults_are_those_of_rule(helper):
    """A default stands in the dataclass and nowhere else."""
    fields = {field.name: field.default for field in dataclasses.fields(Rule)}
    for name, parameter in inspect.signature(helper).parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        if name != "damped":
            assert parameter.default == fields[name], name


@pytest.mark.parametrize("helper", HELPERS, ids=name_of)
def test_rule_helper_makes_its_rule(helper):
    assert helper() == Rule(**HELPERS[helper])


@pytest.mark.parametrize("helper", HELPERS, ids=name_of)
def test_rule_helper_passes_its_options_on(helper):
    others = {"p": 0.25, "tau": 3.0, "ema": 0.75, "initial_score": 0.25, "momentum": "before", "decay": "dense"}
    options = {name: others[name] for name in inspect.signature(helper).parameters if name != "damped"}
    assert helper(**options) == Rule(**HELPERS[helper] | options)


def test_rule_helper_score_survival_damped():
    assert magma_core.score_survival(damped=True) == Rule(survival="score", weight="score")


@pytest.mark.parametrize("survival", ["p", "score"])
@pytest.mark.parametrize("weight", ["inverse_p", "score", "one"])
def test_rule_uses_score_if_survival_or_weight_is_one(survival, weight):
    assert Rule(survival=survival, weight=weight).uses_score == ("score" in (survival, weight))


# State and report


def test_state_and_report_fields():
    """Checkpoints and adapters name them."""
    assert State._fields == ("mu", "nu", "mu_power", "nu_power", "score")
    assert Report._fields == ("sums", "cosine", "keep")
    assert State() == State(None, None, None, None, None)
    assert Report() == Report(None, None, None)


@pytest.mark.parametrize("base", MOMENTS, ids=name_of)
@pytest.mark.parametrize("helper", HELPERS, ids=name_of)
@pytest.mark.parametrize("axes", [(), (1,), (2, 0), None])
def test_state_has_the_fields_of_base_and_rule(backend, base, helper, axes):
    """Values and shapes as in docs/spec.md section 2, float32 also for a parameter in half precision."""
    rule, shape = helper(), (2, 3, 4)
    uses_score = rule.uses_score and axes is not None
    expected = dict.fromkeys(State._fields)
    for field in MOMENTS[base] | ({"mu"} if uses_score else set()):
        power = field.endswith("_power")
        expected[field] = np.ones((), np.float32) if power else np.zeros(shape, np.float32)
    if uses_score:
        expected["score"] = np.full([shape[axis] for axis in axes], 0.5, np.float32)
    for kind in backend.formats:
        param = backend.from_numpy(np.ones(shape, backend.numpy_dtype(kind)))
        state = magma_core.init(param, base=base(), rule=rule, block_axes=axes, xp=backend.xp)
        for field, value in state._asdict().items():
            if expected[field] is None:
                assert value is None, field
            else:
                assert_bits_equal(backend.to_numpy(value), expected[field], f"{kind} {field}")


def test_state_starts_with_the_initial_score(backend):
    """Rounded once to float32, and to 0 below 2⁻¹⁰⁰ (spec 1.3)."""
    param = backend.from_numpy(np.ones((2, 3), np.float32))
    for value, expected in [(0.1, 0.1), (0.0, 0.0), (1.0, 1.0), (2.0**-101, 0.0)]:
        rule = magma_core.magma(initial_score=value)
        state = magma_core.init(param, base=SGD(), rule=rule, block_axes=(0,), xp=backend.xp)
        assert_bits_equal(backend.to_numpy(state.score), np.full(2, expected, np.float32), backend.name)


@pytest.mark.parametrize("base", MOMENTS, ids=name_of)
@pytest.mark.parametrize("helper", HELPERS, ids=name_of)
def test_state_fields_are_those_of_init(base, helper):
    """Without the score, which belongs to the rule."""
    from magma_numpy import namespace as xp

    state = magma_core.init(np.ones(2, np.float32), base=base(), rule=helper(), block_axes=(), xp=xp)
    present = {field for field, value in state._asdict().items() if value is not None}
    assert set(magma_core.state_fields(base(), helper())) == present - {"score"}


@pytest.mark.parametrize("axes", [(1, 0), None], ids=str)
def test_report_shapes_and_dtypes(backend, axes):
    """Sums and cosine where the rule looks at alignment, keep where anything is masked."""
    param = backend.from_numpy(np.ones((2, 3), np.float32))
    for rule in (magma_core.skip_update(), magma_core.magma()):
        options = {"base": SGD(), "rule": rule, "block_axes": axes, "xp": backend.xp}
        state = magma_core.init(param, **options)
        new, after, report = magma_core.update(param, param, state, name="w", step=1, lr=0.1, seed=0, **options)
        assert isinstance(after, State)
        assert isinstance(report, Report)
        assert (tuple(new.shape), new.dtype) == (tuple(param.shape), param.dtype)
        block_shape = () if axes is None else tuple((2, 3)[axis] for axis in axes)
        looks = rule.uses_score and axes is not None
        expected = {
            "sums": ((3, *block_shape), np.int64) if looks else None,
            "cosine": (block_shape, np.float32) if looks else None,
            "keep": (block_shape, np.bool_) if axes is not None else None,
        }
        for field, value in report._asdict().items():
            found = None if value is None else (backend.to_numpy(value).shape, backend.to_numpy(value).dtype)
            assert found == expected[field], field


# Blocks


@pytest.mark.parametrize(
    ("axes", "block_shape", "size"),
    [((), (), 24), ((0,), (2,), 12), ((-1,), (4,), 6), ((2, 0), (4, 2), 3), ((0, 1, 2), (2, 3, 4), 1)],
)
def test_cut_counts_blocks(axes, block_shape, size):
    blocks = magma_core.cut([2, 3, 4], axes, name="w")
    assert (blocks.block_shape, blocks.block_size) == (block_shape, size)
    assert blocks.count * blocks.block_size == 24
    assert sorted((*blocks.axes, *blocks.inner_axes)) == [0, 1, 2]


def test_cut_takes_integers_of_any_kind():
    """NumPy's, and a list where a tuple is usual."""
    assert magma_core.cut((2, 3), [np.int64(1), np.int8(0)], name="w").axes == (1, 0)


# The comparator, for what the formats of parameters bring with them


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16], ids=name_of)
def test_first_difference_of_signalling_nans(dtype):
    """Equal as all NaNs are, and without a warning: the bits of a masked block may be any."""
    itemsize = np.dtype(dtype).itemsize
    infinity = int(np.array(np.inf, dtype).view(f"u{itemsize}"))
    signalling = np.array([infinity + 1, infinity + 2, infinity + 1] * 8, f"u{itemsize}").view(dtype)
    assert first_difference(signalling, signalling.copy()) is None
    assert first_difference(signalling, np.full(24, np.nan, dtype)) is None
    assert first_difference(signalling, np.ones(24, dtype)).count == 24
