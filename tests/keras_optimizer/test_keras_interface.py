"""What users see of the package: names, defaults, docstrings and their examples."""

import doctest
import importlib
import inspect

import keras
import magma_keras
import pytest
from magma_keras import Magma, MaskedOptimizer, SkipUpdate, Wrapped

from magma_core import Rule
from magma_core.config import LEARNING_RATE, SEED

CLASSES = [Magma, MaskedOptimizer, SkipUpdate, Wrapped]
MODULES = [f"magma_keras.{name}" for name in ("optimizer", "variants", "masking", "wrap", "callback")]

DEFAULTS = {
    "learning_rate": LEARNING_RATE,
    "base": "adamw",
    "p": Rule.p,
    "tau": Rule.tau,
    "score_ema": Rule.ema,
    "initial_score": Rule.initial_score,
    "cosine_momentum": Rule.momentum,
    "decay": Rule.decay,
    "seed": SEED,
    "block_axes": (),
}
"""Every other argument with a default has None, which asks for the base's own, or for nothing."""


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    outcome = doctest.testmod(importlib.import_module(module), verbose=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples in {module} failed, see above"


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults_are_those_of_the_core(kind):
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is not parameter.empty:
            assert parameter.default == DEFAULTS.get(name), name


@pytest.mark.parametrize("kind", [*CLASSES, magma_keras.ScoreLogger])
def test_arguments_are_documented_in_order(kind):
    section = inspect.getdoc(kind).split("Args:")[1].split("Raises:")[0]
    documented = [
        line.split(":")[0].strip(" *") for line in section.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert documented == list(inspect.signature(kind).parameters)


@pytest.mark.parametrize("name", magma_keras.__all__)
def test_public_names_exist_and_are_documented(name):
    assert inspect.getdoc(getattr(magma_keras, name))


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_are_registered(kind):
    assert keras.saving.get_registered_object(f"magma>{kind.__name__}") is kind
