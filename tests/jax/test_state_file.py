"""`magma_jax.save_state` and `load_state`: the core's file, bit for bit, and resumed runs."""

import inspect
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import magma_jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from magma_conformance.bits import assert_bits_equal
from magma_jax import (
    MagmaState,
    by_rule,
    load_state,
    magma,
    save_state,
    scale_by_magma,
    scale_by_skip_update,
    skip_update,
    wrap,
    wrap_magma,
)
from mutated_state import check_mutated_files
from paths import HELPERS
from portable_problem import (
    CASES,
    FORMATS,
    LAYOUTS,
    LR,
    PERMUTATIONS,
    SAVED,
    SEED,
    STEPS,
    Core,
    every_case,
    gradient,
    no_tensor_may_be_read,
    own,
    write_claim,
)

import magma_core
from magma_core import SGD, Adam, AdamW, RMSProp, damping, read_state, write_state

WORKER = HELPERS / "portable_worker.py"


def axes_of(name: str, leaf: Any) -> Any:
    del leaf
    return LAYOUTS[name].own_axes


class Run:
    """A transformation and its state, the parameters in their own layout."""

    def __init__(self, base: Any, rule: Any, kind: str = "float32", **options: Any) -> None:
        self.core, self.kind = Core(base, rule, kind), kind
        self.params: Any = {name: jnp.asarray(own(name, x)) for name, x in self.core.params.items()}
        self.optimizer = by_rule(LR, rule, base, **{"seed": SEED, "block_axes": axes_of} | options)
        self.state = self.optimizer.init(self.params)
        self._step = jax.jit(self.optimizer.step)
        self.done = 0

    def step(self, steps: int = 1) -> "Run":
        for _ in range(steps):
            self.done += 1
            grads = {name: own(name, gradient(name, self.done, self.kind)) for name in self.params}
            self.params, self.state = self._step(self.params, grads, self.state)
        return self

    def take_over(self, core: Core) -> "Run":
        """The parameters, which are in no state file."""
        self.done, self.params = core.done, {name: jnp.asarray(own(name, x)) for name, x in core.params.items()}
        return self

    def save(self, path: Path) -> bytes:
        save_state(self.optimizer, self.params, self.state, path, axes=PERMUTATIONS)
        return path.read_bytes()

    def load(self, path: Path, **options: Any) -> "Run":
        self.state = load_state(self.optimizer, self.params, path, axes=PERMUTATIONS, **options)
        return self

    def check(self, core: Core, path: Path) -> None:
        """The same parameters, and the same file."""
        for name, param in self.params.items():
            assert_bits_equal(param, own(name, core.params[name]), name)
        assert self.save(path / "own") == core.write(path / "core")


@pytest.fixture(scope="module")
def run() -> Run:
    """After two steps; not to be stepped."""
    return Run(AdamW(), magma_core.magma()).step(2)


@every_case
def test_file_is_the_core_s_and_runs_go_on_from_it(tmp_path, base, rule):
    core, run = Core(base, rule).step(SAVED), Run(base, rule).step(SAVED)
    run.check(core, tmp_path)
    run.take_over(core).load(tmp_path / "core").check(core, tmp_path)
    run.step(STEPS - SAVED).check(core.step(STEPS - SAVED), tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_state_is_float32_whatever_the_parameters_are(tmp_path, kind):
    core, run = Core(*CASES[5], kind).step(SAVED), Run(*CASES[5], kind).step(SAVED)
    run.check(core, tmp_path)
    run.load(tmp_path / "core").step(2).check(core.step(2), tmp_path)


def assert_same(actual: Any, expected: Any) -> None:
    """Trees of the same structure, bits, types and places."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_bits_equal(a, b)
        assert (a.weak_type, a.committed, a.sharding) == (b.weak_type, b.committed, b.sharding)


def test_state_is_what_init_makes_with_other_values(tmp_path, run):
    """So that nothing is compiled again."""
    run.save(tmp_path / "state")
    found = load_state(run.optimizer, run.params, tmp_path / "state", axes=PERMUTATIONS)
    start = run.optimizer.init(run.params)
    assert jax.tree.structure(found) == jax.tree.structure(start)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True):
        assert (a.shape, a.dtype, a.weak_type, a.committed) == (b.shape, b.dtype, b.weak_type, b.committed)
        assert a.sharding == b.sharding
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run.state), strict=True):
        assert_bits_equal(a, b)


def test_before_the_first_step(tmp_path):
    rule = magma_core.magma(initial_score=0.25)
    run = Run(SGD(), rule)
    assert run.save(tmp_path / "own") == Core(SGD(), rule).write(tmp_path / "core")
    assert_same(run.load(tmp_path / "core").state, run.optimizer.init(run.params))


def test_leaves_of_other_kinds_take_no_part(tmp_path):
    """None, integers and what optax hides."""
    params = {"w": jnp.ones(2), "none": None, "count": jnp.arange(3), "hidden": optax.MaskedNode(), "x": (jnp.ones(3),)}
    optimizer = magma(0.1)
    state = optimizer.init(params)._replace(count=jnp.int32(4))
    save_state(optimizer, params, state, tmp_path / "state")
    assert list(read_state(tmp_path / "state")) == ["w", "x.0"]
    assert_same(load_state(optimizer, params, tmp_path / "state"), state)


def test_names_are_those_that_key_the_masks(tmp_path):
    params = {"dense": {"kernel": jnp.ones((2, 3))}}
    optimizer = magma(0.1, name=lambda path: f"model/{path}", block_axes=(0,))
    save_state(optimizer, params, optimizer.init(params), tmp_path / "state")
    assert list(read_state(tmp_path / "state")) == ["model/dense.kernel"]
    mapped: Any = {"names": str.upper, "axes": lambda name, shape: (1, 0)}
    save_state(optimizer, params, optimizer.init(params), tmp_path / "state", **mapped)
    found = read_state(tmp_path / "state")["MODEL/DENSE.KERNEL"]
    assert (found.shape, found.block_axes) == ((3, 2), (1,))


def test_modules_of_nnx(tmp_path):
    """Names do not depend on whether their variables are boxed."""
    params = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = magma(0.1)
    params, state = optimizer.step(params, params, optimizer.init(params))
    save_state(optimizer, params, state, tmp_path / "state")
    assert list(read_state(tmp_path / "state")) == ["bias", "kernel"]
    assert_same(load_state(optimizer, params, tmp_path / "state"), state)


# What an optimizer may be


@pytest.mark.parametrize(
    ("optimizer", "base", "rule"),
    [
        (magma(0.1, "laprop", p=0.25, decay="dense"), magma_core.LaProp(), magma_core.magma(p=0.25, decay="dense")),
        (skip_update(0.1, "sgd", p=0.25), SGD(), magma_core.skip_update(p=0.25)),
        (scale_by_magma(b1=0.5), Adam(beta1=0.5), magma_core.magma()),
        (scale_by_skip_update(RMSProp(beta2=0.5)), RMSProp(beta2=0.5), magma_core.skip_update()),
        (by_rule(optax.linear_schedule(0.1, 0.0, 9), damping()), AdamW(), damping()),
    ],
    ids=["magma", "skip_update", "scale_by_magma", "scale_by_skip_update", "by_rule"],
)
def test_every_transformation(tmp_path, optimizer, base, rule):
    params = {"w": jnp.ones((2, 3))}
    _, state = optimizer.update(params, optimizer.init(params), params)
    save_state(optimizer, params, state, tmp_path / "state")
    found = read_state(tmp_path / "state")["w"]
    assert (found.base, found.rule, found.step) == (base, rule, 1)
    assert_same(load_state(optimizer, params, tmp_path / "state"), state)


def test_members_of_chains_and_injected_hyperparameters(tmp_path):
    """Arrays are saved as the numbers that they are, and go on with the same bits."""
    params, path = {"w": jnp.full((2, 3), 0.5)}, tmp_path / "state"
    injected = optax.inject_hyperparams(magma, static_args=("base", "block_axes"))
    optimizer = optax.chain(
        optax.clip(1.0), injected(0.1, base="adamw", b1=0.7, p=0.3, weight_decay=0.2, block_axes=(0,))
    )
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    member = magma(**state[1].hyperparams, base="adamw", block_axes=(0,))
    save_state(member, params, state[1].inner_state, path)
    found = read_state(path)["w"]
    assert (found.base.beta1, found.rule.p, found.base.weight_decay) == tuple(map(float, np.float32([0.7, 0.3, 0.2])))
    assert_same(load_state(member, params, path), state[1].inner_state)
    as_numbers = by_rule(0.1, found.rule, found.base, block_axes=(0,))
    ours = as_numbers.step(params, params, load_state(as_numbers, params, path))
    theirs = member.step(params, params, state[1].inner_state)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_bits_equal(a, b)


def test_arrays_that_no_rule_can_have_are_refused(tmp_path):
    params = {"w": jnp.ones(2)}
    optimizer = magma(0.1, p=jnp.float32(1.5))
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
        save_state(optimizer, params, optimizer.init(params), tmp_path / "state")


def test_a_seed_that_is_an_array(tmp_path):
    params = {"w": jnp.ones(2)}
    optimizer = magma(0.1, seed=jnp.uint32(2**32 - 1))
    save_state(optimizer, params, optimizer.init(params), tmp_path / "state")
    assert read_state(tmp_path / "state")["w"].seed == 2**32 - 1


@pytest.mark.parametrize("optimizer", [wrap_magma(optax.adam(0.1)), wrap(optax.sgd(0.1), damping()), optax.adam(0.1)])
def test_the_state_of_other_transformations_is_their_own(tmp_path, optimizer):
    params = {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"what wrap\(\) makes is in part that of another optimizer"):
        save_state(optimizer, params, optimizer.init(params), tmp_path / "state")
    with pytest.raises(TypeError, match=r"optimizer must be a transformation that magma\(\)"):
        load_state(optimizer, params, tmp_path / "state")
    with pytest.raises(TypeError, match="state must be the MagmaState"):
        save_state(magma(0.1), params, optimizer.init(params), tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_tracers_are_refused(tmp_path):
    params, optimizer = {"w": jnp.ones(2)}, magma(0.1)
    state = optimizer.init(params)
    save_state(optimizer, params, state, tmp_path / "state")

    def save(params: Any, state: Any, p: Any) -> None:
        save_state(magma(0.1, p=p), params, state, tmp_path / "traced")

    for traced in range(3):
        arguments = [params, state, 0.5]
        with pytest.raises(TypeError, match="outside of jit"):
            jax.jit(lambda x, i=traced, a=arguments: save(*a[:i], x, *a[i + 1 :]))(arguments[traced])
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda params: load_state(optimizer, params, tmp_path / "state"))(params)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


# Errors


def changed(path: Path, name: str, **changes: Any) -> None:
    found = read_state(path)
    write_state(path, found | {name: replace(found[name], **changes)})


ERRORS: dict[str, tuple[Any, str]] = {
    "seed": (lambda path: changed(path, "rows", seed=3), "'rows' was saved with seed 3, the optimizer has"),
    "base": (lambda path: changed(path, "rows", base=AdamW(eps=1e-6)), "base eps 1e-06, the optimizer has 1e-08"),
    "step": (lambda path: changed(path, "rows", step=3), "step of 'bias' is 2, that of 'rows' 3"),
    "power": (
        lambda path: changed(path, "rows", state=read_state(path)["rows"].state._replace(nu_power=np.float32(0.5))),
        "nu_power of 'bias' is .*, that of 'rows' 0.5",
    ),
    "a large step": (
        lambda path: write_state(path, {name: replace(x, step=2**31) for name, x in read_state(path).items()}),
        "2147483648 steps have been done, and this optimizer counts to 2147483647",
    ),
    "a name less": (
        lambda path: write_state(path, {name: x for name, x in read_state(path).items() if name != "bias"}),
        "'bias' is no parameter of the file",
    ),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cut off or added to"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_leave_the_file_alone(tmp_path, run, name):
    change, match = ERRORS[name]
    run.save(tmp_path / "state")
    change(tmp_path / "state")
    file = (tmp_path / "state").read_bytes()
    with pytest.raises(ValueError, match=match):
        load_state(run.optimizer, run.params, tmp_path / "state", axes=PERMUTATIONS)
    assert (tmp_path / "state").read_bytes() == file


def test_the_largest_step_that_is_counted(tmp_path):
    params, optimizer = {"w": jnp.ones(2)}, magma(0.1)
    state = optimizer.init(params)._replace(count=jnp.int32(2**31 - 1))
    save_state(optimizer, params, state, tmp_path / "state")
    assert_same(load_state(optimizer, params, tmp_path / "state"), state)


def test_layouts_and_names_must_be_explained(tmp_path, run):
    run.save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"'empty' has shape \(0, 3\), of which .*'empty', \(3, 0\): say with axes="):
        load_state(run.optimizer, run.params, tmp_path / "state")
    with pytest.raises(FileNotFoundError, match="missing"):
        load_state(run.optimizer, run.params, tmp_path / "missing")


def test_a_state_that_is_not_the_optimizer_s_is_not_saved(tmp_path, run):
    other = run.state._replace(score=None)
    with pytest.raises(ValueError, match="cannot be saved: score must be there under this base and rule"):
        save_state(run.optimizer, run.params, other, tmp_path / "state")
    other = run.state._replace(mu=run.state.nu | {"rows": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"'rows' cannot be saved: mu must be float32 of shape \(3, 4\)"):
        save_state(run.optimizer, run.params, other, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_without_strict_the_optimizer_s_options_stay(tmp_path, run):
    run.save(tmp_path / "state")
    other = Run(Adam(), magma_core.magma(p=0.25), seed=3)
    with pytest.raises(ValueError, match="load with strict=False"):
        other.load(tmp_path / "state")
    other.load(tmp_path / "state", strict=False)
    assert_same(other.state, run.state)
    other.save(tmp_path / "again")
    found = read_state(tmp_path / "again")["rows"]
    assert (found.base, found.rule, found.seed, found.step) == (Adam(), magma_core.magma(p=0.25), 3, 2)
    assert isinstance(other.state, MagmaState)


def test_mutated_files_are_loaded_or_refused(tmp_path):
    file = tmp_path / "state"
    valid, run = Core(AdamW(), magma_core.magma()).step(3).write(file), Run(AdamW(), magma_core.magma())
    check_mutated_files(
        file, valid, lambda: run.load(file), lambda: [np.asarray(x).tobytes() for x in jax.tree.leaves(run.state)], 300
    )


def test_a_file_that_claims_gigabytes_is_not_read(monkeypatch, tmp_path):
    run = Run(AdamW(), magma_core.magma())
    no_tensor_may_be_read(monkeypatch)
    with pytest.raises(ValueError, match="is no parameter of the file, which has 'w'"):
        run.load(write_claim(tmp_path / "state"))
    with pytest.raises(ValueError, match=r"'w' has shape \(32768, 32768\)"):
        load_state(magma(LR), {"w": jnp.ones((2, 3))}, tmp_path / "state")


# Many devices


def test_under_shard_map_blocks_are_those_of_the_whole(tmp_path):
    """Outside of it there are whole leaves, and ``specs`` has no say."""
    params = {"w": jnp.ones((4, 2))}
    inside = magma(0.1, block_axes=(0,), specs=lambda name, leaf: P("x"))
    outside = magma(0.1, block_axes=(0,))
    state = outside.init(params)._replace(count=jnp.int32(1))
    save_state(inside, params, state, tmp_path / "state")
    assert_same(load_state(inside, params, tmp_path / "state"), state)


@pytest.mark.parametrize("processes", [1, 2])
def test_many_devices_have_the_file_of_one(tmp_path, processes):
    """In one process with eight, and in two with four each, which share the arrays."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, str(WORKER), str(tmp_path), address, str(processes)]
    workers = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(processes)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, output[-3000:]
        assert output.rstrip().endswith("done"), output[-3000:]


# What users see; examples are run by test_composition.py


@pytest.mark.parametrize("function", [save_state, load_state])
def test_arguments_are_documented_in_order(function):
    section = re.split("Returns:|Raises:", inspect.getdoc(function).split("Args:")[1])[0]
    documented = [
        line.split(":")[0].strip() for line in section.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert documented == list(inspect.signature(function).parameters)
    assert function.__name__ in magma_jax.__all__
