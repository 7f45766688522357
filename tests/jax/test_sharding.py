"""A sharded step has the bits of a step on one device, and exchanges only a few numbers per block.

sharding_scenarios.py makes the results, in a process with eight virtual devices.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import pytest

pytest.importorskip("optax", reason="JAX or optax is not installed")

import jax
import jax.numpy as jnp
import numpy as np
import sharding_scenarios as scenarios
from jax.sharding import PartitionSpec as P
from magma_conformance.bits import assert_bits_equal
from magma_conformance.processes.worker import Worker
from magma_jax import magma
from sharding_problems import ALL, AXES, DEVICES, LEAVES, PROBLEMS, STEPS, reference
from sharding_scenarios import Run

every_scenario = pytest.mark.parametrize("name", scenarios.SCENARIOS)
every_program = pytest.mark.parametrize("name", scenarios.WATCHED)


@pytest.fixture(scope="module")
def process() -> Iterator[Worker]:
    """Where scenarios run: devices are settled when JAX is imported."""
    worker = Worker(scenarios.ENVIRONMENT)
    yield worker
    worker.end()


@pytest.fixture
def run(once: Callable[..., Run], process: Worker, name: str) -> Run:
    """What the scenario ``name`` saw."""
    return once(f"sharding {name}", lambda: process.call(scenarios.solve, name))


@every_scenario
def test_every_step_has_the_bits_of_numpy(run: Run, name: str) -> None:
    for step, (seen, expected) in enumerate(zip(run.steps, reference(run.problem, run.names), strict=True), start=1):
        assert seen.keys() == expected.keys()
        for key, array in expected.items():
            assert_bits_equal(seen[key], array, f"step {step}, {key}")


@every_scenario
def test_moments_lie_like_parameters_and_scores_like_blocks(run: Run, name: str) -> None:
    """Before the first step and after each; what is donated is gone, and types stay."""
    assert run.misplaced == []


# What is exchanged


def most_numbers(names: tuple[str, ...]) -> int:
    """Three sums for each block and device; blocks of one element have nothing to exchange."""
    counts = [prod(ALL[name][0][axis] for axis in AXES[name]) for name in names if extends(name)]
    return 3 * DEVICES * max(counts, default=0)


def extends(name: str) -> bool:
    """Whether blocks have several elements, or there are none."""
    shape, axes = ALL[name]
    return axes is not None and any(n > 1 for axis, n in enumerate(shape) if axis not in axes)


@every_program
def test_collectives_are_of_numbers_for_each_block(run: Run, name: str) -> None:
    """Of none at all where blocks are elements or there are no scores."""
    limit = most_numbers(run.names) if PROBLEMS[run.problem].rule.uses_score else 0
    assert limit < min(prod(ALL[leaf][0]) // DEVICES for leaf in run.names if leaf != "scalar")  # what a device has
    for operation, sizes in run.collectives:
        assert 0 < max(sizes) <= limit, operation


@every_program
def test_nothing_large_is_reshaped(run: Run, name: str) -> None:
    """Before the program is divided: a reshape could not be."""
    assert max(run.reshapes, default=0) <= most_numbers(run.names)


@pytest.mark.parametrize("name", [*(f"{mode} mixed" for mode in scenarios.MODES), "auto uneven"])
def test_sums_are_exchanged(run: Run, name: str) -> None:
    """Otherwise nothing would have been spread."""
    assert {"all-reduce", "all-gather"} & {operation for operation, _ in run.collectives}


@pytest.mark.parametrize(("name", "reshaped"), [("gathers", []), ("reshapes", [2048])])
def test_offenders_are_found(run: Run, name: str, reshaped: list[int]) -> None:
    """Programs that bring a parameter together."""
    assert any(max(sizes) > most_numbers(run.names) for _, sizes in run.collectives)
    assert run.reshapes == reshaped


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('  %a = f32[4,2]{1,0} add(%x, %x), metadata={op_name="all-reduce"}', []),
        ("  ROOT %a = f32[4,2]{1,0} all-reduce(%x), channel_id=1, to_apply=%add", [("all-reduce", [8, 8])]),
        ("  %a = (f32[8]{0}, s64[]) all-reduce-start(%x, %y), channel_id=1", [("all-reduce-start", [8, 1, 8, 3])]),
        ("  %a = f32[64]{0} all-gather(%x), dimensions={0}", [("all-gather", [64, 8])]),
        ("  %a = f32[1]{0} reduce-scatter(%x), dimensions={0}", [("reduce-scatter", [1, 8])]),
        ("  %a = f32[8]{0} all-to-all(%x), dimensions={0}", [("all-to-all", [8, 8])]),
        ("  %a = f32[8]{0} collective-permute-start(%x), channel_id=1", [("collective-permute-start", [8, 8])]),
        ("  %a = ((f32[8]{0}), f32[64]{0}) async-start(%x), replica_groups={{0,1}}", [("async-start", [8, 64, 8])]),
    ],
)
def test_collectives_are_read(line: str, expected: list[Any]) -> None:
    text = f"ENTRY %main {{\n  %x = f32[8]{{0}} parameter(0)\n  %y = s64[3]{{0}} parameter(1)\n{line}\n}}"
    assert scenarios.collectives(text) == expected


# How often is compiled


@pytest.mark.parametrize("name", [name for name in scenarios.SCENARIOS if " init " in name])
def test_step_is_compiled_once(run: Run, name: str) -> None:
    """However the state was made."""
    assert run.compilations[1:] == [1, *[0] * (STEPS - 1)]


@pytest.mark.parametrize("spec", [P(None, None, "x"), None, ("x",)])
def test_spec_that_does_not_fit(spec: Any) -> None:
    """It names the leaf and its rank."""
    with pytest.raises(ValueError, match=r"specs must give 'w' a PartitionSpec of at most 2 entries, got"):
        parts(spec).init({"w": jnp.ones((2, 2))})


def test_specs_that_are_no_function() -> None:
    with pytest.raises(TypeError, match=r"specs must be a function of a leaf's name and the leaf, got P"):
        magma(0.1, specs=P("x"))


# The problems


@pytest.mark.parametrize("problem", ["adamw", "sgd", "rmsprop", "bfloat16", "updates"])
def test_problems_are_hard(problem: str) -> None:
    """Some blocks are kept and some are not, something is not finite at last, and sums and cosines say something."""
    names = tuple(LEAVES)
    steps = reference(problem, names)
    for name in ("rows", "columns", "crossed", "experts", "heads", "bias"):
        kept = np.stack([step[f"{name}/seen keep"] for step in steps])
        assert kept.any()
        assert not kept.all()
    last = [steps[-1][f"{name}/param"].astype(np.float32) for name in names]
    assert not all(np.isfinite(x).all() for x in last)
    assert sum(np.isfinite(x).all() for x in last) > len(names) // 3
    assert all(np.isfinite(steps[STEPS - 2][f"{name}/param"].astype(np.float32)).all() for name in names)
    if PROBLEMS[problem].rule.uses_score:
        for name in ("rows", "columns", "experts", "heads"):
            assert len({step[f"{name}/seen cosine"].tobytes() for step in steps}) > 2


# Errors


def parts(spec: P) -> Any:
    """An optimizer for parts of the only leaf."""
    return magma(0.1, specs=lambda name, leaf: spec)


@pytest.mark.parametrize("spec", [P("nowhere"), P(("x", "nowhere")), P(None, "nowhere")])
def test_axis_that_the_mesh_does_not_have(spec: P) -> None:
    mesh = jax.make_mesh((1,), ("x",))
    init = jax.shard_map(parts(spec).init, mesh=mesh, in_specs=(P(),), out_specs=P())
    with pytest.raises(ValueError, match=r"specs gives 'w' the spec .*nowhere.*: leave specs out under jit"):
        init({"w": jnp.ones((2, 2))})


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit], ids=["eager", "jit"])
def test_specs_outside_of_shard_map(wrap: Any) -> None:
    """Also where a mesh with that axis is set: there, arrays are whole."""
    params = {"w": jnp.ones((2, 2))}
    state = magma(0.1).init(params)
    with jax.set_mesh(jax.make_mesh((1,), ("x",))):
        with pytest.raises(ValueError, match=r"specs gives 'w' the spec .*: leave specs out under jit"):
            wrap(parts(P("x")).init)(params)
        with pytest.raises(ValueError, match=r"specs gives 'w' the spec .*: leave specs out under jit"):
            wrap(parts(P("x")).update)(params, state, params)
