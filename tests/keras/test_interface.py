"""The public API of the package: names, defaults, docstrings and their examples."""

import doctest
import importlib
import inspect
import re

import keras
import magma_keras
import pytest
from magma_keras import Magma, MaskedOptimizer, SkipUpdate, Wrapped, masking_optimizers
from magma_keras.backend import to_numpy
from magma_keras.names import exactly
from signatures import REQUIRED, check_defaults, check_documented, check_refused

from magma_core import magma

CLASSES = [Magma, MaskedOptimizer, SkipUpdate, Wrapped]
MODULES = [f"magma_keras.{name}" for name in ("optimizer", "variants", "masking", "contained", "wrap", "callback")]

OWN = {"rule": REQUIRED, "optimizer": REQUIRED, "moment": None, "mask_names": None, "kwargs": None}
"""Arguments that the core does not know. Those of `keras.optimizers.Optimizer` are left to it, unchanged."""


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    outcome = doctest.testmod(importlib.import_module(module), verbose=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples in {module} failed, see above"


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults_are_those_of_the_core(kind):
    optional = {"learning_rate": REQUIRED} if kind is MaskedOptimizer else {}
    check_defaults(kind, OWN | optional)


@pytest.mark.parametrize("kind", CLASSES)
def test_misspelt_arguments_are_refused(kind):
    given = {Wrapped: (keras.optimizers.SGD(), magma()), MaskedOptimizer: (0.1, magma())}
    check_refused(kind, *given.get(kind, ()), error=(TypeError, ValueError))  # Keras raises ValueError


@pytest.mark.parametrize("kind", [*CLASSES, magma_keras.ScoreLogger])
def test_arguments_are_documented_in_order(kind):
    check_documented(kind)


@pytest.mark.parametrize("name", magma_keras.__all__)
def test_public_names_exist_and_are_documented(name):
    assert inspect.getdoc(getattr(magma_keras, name))


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_are_registered(kind):
    assert keras.saving.get_registered_object(f"magma>{kind.__name__}") is kind


@pytest.mark.parametrize(("name", "kind"), [("magma", Magma), ("skip_update", SkipUpdate)])
def test_optimizers_have_names(name, kind):
    """As "adam" is one; a configuration keeps the registered name."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(name, "mse")
    assert type(model.optimizer) is kind
    assert keras.optimizers.serialize(model.optimizer)["registered_name"] == f"magma>{kind.__name__}"


def test_optimizers_are_found_inside_others():
    """Keras itself puts one into a LossScaleOptimizer, which has no ``scores``, if the policy is "mixed_float16"."""
    optimizer, other = Magma(), SkipUpdate()
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    chosen = keras.optimizers.OptimizerMap(optimizer, {"w": other, "x": keras.optimizers.SGD()})
    both = keras.optimizers.MultiOptimizer(chosen)
    assert masking_optimizers(optimizer) == masking_optimizers(scaled) == [optimizer]
    assert masking_optimizers(both) == [other, optimizer]
    assert masking_optimizers(keras.optimizers.SGD()) == []


def built(**options):
    optimizer = Magma(0.1, weight_decay=0.5, **options)
    optimizer.build([keras.Variable([1.0, 2.0], name=name) for name in ("w", "b")])
    return optimizer


@pytest.mark.parametrize("later", ["exclude_from_masking", "exclude_from_weight_decay"])
def test_exclusions_after_from_config_count(later):
    again = Magma.from_config(built().get_config())
    getattr(again, later)(var_names=["^b$"])
    again.build([keras.Variable([1.0, 2.0], name=name) for name in ("w", "b")])
    settled = {path: (axes, decays) for path, _, axes, decays in again.get_config()["variables"]}
    assert settled["w"] == ([], True)
    assert settled["b"] == ((None, True) if later == "exclude_from_masking" else ([], False))


def test_other_paths_than_were_saved_are_told():
    again = Magma.from_config(built().get_config())
    with pytest.warns(UserWarning, match="'c' was 'b' when this optimizer was saved or copied"):
        again.build([keras.Variable([1.0, 2.0], name=name) for name in ("w", "c")])
    assert set(again.scores) == {"w", "c"}


@pytest.mark.parametrize(
    ("excluded", "paths"),
    [
        ("model/hidden/kernel", {"model/hidden/kernel": True, "hidden/kernel": True, "other/hidden/kernel": False}),
        ("hidden/kernel", {"hidden/kernel": True, "kernel": False, "model/hidden/kernel": False}),
        ("kernel", {"kernel": True, "hidden/kernel": False}),
    ],
)
def test_one_variable_is_excluded_by_its_path(excluded, paths):
    assert {path: bool(re.search(exactly(excluded), path)) for path in paths} == paths


def test_alignment_says_what_is_wrong_with_its_arguments():
    gradient = keras.ops.ones(2)
    with pytest.raises(ValueError, match="one entry for each variable"):
        Magma().alignment([gradient])
    with pytest.raises(ValueError, match="one entry for each variable, got 1 for 2"):
        built().alignment([gradient])
    with pytest.raises(ValueError, match="Unknown variable"):
        built().alignment([gradient], [keras.Variable([1.0, 2.0], name="w")])


def test_a_negative_rate_is_refused_later_too():
    optimizer = Magma(0.1)
    with pytest.raises(ValueError, match="learning_rate must be at least 0"):
        optimizer.learning_rate = -0.1
    optimizer.learning_rate = 0.25
    assert float(to_numpy(optimizer.learning_rate)) == 0.25
