"""Weights and configurations that are almost an optimizer's: accepted or refused, and nothing between."""

import copy
from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
from keras_reference import AXES, check_same, variables, weights
from magma_keras import Magma, Wrapped

from magma_core import damping

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, of its own variables under NumPy 2

MAKERS: dict[str, Any] = {
    "Magma": lambda: Magma(0.1, block_axes=AXES, use_ema=True),
    "wrapped": lambda: Wrapped(keras.optimizers.Adam(0.1), damping(), block_axes=AXES),
}


def stepped(kind: str, steps: int) -> Any:
    optimizer, of = MAKERS[kind](), variables()
    for step in range(steps):
        optimizer.apply([keras.ops.full(x.shape, step + 0.5, dtype=x.dtype) for x in of], of)
    return optimizer


def odd_values(value: np.ndarray) -> list[Any]:
    return [
        None,
        "x\x1b\n",
        b"x",
        {},
        [[1.0], [2.0, 3.0]],
        len,
        np.array(["x"] * value.size).reshape(value.shape),
        value.astype(complex),
        value.astype(bool),
        value.astype(np.int64 if value.dtype.kind == "f" else np.float32),
        value.astype(object),
        value[None],
        np.zeros((0, *value.shape)),
        np.ones((7, 5), value.dtype),
    ]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("how", ["load_own_variables", "set_weights"])
def test_weights_are_taken_or_refused_as_a_whole(kind, how):
    other = stepped(kind, 1)
    saved, before = weights(stepped(kind, 2)), weights(other)
    fractions = [i for i, x in enumerate(other.variables) if x.name.endswith(("_score", "_power"))]
    seen = Counter[str]()
    for i, value in enumerate(saved):
        unsound = [np.full_like(value, x) for x in (-1, 2, np.nan)] if i in fractions and value.size else []
        for odd in odd_values(value) + unsound:
            changed: Any = [*saved[:i], odd, *saved[i + 1 :]]
            given = changed if how == "set_weights" else {str(i): x for i, x in enumerate(changed)}
            with pytest.raises((ValueError, TypeError), match=r"^variable '.*[^ ].*: load what") as caught:
                getattr(other, how)(given)
            assert str(caught.value).isprintable()
            seen["refused"] += 1
    check_same(weights(other), before)
    assert seen["refused"] > 100
    with pytest.raises(ValueError, match=f"one entry for each of {len(saved)} variables, got {len(saved) - 1}"):
        other.set_weights(saved[:-1])
    with pytest.raises(ValueError, match="there is no variable '0' in what is loaded, only"):
        other.load_own_variables({str(i + 1): x for i, x in enumerate(saved)})
    check_same(weights(other), before)
    other.load_own_variables({str(i): x for i, x in enumerate(saved)})
    check_same(weights(other), saved)


def test_configurations_are_taken_or_refused():
    """Whatever stands anywhere: an error of one of two kinds, or an optimizer."""
    odd: list[Any] = [None, "x\x1b\n", -1, 10**30, float("nan"), True, [], [[1]], {}, {"x": [None]}, (), len]
    seen = Counter[str]()
    for kind, make in MAKERS.items():
        optimizer = make()
        optimizer.build(variables())
        config = optimizer.get_config()
        own = [key for key in config if key not in ("name", "optimizer") and not key.startswith(("clip", "ema"))]
        changes = [((key,), value) for key in own for value in odd]
        changes += [
            (("rule", key), value) for key in (*config.get("rule", ()), "x") for value in odd if "rule" in config
        ]
        changes += [(("variables", 0), value) for value in odd]
        changes += [(("variables", 0, i), value) for i in range(4) for value in odd]
        for (*path, last), value in changes:
            changed = copy.deepcopy(config)
            inner: Any = changed
            for key in path:
                inner = inner[key]
            inner[last] = value
            message = None
            try:
                type(optimizer).from_config(changed)
            except (ValueError, TypeError) as error:
                message = str(error)
            seen["loaded" if message is None else "refused"] += 1
            assert message is None or len(message) > 20, (kind, path, last, value)
    assert seen["refused"] > 200
    assert seen["loaded"] > 20
    lacking = {key: value for key, value in MAKERS["wrapped"]().get_config().items() if key != "optimizer"}
    with pytest.raises(ValueError, match="has no entry 'optimizer'"):
        Wrapped.from_config(lacking)


@pytest.mark.parametrize("entry", [None, 3, "four", [], ["w", "w", []], ["w", "w", [], 1], [1, "w", [], True]])
def test_what_was_settled_for_a_variable_is_named(entry):
    optimizer = MAKERS["Magma"]()
    optimizer.build(variables())
    config = optimizer.get_config()
    config["variables"][0] = entry
    with pytest.raises((ValueError, TypeError), match="variables of a configuration must have"):
        Magma.from_config(config)
