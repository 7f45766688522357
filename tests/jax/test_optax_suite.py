"""Optax's own optimizer tests, run on ours.

Run, each on our rows instead of optax's:

- optax/contrib/_common_test.py, ContribTest: everything;
- optax/contrib/_complex_valued_test.py, ComplexValuedTest: everything;
- optax/_src/float64_test.py, Float64Test: everything;
- optax/_src/sharding_test.py, ShardingTest: the tests of optimizers, in their own process with eight devices.

Left out:

- optax/_src/alias_test.py, AliasTest: it repeats ContribTest for optax's older optimizers, and adds only
  test_explicit_dtype, about the argument ``mu_dtype``: our state is float32;
- the wrapper reduce_on_plateau, a row of ContribTest: it takes a few consecutive steps in which our only block is
  masked for a plateau;
- ShardingTest.test_microbatch_with_explicit_sharding: it has no optimizer;
- all other files: they test optax's functions on their own problems.
"""

import functools
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import unittest
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import magma_jax
import optax
import pytest
from absl.testing import parameterized

pytestmark = pytest.mark.filterwarnings("ignore:params is one vector")  # as most of optax's problems are
PATIENCE = 180  # seconds for the process with eight devices


# Our rows, and the modules of optax with them


class Row(NamedTuple):
    """An optimizer of ours, in one of optax's wrappers if there is one."""

    name: str
    options: dict[str, Any]
    wrapper: str | None = None
    wrapper_options: dict[str, Any] | None = None

    def __str__(self) -> str:
        option = ("rows" if "block_axes" in self.options else "", self.wrapper)
        return "_".join(filter(None, (self.name, self.options["base"], *option)))

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "opt_name": self.name,
            "opt_kwargs": self.options,
            "wrapper_name": self.wrapper,
            "wrapper_kwargs": self.wrapper_options,
        }


# Rates with which 30,000 steps end within 3e-2 of the minimum. There is no decay, which would pull away from it.
RATES = {
    "magma": {"sgd": 5e-4, "rmsprop": 1e-2, "adam": 1e-2, "adamw": 1e-2, "laprop": 1e-2},
    "skip_update": {"sgd": 1e-4, "laprop": 1e-3},
}


def make(name: str, **options: Any) -> Any:
    return getattr(magma_jax, name)(**options)


def row(name: str, base: str, *wrapper: Any, **options: Any) -> Row:
    if base == "adamw":
        options["weight_decay"] = 0.0
    return Row(name, {"learning_rate": RATES[name][base], "base": base} | options, *wrapper)


EVERY = [row("magma", base) for base in RATES["magma"]]
SKIPPING = [row("skip_update", base) for base in RATES["skip_update"]]
ROWS = [row("magma", "adamw", block_axes=(0,))]
# The most state and the least, where the base matters for nothing but the time to compile
SOME = [*ROWS, *SKIPPING[:1]]
# Wrappers of optax around ours
WRAPPED = [
    row("magma", "adamw", "mechanize", {"weight_decay": 0.0}, learning_rate=1.0),
    row("magma", "sgd", "schedule_free", {"learning_rate": RATES["magma"]["sgd"]}),
]

CONTRIB = {
    "test_optimizers_accept_extra_args": [*SOME, *WRAPPED],
    "test_optimizers": [*EVERY, *SKIPPING, *ROWS, *WRAPPED],
    "test_optimizers_can_be_wrapped_in_inject_hyperparams": [*EVERY[:2], *SOME],
    "test_preserve_dtype": SOME,
    "test_gradient_accumulation": SOME,
    "test_state_shape_dtype_shard_stability": SOME,
    "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": SOME,
}
"""The checks of ContribTest, each with its rows."""

# Functions are looked up when they are called, so that a test can break them
FLOAT64 = [
    ("magma_adamw", functools.partial(make, "magma", learning_rate=0.1), {}),
    ("magma_rmsprop", functools.partial(make, "magma", learning_rate=0.1, base="rmsprop", decay="dense"), {}),
    ("skip_update_sgd", functools.partial(make, "skip_update", learning_rate=0.1, base="sgd"), {}),
    ("scale_by_magma_adam", functools.partial(make, "scale_by_magma"), {}),
    ("scale_by_skip_update_laprop", functools.partial(make, "scale_by_skip_update", base="laprop"), {}),
]

# With p = 1, because the two parts of a complex array do not have the names, and so the masks, of those of a tuple
COMPLEX = [
    ("scale_by_magma_adam", functools.partial(make, "scale_by_magma", p=1.0)),
    ("scale_by_skip_update_sgd", functools.partial(make, "scale_by_skip_update", base="sgd", p=1.0)),
]

# Devices share the second of three axes: they have the same blocks, blocks of their own, or parts of blocks
SHARDED = {
    "magma_adamw_whole": {"block_axes": ()},
    "magma_sgd_parts": {"block_axes": (0,), "base": "sgd"},
    "magma_rmsprop_own": {"block_axes": (2, 1), "base": "rmsprop"},
    "skip_update_sgd_own": {"block_axes": (1,), "base": "sgd"},
}


def load(name: str, **decorators: Callable[..., Any]) -> ModuleType:
    """A test module of optax, made with ``decorators`` in place of absl's: they give the checks their rows."""
    with pytest.MonkeyPatch.context() as patch:
        for decorator, ours in decorators.items():
            patch.setattr(parameterized, decorator, ours)
        return importlib.import_module(name)


def product(theirs: Any, **grid: Iterable[Any]) -> Callable[[Any], Any]:
    """`parameterized.product` with our rows, and with names that say which is which."""
    del theirs

    def decorate(check: Any) -> Any:
        cases = []
        for row, values in itertools.product(CONTRIB.get(check.__name__, SOME), itertools.product(*grid.values())):
            more = dict(zip(grid, values, strict=True))
            if "wrap" not in more or more["wrap"] == (row.wrapper is not None):  # once, as the row says
                name = "_".join([str(row), *(getattr(value, "__name__", str(value)) for value in values)])
                cases.append({"testcase_name": name, **row.arguments, **more})
        return parameterized.named_parameters(*cases)(check)

    return decorate


def named_parameters(rows: Iterable[Any]) -> Callable[..., Any]:
    """`parameterized.named_parameters` with our rows in place of a table; not where rows are written out."""
    original = parameterized.named_parameters
    return lambda *theirs: original(*(rows if len(theirs) == 1 else theirs))


common_test = load("optax.contrib._common_test", product=product)
common_test._get_opt_factory = functools.partial(getattr, magma_jax)
complex_test = load("optax.contrib._complex_valued_test", named_parameters=named_parameters(COMPLEX))
float64_test = load("optax._src.float64_test", named_parameters=named_parameters(FLOAT64))


# The checks


class Strict(unittest.TestCase):
    def skipTest(self, reason: str) -> None:
        """A check that finds nothing to check has not passed."""
        self.fail(f"skipped: {reason}")


class TestContrib(Strict, common_test.ContribTest):
    pass


class TestComplexValued(Strict, complex_test.ComplexValuedTest):
    pass


class TestFloat64(Strict, float64_test.Float64Test):
    def tearDown(self) -> None:
        jax.config.update("jax_enable_x64", False)  # where the check has failed, it has not done so itself
        super().tearDown()


TIMES = dict.fromkeys(CONTRIB, 1) | {
    "test_optimizers": 4,
    "test_preserve_dtype": 2,
    "test_gradient_accumulation": 2,
    "test_state_shape_dtype_shard_stability": 4,
}
"""How often a check of ContribTest runs on each row."""


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        (TestContrib, {check: TIMES[check] * len(rows) for check, rows in CONTRIB.items()}),
        (TestComplexValued, {"test_split_real_and_imaginary": len(COMPLEX)}),
        (TestFloat64, {"test_mixed_dtype_input_outputs": len(FLOAT64)}),
    ],
)
def test_every_check_runs_on_our_rows(tests: type[unittest.TestCase], expected: dict[str, int]) -> None:
    """So that neither a check nor a row can be lost, and a check that is new in optax does not go unnoticed."""
    ours = re.compile("_(scale_by_)?(magma|skip_update)_")
    assert Counter(ours.split(name)[0] for name in method_names(tests)) == expected


def method_names(tests: type[unittest.TestCase]) -> Sequence[str]:
    return unittest.defaultTestLoader.getTestCaseNames(tests)


# What breaks them: a check that no optimizer fails says nothing


def without_extra_arguments(make: Any, **options: Any) -> Any:
    made = make(**options)
    return optax.GradientTransformation(made.init, lambda grads, state, params=None: made.update(grads, state, params))


def uphill(make: Any, **options: Any) -> Any:
    return optax.chain(make(**options), optax.scale(-1.0))


def not_a_number(make: Any, **options: Any) -> Any:
    return optax.chain(make(**options), optax.scale(float("nan")))


def numbers_only(make: Any, *, learning_rate: Any, **options: Any) -> Any:
    return make(learning_rate=float(learning_rate), **options)


def other_dtype(make: Any, **options: Any) -> Any:
    return make(**options, float32_updates=True)


def impatient(make: Any, *, learning_rate: Any, **options: Any) -> Any:
    return make(learning_rate=learning_rate if callable(learning_rate) else 2 * learning_rate, **options)


def masked(make: Any, **options: Any) -> Any:
    return make(**options | {"p": 0.5})


def float_count(make: Any, **options: Any) -> Any:
    made = make(**options)

    def update(*args: Any, **extra: Any) -> Any:
        updates, state = made.update(*args, **extra)
        return updates, state._replace(count=1.0 * state.count)

    return optax.GradientTransformationExtraArgs(made.init, update)


def careless(make: Any, **options: Any) -> Any:
    """Its state does not go where the parameters are, unless it is traced."""
    made = make(**options)

    def init(params: Any) -> Any:
        state = made.init(params + 0)
        traced = isinstance(params, jax.core.Tracer)
        return state if traced else state._replace(mu=jax.sharding.reshard(state.mu, jax.P()))

    return optax.GradientTransformationExtraArgs(init, made.update)


BREAKS = [
    (TestContrib, "test_optimizers_accept_extra_args_magma_adamw_rows_False", without_extra_arguments),
    (TestContrib, "test_optimizers_magma_adamw_rows__setup_parabola_float32", uphill),
    (TestContrib, "test_optimizers_can_be_wrapped_in_inject_hyperparams_magma_sgd", numbers_only),
    (TestContrib, "test_preserve_dtype_magma_adamw_rows_bfloat16", other_dtype),
    (TestContrib, "test_gradient_accumulation_magma_adamw_rows_bfloat16", not_a_number),
    (TestContrib, "test_state_shape_dtype_shard_stability_magma_adamw_rows_float16", float_count),
    (
        TestContrib,
        "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such_magma_adamw_rows",
        impatient,
    ),
    (TestComplexValued, "test_split_real_and_imaginary_scale_by_magma_adam", masked),
    (TestFloat64, "test_mixed_dtype_input_outputs_magma_adamw", float_count),
]


@pytest.mark.parametrize(("tests", "name", "broken"), BREAKS)
def test_a_broken_optimizer_fails(monkeypatch: Any, tests: Any, name: str, broken: Any) -> None:
    for ours in ("magma", "scale_by_magma"):
        made = getattr(magma_jax, ours)
        monkeypatch.setattr(magma_jax, ours, functools.wraps(made)(functools.partial(broken, made)))
    assert failure(tests(name))


def failure(case: unittest.TestCase) -> str:
    """Why the case does not pass, nothing if it does."""
    result = unittest.TestResult()
    case.run(result)
    assert result.testsRun == 1
    return "".join(text for _, text in [*result.errors, *result.failures, *result.skipped])


# Eight devices


SHARDING = [
    "test_init_with_abstract_input",
    "test_state_sharding_type_init_match_update",
    "test_state_sharding_type_preserved_with_jit",
]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a process with eight devices has to say of each case."""
    path = tmp_path_factory.mktemp("sharding") / "failures.json"
    # the modules of optax make optimizers of optax, one of which warns
    ignored = ["-W", "ignore:Specifying a key:UserWarning", "-W", "ignore:params is one vector:UserWarning"]
    command = [sys.executable, "-W", "error", *ignored, __file__, str(path)]
    devices = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=devices, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("row", SHARDED)
@pytest.mark.parametrize("check", SHARDING)
def test_sharding(failures: dict[str, str], check: str, row: str) -> None:
    assert failures[f"{check}_{row}"] == ""


@pytest.mark.parametrize("check", SHARDING)
def test_sharding_of_a_broken_optimizer(failures: dict[str, str], check: str) -> None:
    assert failures[f"{check}_broken"]


def run_on_eight_devices(path: str) -> None:
    rows = {
        row: make("magma" if row.startswith("magma") else "skip_update", learning_rate=1.0, **options)
        for row, options in SHARDED.items()
    }
    rows["broken"] = careless(magma_jax.magma, learning_rate=1.0)
    test = load("optax._src.sharding_test", named_parameters=named_parameters(rows.items()))
    assert jax.device_count() == 8
    jax.__version__ = "9"  # they compare texts, and skip what needs 0.7.2 where it is 0.10.2
    names = [name for name in method_names(test.ShardingTest) if name.startswith(tuple(SHARDING))]
    Path(path).write_text(json.dumps({name: failure(test.ShardingTest(name)) for name in names}))


if __name__ == "__main__":
    run_on_eight_devices(sys.argv[1])
