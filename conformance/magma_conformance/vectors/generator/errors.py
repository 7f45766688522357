"""Questions that must be refused (spec section 9), each derived from a valid one by one change."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from magma_conformance.task import Task
from magma_conformance.vectors.generator.parts import Asked
from magma_conformance.vectors.generator.steps import BASES
from magma_conformance.wire import hex_arrays
from magma_conformance.wire.task_json import describe_task, number_to_json
from magma_core import magma
from magma_core.state_file.config import base_to_plain, rule_to_plain

Json: TypeAlias = dict[str, Any]

ABOVE_ONE = 1 - 2.0**-25
"""Rounds to 1 in binary32."""
BELOW = 2.0**-100 * (1 - 2.0**-53)
TOO_LARGE = 2.0**128 * (1 - 2.0**-25)
"""Rounds to infinity in binary32."""

_UNIT = (-0.1, -(2.0**-149), 1 + 2.0**-52, math.inf, -math.inf, math.nan)
_BETA = (-0.1, 1 - 2.0**-24 + 2.0**-53, ABOVE_ONE, 1.0, 2.0, math.nan)
_POSITIVE = (0.0, -1.0, BELOW, TOO_LARGE, math.inf, math.nan)
_NOT_NEGATIVE = (-(2.0**-149), -1e-300, -1.0, TOO_LARGE, math.inf, math.nan)
_RULE_VALUES = {"p": _UNIT, "initial_score": _UNIT, "ema": _BETA, "tau": _POSITIVE}
_BASE_VALUES = {
    "momentum": _BETA,
    "beta1": _BETA,
    "beta2": _BETA,
    "eps": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
}


class Refused(NamedTuple):
    """A question, and its class of error."""

    question: Asked
    reason: str


def errors() -> Iterator[Refused]:
    """Every class of error of spec section 9, at its edges."""
    for one in (_rules, _bases, _inputs, _blocks, _formats, _gradients, _states):
        yield from one()


def _rules() -> Iterator[Refused]:
    for name, values in _RULE_VALUES.items():
        for value in values:
            question = _valid()
            question["rule"][name] = number_to_json(value)
            yield _refused(name, f"{name} = {value!r}", question)
    question = _valid()
    question["rule"] |= {"weight": "one", "tau": 0.0}
    yield _refused("tau", "tau = 0 of a rule without scores", question)


def _bases() -> Iterator[Refused]:
    seen = set()
    for kind in ("sgd", "rmsprop", "adamw", "laprop"):
        for name in (name for name in _valid(kind)["base"] if name in _BASE_VALUES):
            # all values for the first base with this name, the ends for the others
            values = _BASE_VALUES[name] if name not in seen else (_BASE_VALUES[name][0], _BASE_VALUES[name][-1])
            seen.add(name)
            for value in values:
                question = _valid(kind)
                question["base"][name] = number_to_json(value)
                yield _refused(name, f"{name} of {kind} = {value!r}", question)


def _inputs() -> Iterator[Refused]:
    for step, value in [*((0, value) for value in _NOT_NEGATIVE), (1, -0.5)]:
        question = _valid()
        question["steps"][step]["lr"] = number_to_json(value)
        yield _refused("lr", f"lr = {value!r} in step {step + 1}", question)
    for first, comment in ((0, ""), (-1, ""), (2**32, ""), (2**32 - 1, ", and two steps")):
        yield _refused("step", f"first_step = {first}{comment}", _valid() | {"first_step": first})
    for seed in (-1, 2**64):
        yield _refused("seed", f"seed = {seed}", _valid() | {"seed": str(seed)})
    question = _valid()
    question["parameters"][1]["name"] = question["parameters"][0]["name"]
    yield _refused("names", "two parameters of one name", question)


def _blocks() -> Iterator[Refused]:
    for comment, axes in (
        ("an axis that is not there", [2]),
        ("an axis that is not there, beside one that is", [0, 5]),
        ("an axis twice", [0, 0]),
        ("both axes, one of them twice", [1, 0, 1]),
    ):
        question = _valid()
        question["parameters"][0]["block_axes"] = axes
        yield _refused("block_axes", comment, question)
    scalar = hex_arrays.to_json(np.ones((), np.float32))
    yield _refused("block_axes", "an axis of a scalar", _reshaped(scalar, [0]))
    for comment, shape, axes in (
        ("more than 2^32 blocks, all of them empty", (2**32 + 1, 0), [0]),
        ("blocks of more than 2^32 elements, none of which is there", (0, 2**32 + 1), [0]),
        ("more than 2^32 blocks by the product of two extents", (2**17, 2**16, 0), [0, 1]),
    ):
        empty = {"dtype": "float32", "shape": list(shape), "bits": ""}
        yield _refused("size", comment, _reshaped(empty, axes))


def _formats() -> Iterator[Refused]:
    for dtype in ("float64", "int32", "bool"):
        array = hex_arrays.to_json(np.ones((2, 3), dtype))
        yield _refused("format", f"a parameter of {dtype}", _reshaped(array, [0]))


def _gradients() -> Iterator[Refused]:
    wrong: dict[str, np.ndarray] = {
        "of another shape": np.ones((3, 2), np.float32),
        "of another rank": np.ones(6, np.float32),
        "with an axis of extent 1": np.ones((2, 1), np.float32),
        "in another format": np.ones((2, 3), np.float16),
        "in binary64": np.ones((2, 3), np.float64),
    }
    for comment, array in wrong.items():
        for step in (0, 1):
            question = _valid()
            question["steps"][step]["gradients"][0] = hex_arrays.to_json(array)
            yield _refused("gradient", f"a gradient {comment} in step {step + 1}", question)


def _states() -> Iterator[Refused]:
    wrong: list[tuple[str, str, np.ndarray]] = [
        ("mu", "of another shape", np.zeros((3, 2), np.float32)),
        ("nu", "in binary64", np.zeros((2, 3), np.float64)),
        ("mu", "in another format", np.zeros((2, 3), np.float16)),
        ("score", "of another shape", np.zeros(3, np.float32)),
        ("score", "of another rank", np.zeros((2, 1), np.float32)),
        ("mu_power", "of another rank", np.ones(1, np.float32)),
        ("nu_power", "in binary64", np.ones((), np.float64)),
    ]
    for field, comment, array in wrong:
        question = _with_state("adamw")
        question["parameters"][0][field] = hex_arrays.to_json(array)
        yield _refused("state", f"a state whose {field} is {comment}", question)
    for field in ("mu", "nu", "score", "nu_power"):
        question = _with_state("adamw")
        del question["parameters"][0][field]
        yield _refused("state", f"a state without {field}", question)
    question = _with_state("sgd")
    question["parameters"][0]["nu"] = hex_arrays.to_json(np.zeros((2, 3), np.float32))
    yield _refused("state", "a state with nu, which SGD does not keep", question)


def _refused(reason: str, comment: str, question: Json) -> Refused:
    return Refused(Asked(comment, "steps", question), reason)


def _valid(kind: str = "adamw") -> Json:
    """A valid question: two parameters and two steps of Magma."""
    ones = {name: np.ones((2, 3), np.float32) for name in ("w", "v")}
    return describe_task(
        Task(
            key="",
            params=ones,
            gradients=[ones, ones],
            learning_rates=[0.1, 0.1],
            base=base_to_plain(BASES[kind][0]),
            rule=rule_to_plain(magma()),
            block_axes={"w": (0,), "v": None},
            seed=1,
        )
    )


def _reshaped(array: Json, axes: list[int]) -> Json:
    """The valid question with another array for the first parameter and its gradients."""
    question = _valid()
    question["parameters"][0].update(param=array, block_axes=axes)
    for step in question["steps"]:
        step["gradients"][0] = array
    return question


def _with_state(kind: str) -> Json:
    """The valid question with both parameters' initial state."""
    question = _valid(kind)
    for parameter in question["parameters"]:
        for field in {"sgd": ["mu"], "adamw": ["mu", "nu", "mu_power", "nu_power"]}[kind]:
            power = field.endswith("_power")
            parameter[field] = hex_arrays.to_json(np.full(() if power else (2, 3), float(power), np.float32))
    question["parameters"][0]["score"] = hex_arrays.to_json(np.full(2, 0.5, np.float32))
    return question
