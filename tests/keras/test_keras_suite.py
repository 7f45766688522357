"""Keras's own optimizer tests, run on ours.

Each test module of Keras is loaded once per row of `ROWS`, with our optimizers in place of `Adam`, `AdamW`, `SGD` and
`RMSprop`. Ours have Keras's names, arguments and defaults, so they must meet the same expectations: golden values for
the dense rule, and everything else for Magma and SkipUpdate too. Tolerances are Keras's.

`LEFT_OUT` lists the tests that cannot hold, with reasons; they run too, and must fail.
"""

import ast
import contextlib
import fnmatch
import importlib.util
import json
import math
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import keras
import magma_keras
import pytest
from absl.testing import parameterized
from keras.src import backend
from keras.src import optimizers as theirs
from magma_keras import MaskedOptimizer

from magma_core import dense

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # Keras on torch
)

BACKEND = keras.backend.backend()
PATIENCE = 180  # seconds for the process with two devices

# Ours under their names

ROWS = {
    "dense": ("MaskedOptimizer", {"rule": dense()}),
    "magma": ("Magma", {"decay": "dense"}),
    "skip_update": ("SkipUpdate", {}),
}

DEFAULTS = {
    "Adam": {"learning_rate": 0.001, "base": "adam", "epsilon": 1e-7},
    "AdamW": {"learning_rate": 0.001, "base": "adamw", "epsilon": 1e-7, "weight_decay": 0.004},
    "SGD": {"learning_rate": 0.01, "base": "sgd", "momentum": 0.0},
    "RMSprop": {"learning_rate": 0.001, "base": "rmsprop", "beta_2": 0.9, "momentum": 0.0, "epsilon": 1e-7},
}
"""Keras's, where ours are others.

Keras's velocity of SGD is −lr·μ, the same step while the rate is constant. Its ε is added to ν in RMSprop, and in Adam
to √ν before the bias is corrected: with 1e-7 that is less than its tolerances, for AdamW with ε = 2 see `Rebuilt`.
"""


def translated(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Keras's optimizer as ours has them."""
    options = {{"rho": "beta_2"}.get(name, name): value for name, value in options.items()}
    if kind == "Adam" and options.get("weight_decay") is not None and "base" not in options:
        options["base"] = "adamw"
    # Not here. The second moment only grows where Keras looks at numbers, so that its maximum is itself; the golden
    # values of a centered one are in LEFT_OUT.
    for name in ("amsgrad", "centered"):
        options.pop(name, None)
    return options


MADE: list[str] = []
"""The optimizers of ours that the present case has asked for."""

ONE_NAME = ("*.test_ema_overwrite_frequency", "*.test_sparse_correctness_*", "*.test_gradient_accumulation_with_*")
"""Cases that compare two optimizers of a variable each, which must have the same masks."""

NAMES: list[Callable[[str], str]] = []
"""``mask_names`` of the present case, if any."""


def ours(row: str, kind: str) -> type[MaskedOptimizer]:
    method, given = ROWS[row]
    rate, defaults = DEFAULTS[kind]["learning_rate"], {**DEFAULTS[kind], **given}
    del defaults["learning_rate"]

    class Ours(getattr(magma_keras, method)):
        def __init__(self, learning_rate: Any = rate, **options: Any) -> None:
            MADE.append(kind)
            names = {"mask_names": NAMES[0]} if NAMES else {}
            super().__init__(learning_rate, **{**defaults, **translated(kind, options), **names})

    Ours.__name__, Ours.__qualname__ = kind, f"OURS.{row}.{kind}"  # by which pickle finds it
    return keras.saving.register_keras_serializable(package=row)(Ours)


OURS = SimpleNamespace(**{row: SimpleNamespace(**{kind: ours(row, kind) for kind in DEFAULTS}) for row in ROWS})


class Rebuilt:
    """Keras's Adam for any ε: added to √ν before the bias is corrected, it is ε/√(1−β₂ᵗ) after; ours does not change.

    So there is a new optimizer at each step, with the state of the last.
    """

    def __init__(self, *, epsilon: float, **options: Any) -> None:
        self.epsilon, self.options, self.weights = epsilon, options, None

    def apply_gradients(self, pairs: Iterable[Any]) -> None:
        grads, variables = zip(*pairs, strict=True)
        t = 1 if self.weights is None else int(self.weights[0]) + 1
        optimizer = OURS.dense.AdamW(epsilon=self.epsilon / math.sqrt(1 - 0.999**t), **self.options)
        optimizer.build(list(variables))
        if self.weights is not None:
            optimizer.set_weights(self.weights)
        optimizer.apply_gradients(zip(grads, variables, strict=True))
        self.weights = optimizer.variables


IN_FLOAT32 = {"backend": SimpleNamespace(**{**vars(backend), "Variable": partial(keras.Variable, dtype="float32")})}

REPLACED = {
    "AdamWTest.test_correctness_with_golden": {"AdamW": Rebuilt},
    "SGDTest.test_correctness_with_golden": IN_FLOAT32,  # theirs are float64, but in JAX
    "RMSpropTest.test_correctness_with_golden": IN_FLOAT32,
    "OptimizerTest.test_constraints_are_applied": IN_FLOAT32,
    "OptimizerDistributeTest.test_correctness_with_golden": IN_FLOAT32,
}
"""What else the module has in place of Keras's for one case."""

MESSAGES = {
    "`momentum` must be a float between \\[0, 1\\].": "momentum must lie in \\[0, 0.99999994\\], got",
}
"""What our errors say where Keras's say something else."""


# Their test modules

MODULES = {
    "optimizers.adam_test": ("AdamTest",),
    "optimizers.adamw_test": ("AdamWTest",),
    "optimizers.sgd_test": ("SGDTest",),
    "optimizers.rmsprop_test": ("RMSpropTest",),
    "optimizers.optimizer_test": ("OptimizerTest",),
    "optimizers.optimizer_sparse_test": ("OptimizerSparseTest",),
    "optimizers.loss_scale_optimizer_test": ("LossScaleOptimizerTest",),
    "optimizers.multi_optimizer_test": ("MultiOptimizerTest",),
    "optimizers.schedules.learning_rate_schedule_test": ("TestFitLRSchedulesFlow",),
}
if BACKEND == "tensorflow":
    MODULES["backend.tensorflow.optimizer_distribute_test"] = ("OptimizerDistributeTest",)

OTHER = ("adadelta", "adafactor", "adagrad", "adamax", "ftrl", "lamb", "lion", "muon", "nadam", "schedule_free_adamw")
"""Keras's optimizers that are no base of ours: neither their modules nor their rows are about ours."""

SCHEDULES = (
    "ExponentialDecayTest",
    "PiecewiseConstantDecayTest",
    "LinearDecayTest",
    "SqrtDecayTest",
    "InverseTimeDecayTest",
    "CosineDecayTest",
    "CosineDecayRestartsTest",
)
"""Classes of learning_rate_schedule_test in which there is no optimizer."""


class LeftOut(NamedTuple):
    """Cases that do not pass, by patterns of their names; in all rows and on all backends, if these are not given."""

    reason: str
    patterns: Sequence[str]
    rows: Sequence[str] = tuple(ROWS)
    backends: Sequence[str] = ("tensorflow", "jax", "torch")


MASKED = ("magma", "skip_update")

LEFT_OUT = [
    LeftOut("ours takes None for the base's own decay", ["AdamWTest.test_weight_decay_is_none"]),
    LeftOut("it wants no state where momentum is 0; ours has μ all the same", ["SGDTest.test_single_step"]),
    LeftOut("golden values of a centered second moment", ["RMSpropTest.test_correctness_with_golden"]),
    LeftOut("the names of Keras's classes", ["LossScaleOptimizerTest.test_deserialization_backwards_compatibility"]),
    LeftOut("Keras's optimizer for TensorFlow only", ["OptimizerDistributeTest.test_single_step_tf_keras_sgd"]),
    LeftOut(
        "numbers of a dense step",
        [
            "Adam*Test.test_single_step",
            "RMSpropTest.test_single_step",
            "AdamTest.test_correctness_with_golden",
            "SGDTest.test_correctness_with_golden",
            "OptimizerTest.test_empty_gradients",
            "OptimizerTest.test_ema",
            "OptimizerTest.test_ema_with_model_fit",
            "OptimizerTest.test_static_loss_scaling",
            "OptimizerTest.test_gradient_accumulation",
            "OptimizerTest.test_callable_learning_rate",
            "OptimizerTest.test_overwrite_with_gradient",
            "OptimizerTest.test_overwrite_with_gradient_with_gradient_accumulation",
            "LossScaleOptimizerTest.test_apply_with_no_vars",
            "LossScaleOptimizerTest.test_finite_step_state*",
            "LossScaleOptimizerTest.test_finite_step_with_inner_loss_scale_*",
            "MultiOptimizerTest.test_stateful_apply",
            "MultiOptimizerTest.test_stateless_apply",
            "MultiOptimizerTest.test_gradient_unscaling",
            "MultiOptimizerTest.test_custom_callable_function",
            "MultiOptimizerTest.test_multi_optimizer_with_model_fit",
            "MultiOptimizerTest.test_multi_optimizer_wrapped_in_loss_scale_optimizer",
            "TestFitLRSchedulesFlow.test_fit_lr_correctness",
            "OptimizerDistributeTest.test_single_step_keras_sgd",
            "OptimizerDistributeTest.test_correctness_with_golden",
            "OptimizerDistributeTest.test_ema",
            "OptimizerDistributeTest.test_gradient_accumulation",
        ],
        rows=MASKED,
    ),
    LeftOut("numbers of dense decay, which is masked here", ["*.test_weight_decay"], rows=("skip_update",)),
    LeftOut("about TensorFlow", ["OptimizerTest.test_tf_checkpointing"], backends=("jax", "torch")),
    LeftOut("about TensorFlow", ["OptimizerTest.test_mixed_with_tf_variables"], backends=("jax", "torch")),
    LeftOut("Keras has no sparse tensors here", ["OptimizerSparseTest.*"], backends=("torch",)),
    LeftOut(
        "Keras has this only with stateless_apply",
        ["LossScaleOptimizerTest.*_stateful", "*.test_apply_with_no_vars", "*.test_stateful_apply"],
        backends=("jax",),
    ),
    LeftOut(
        "Keras has no stateless_apply here",
        ["LossScaleOptimizerTest.*_stateless", "MultiOptimizerTest.test_stateless_apply"],
        backends=("tensorflow",),
    ),
]

NOT_RUN = [
    LeftOut(
        "Keras's optimizer that is no base of ours",
        [
            *(f"OptimizerTest.test_gradient_accumulation_with_weigth_decay_{name}" for name in OTHER),
            *(f"OptimizerTest.test_pickleable_optimizers_{name}" for name in OTHER),
            *(f"OptimizerSparseTest.*_{name}" for name in (*OTHER, "scatter_update")),
        ],
    ),
    LeftOut(
        "it wants a second step that moves predictions by 0.001; ours may drop it, and takes half of it",
        ["OptimizerTest.test_tf_checkpointing"],
        rows=("magma",),
    ),
    LeftOut("what another case is once amsgrad or centered is gone", ["*_amsgrad", "*_momentum_centered"]),
    LeftOut(
        "the base matters no more than in other rows, and JAX compiles it at each step",
        [
            *(f"*.test_gradient_accumulation_with_*_{name}" for name in ("adam", "rmsprop", "sgd")),
            *(f"*.test_sparse_*_{name}" for name in ("adam", "rmsprop*", "sgd_momentum*")),
        ],
        rows=MASKED,
        backends=("jax",),
    ),
    LeftOut(
        "the same: Keras itself compiles there at each step",
        [f"*.test_gradient_accumulation_with_*_{name}" for name in ("adam", "rmsprop", "sgd")],
        rows=("dense",),
        backends=("jax",),
    ),
    LeftOut(
        "the same, and the row skip_update has it",
        [
            "*.test_gradient_accumulation_with_*_adamw",
            "*.test_sparse_correctness_loss_scale_optimizer_sgd",
            *(f"LossScaleOptimizerTest.test_{name}_stateless" for name in ("upscaling", "downscaling")),
        ],
        rows=("magma",),
        backends=("jax",),
    ),
    LeftOut(
        "it is known to fail on the other backends, and takes its time on this one",
        ["MultiOptimizerTest.test_multi_optimizer_w*", "*.test_fit_lr_correctness", "*.test_ema_with_model_fit"],
        rows=MASKED,
        backends=("jax",),
    ),
    LeftOut("it is known to fail on torch, and takes its time here", ["*.test_tf_checkpointing"], MASKED, ("jax",)),
]
"""Cases that might pass, and say nothing of ours, or nothing that others do not say."""


def load(name: str, row: str) -> ModuleType:
    """A test module of Keras with ours in place of theirs."""
    substitutes = vars(getattr(OURS, row))
    original = parameterized.named_parameters
    classes = {getattr(theirs, kind): made for kind, made in substitutes.items()}

    def named_parameters(*rows: Any) -> Any:
        """Also of optimizers, of which Keras says which keep gradients sparse; ours do not."""
        rows = rows[0] if len(rows) == 1 else rows
        if all(isinstance(each, dict) and "optimizer_class" in each for each in rows):
            rows = [
                {key: classes.get(value, value) if key == "optimizer_class" else value for key, value in each.items()}
                for each in ({k: v for k, v in each.items() if not k.startswith("expect_")} for each in rows)
            ]
        return original(*rows)

    def parameters(rows: Any) -> Any:
        """With names in place of numbers."""
        return original(*((f"_{each[0]}", *each) for each in rows))

    spec = importlib.util.find_spec(f"keras.src.{name}")
    module = importlib.util.module_from_spec(spec)
    # LEFT_OUT says on which backends a case runs, in place of marks
    marks = SimpleNamespace(requires_trainable_backend=lambda test: test, skipif=lambda *_, **__: lambda test: test)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest, "mark", marks)
        patch.setattr(parameterized, "named_parameters", named_parameters)
        patch.setattr(parameterized, "parameters", parameters)
        spec.loader.exec_module(module)
    for kind, made in substitutes.items():
        if hasattr(module, kind):
            setattr(module, kind, made)
    if hasattr(module, "optimizers"):
        module.optimizers = SimpleNamespace(**{**vars(theirs), **substitutes})
    return module


class Case(NamedTuple):
    row: str
    module: str
    name: str  # "AdamTest.test_config"

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"


LOADED = {(row, name): load(name, row) for row in ROWS for name in MODULES}


def cases() -> Iterator[Case]:
    for (row, module), loaded in LOADED.items():
        for tests in MODULES[module]:
            for name in unittest.defaultTestLoader.getTestCaseNames(getattr(loaded, tests)):
                yield Case(row, module, f"{tests}.{name}")


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def applies(entry: LeftOut, case: Case) -> bool:
    return case.row in entry.rows and BACKEND in entry.backends and matches(case.name, entry.patterns)


def reasons(entries: Iterable[LeftOut], case: Case) -> str:
    """Why the case is among the entries, nothing if it is not."""
    return "; ".join(entry.reason for entry in entries if applies(entry, case))


def failure(case: Case) -> str:
    """Why the case does not pass, nothing if it does."""
    loaded = LOADED[case.row, case.module]
    tests, name = case.name.split(".")

    class Strict(getattr(loaded, tests)):
        def skipTest(self, reason: str) -> None:
            """A case that finds nothing to check has not passed."""
            self.fail(f"skipped: {reason}")

        def assertRaisesRegex(self, kind: Any, message: str, *args: Any, **options: Any) -> Any:
            return super().assertRaisesRegex(kind, MESSAGES.get(message, message), *args, **options)  # noqa: PT027

    result = unittest.TestResult()
    keras.utils.set_random_seed(0)
    substitutes = vars(getattr(OURS, case.row))
    objects = {kind.lower(): made for kind, made in substitutes.items()}
    del MADE[:]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(theirs.ALL_OBJECTS_DICT, objects))
        for kind, other in REPLACED.get(case.name, {}).items():
            stack.enter_context(mock.patch.object(loaded, kind, other))
        if matches(case.name, ONE_NAME):
            stack.enter_context(mock.patch.object(sys.modules[__name__], "NAMES", [lambda path: "w"]))
        Strict(name).run(result)
    assert result.testsRun == 1
    texts = [text for _, text in [*result.errors, *result.failures, *result.skipped]]
    if not MADE:
        texts.append("there is no optimizer of ours in it")
    return "\n".join(texts)


ALL = list(cases())


@pytest.fixture(autouse=True)
def _a_session_of_its_own() -> None:
    """In place of the folder's, which takes its time: Keras's cases do it themselves."""


def chosen(left: bool, apart: bool) -> list[Case]:
    """The cases that run: those left out, or the others; those that need a process of their own, or the others."""
    return [
        case
        for case in ALL
        if not reasons(NOT_RUN, case)
        and bool(reasons(LEFT_OUT, case)) == left
        and case.name.startswith("OptimizerDistributeTest") == apart
    ]


@pytest.mark.parametrize("case", chosen(left=False, apart=False), ids=str)
def test_keras(case: Case) -> None:
    problem = failure(case)
    assert not problem, problem


@pytest.mark.parametrize("case", chosen(left=True, apart=False), ids=str)
def test_what_is_left_out_fails(case: Case) -> None:
    """What passes may not be left out."""
    assert failure(case), reasons(LEFT_OUT, case)


# Nothing is lost


def test_every_module_is_named() -> None:
    folder = Path(theirs.__file__).parent
    modules = {"optimizers." + ".".join(p.relative_to(folder).with_suffix("").parts) for p in folder.rglob("*_test.py")}
    named = {name for name in MODULES if name.startswith("optimizers.")}
    assert modules == named | {f"optimizers.{name}_test" for name in OTHER}


@pytest.mark.parametrize("module", MODULES)
def test_every_method_is_a_case(module: str) -> None:
    """Methods are read from the source, where no decorator can lose them."""
    tree = ast.parse(Path(importlib.util.find_spec(f"keras.src.{module}").origin).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and "Test" in node.name]
    ignored = SCHEDULES if "schedules" in module else ()
    assert {node.name for node in classes} == {*MODULES[module], *ignored}
    names = [case.name for case in ALL if case.module == module and case.row == "dense"]
    for node in classes:
        for method in node.body:
            if node.name not in ignored and getattr(method, "name", "").startswith("test"):
                assert any(name.startswith(f"{node.name}.{method.name}") for name in names), method.name


def test_every_pattern_is_of_a_case() -> None:
    everywhere = BACKEND == "tensorflow"  # where there are all modules
    modules = {case.name.split(".")[0] for case in ALL}
    for entry in [*LEFT_OUT, *NOT_RUN]:
        for pattern in entry.patterns:
            if everywhere or pattern.split(".")[0] in modules or pattern.startswith("*"):
                found = fnmatch.filter([case.name for case in ALL], pattern)
                absent = pattern.endswith(("_lamb", "_muon", "_schedule_free_adamw")) or (
                    pattern.startswith("OptimizerSparseTest") and pattern.endswith(("_sgd",))
                )
                assert found or absent, pattern


# What breaks them: a case that no optimizer fails says nothing


def broken(method: str, change: Callable[..., Any]) -> dict[str, Any]:
    """A method of `MaskedOptimizer` that calls its own with ``change``."""
    original = getattr(MaskedOptimizer, method)
    return {method: lambda *args, **options: change(original, *args, **options)}


def twice(step: Any, self: Any, grads: Any, variables: Any, rate: Any) -> Any:
    return step(self, grads, variables, 2 * rate)


def negated(step: Any, self: Any, grads: Any, variables: Any, rate: Any) -> Any:
    return step(self, [-grad for grad in grads], variables, rate)


BREAKS = [
    ("dense", "AdamTest.test_single_step", lambda: broken("_backend_update_step", twice)),
    ("dense", "AdamWTest.test_correctness_with_golden", lambda: broken("_backend_update_step", negated)),
    ("dense", "SGDTest.test_correctness_with_golden", lambda: broken("_backend_update_step", twice)),
    (
        "magma",
        "AdamTest.test_config",
        lambda: broken("get_config", lambda original, self: original(self) | {"p": 0.25}),
    ),
    ("magma", "AdamTest.test_weight_decay", lambda: {"_use_weight_decay": lambda self, variable: True}),
    (
        "skip_update",  # t counts gradients, not steps
        "OptimizerTest.test_gradient_accumulation_with_weigth_decay_adamw",
        lambda: {"iterations": property(lambda self: self._iterations)},
    ),
    ("magma", "OptimizerTest.test_set_weights", lambda: {"set_weights": lambda self, weights: None}),
    ("skip_update", "OptimizerTest.test_pickleable_optimizers_sgd", lambda: broken("get_config", counted)),
]


def counted(get_config: Any, self: Any) -> Any:
    """Another configuration each time."""
    MADE.append("")
    return get_config(self) | {"seed": len(MADE)}


@pytest.mark.parametrize(("row", "name", "change"), BREAKS)
def test_a_broken_optimizer_fails(monkeypatch: Any, row: str, name: str, change: Any) -> None:
    for attribute, value in change().items():
        for kind in vars(getattr(OURS, row)).values():
            monkeypatch.setattr(kind, attribute, value, raising=False)
    case = next(case for case in ALL if (case.row, case.name) == (row, name))
    assert case in chosen(left=False, apart=False)
    assert failure(case)


# Two devices, which Keras makes anew for each case: they need a process of their own


@pytest.mark.backends("tensorflow")
def test_on_two_devices(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    ignored = "ignore:__array__ implementation doesn't accept:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", ignored, __file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-6000:]
    problems = json.loads(path.read_text())
    assert len(problems) > 20
    for case in chosen(left=False, apart=True):
        assert not problems[str(case)], f"{case}: {problems[str(case)]}"
    for case in chosen(left=True, apart=True):
        assert problems[str(case)], case


def run_on_two_devices(path: str) -> None:
    apart = [*chosen(left=False, apart=True), *chosen(left=True, apart=True)]
    Path(path).write_text(json.dumps({str(case): failure(case) for case in apart}))


if __name__ == "__main__":
    run_on_two_devices(sys.argv[1])
