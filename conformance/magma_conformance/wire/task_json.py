"""Tasks and their records as JSON types, as in the vectors and in requests to ports.

docs/porting.md is the reference of this form.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from magma_conformance.task import Record, Task
from magma_conformance.wire import hex_arrays
from magma_core import Report, State

Description: TypeAlias = Mapping[str, Any]

FIELDS = ("param", *State._fields, *Report._fields)
"""Fields of a parameter in a record, in the order in which they are written."""


def describe_task(task: Task, /) -> dict[str, Any]:
    """``task`` as an input of the kind "steps"."""
    state = task.state or {}
    parameters = [
        {"name": name, "block_axes": _listed(task.block_axes[name]), "param": hex_arrays.to_json(param)}
        | {field: hex_arrays.to_json(state[f"{name}/{field}"]) for field in State._fields if f"{name}/{field}" in state}
        for name, param in task.params.items()
    ]
    steps = [
        {"lr": number_to_json(rate), "gradients": [hex_arrays.to_json(gradients[name]) for name in task.params]}
        for rate, gradients in zip(task.learning_rates, task.gradients, strict=True)
    ]
    return {
        "base": _numbers_to_json(task.base),
        "rule": _numbers_to_json(task.rule),
        "seed": str(task.seed),  # JSON numbers are exact up to 2⁵³ only
        "first_step": task.first_step,
        "parameters": parameters,
        "steps": steps,
    }


def task_from(description: Description, /, key: str) -> Task:
    """The task of an input of the kind "steps".

    Raises:
        NotImplementedError: if two parameters share a name, which the mappings of a `Task` cannot express.
    """
    parameters = description["parameters"]
    names = [parameter["name"] for parameter in parameters]
    if len(set(names)) < len(names):
        raise NotImplementedError("a mapping cannot have one name twice")
    state = {
        f"{parameter['name']}/{field}": hex_arrays.from_json(parameter[field])
        for parameter in parameters
        for field in State._fields
        if field in parameter
    }
    steps = description["steps"]
    return Task(
        key=key,
        params={parameter["name"]: hex_arrays.from_json(parameter["param"]) for parameter in parameters},
        gradients=[dict(zip(names, map(hex_arrays.from_json, step["gradients"]), strict=True)) for step in steps],
        learning_rates=[number_from_json(step["lr"]) for step in steps],
        base={name: number_from_json(value) for name, value in description["base"].items()},
        rule={name: number_from_json(value) for name, value in description["rule"].items()},
        block_axes={parameter["name"]: parameter["block_axes"] for parameter in parameters},
        seed=int(description["seed"]),
        first_step=description["first_step"],
        state=state or None,
    )


def describe_records(records: Sequence[Record], names: Sequence[str], /) -> dict[str, Any]:
    """Records as an answer to "steps"."""
    return {
        "steps": [
            [
                {
                    field: hex_arrays.to_json(record[f"{name}/{field}"])
                    for field in FIELDS
                    if f"{name}/{field}" in record
                }
                for name in names
            ]
            for record in records
        ]
    }


def records_from(description: Description, names: Sequence[str], /) -> list[Record]:
    """The inverse of `describe_records`."""
    return [
        {
            f"{name}/{field}": hex_arrays.from_json(array)
            for name, arrays in zip(names, step, strict=True)
            for field, array in arrays.items()
        }
        for step in description["steps"]
    ]


def number_to_json(value: Any, /) -> Any:
    """Numbers that JSON lacks become strings: nan, inf and -inf."""
    return repr(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def number_from_json(value: Any, /) -> Any:
    """The inverse of `number_to_json`; other strings stay as they are."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def _numbers_to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number_to_json(value) for name, value in values.items()}


def _listed(axes: Sequence[int] | None) -> list[int] | None:
    return None if axes is None else list(axes)
