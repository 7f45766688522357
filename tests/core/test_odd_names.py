"""A name is any text: it keys the masks and nothing else. Covers matrix rows that are quick or run in this process."""

from dataclasses import replace

import numpy as np
import pytest
from magma_conformance.cases.pairwise import Case
from magma_conformance.runner.jobs import open_implementation
from magma_conformance.runner.result import compare
from magma_conformance.task import Task

ODD = [
    "",
    "/",
    "a/b.c",
    "w/param",
    ".",
    "..",
    "a:0",
    ":0",
    "0",
    "p1",
    "module.p0",
    " ",
    "é",
    "e\u0301",
    "𝛉",
    "\u202e",
    "\ufeff",
    "a" * 10000,
    "a\nb",
    "\x00",
    "\x1b[31m",
    "^.*$",
    "{%s}\\'\"",
]
CASE = Case("adamw", "magma", "vector", "rows", "float32", "s0=0.5", "after", "none", "default")


def odd_task(names: list[str]) -> Task:
    """Two steps of a small parameter under each name."""
    task = CASE.task()
    small = np.ones(3, np.float32)
    return replace(
        task,
        key=f"{len(names)} odd names",
        params={name: small + i for i, name in enumerate(names)},
        gradients=[{name: step["w"][i : i + 3] for i, name in enumerate(names)} for step in task.gradients[:2]],
        learning_rates=task.learning_rates[:2],
        block_axes={name: None if i % 5 == 4 else (0,) for i, name in enumerate(names)},
    )


@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("strict", "eager"),
        ("torch", "eager"),
        ("tensorflow", "eager"),
        ("magma_torch", "eager"),
        ("magma_torch", "triton"),
        ("magma_torch", "ddp"),
        ("magma_torch", "fsdp2"),
        ("magma_jax", "apply"),
    ],
)
def test_any_name_will_do(backend, mode):
    try:
        implementation = open_implementation(backend, mode, "cpu")
    except ImportError as error:
        pytest.skip(str(error))
    names = ODD[:: 3 if mode == "apply" else 1]  # it compiles for each
    task = odd_task(names)
    assert implementation.refuses(task) is None
    records = implementation.run(task)
    assert compare(records, open_implementation("numpy", "eager", "cpu").run(task)) is None
    again = replace(  # from the middle
        task,
        key=f"{task.key}, later",
        params={name: records[0][f"{name}/param"] for name in names},
        gradients=task.gradients[1:],
        learning_rates=task.learning_rates[1:],
        first_step=2,
        state=records[0],
    )
    assert compare(implementation.run(again), records[1:], 2) is None
