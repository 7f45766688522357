"""`magma_keras.save_state` and `load_state`: the core's file, bit for bit, and resumed runs."""

import doctest
import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import magma_keras
import magma_keras.state_file
import numpy as np
import pytest
from keras_reference import check_same, host, weights
from magma_conformance.bits import assert_bits_equal
from magma_keras import Magma, MaskedOptimizer, Wrapped, load_state, save_state
from mutated_state import check_mutated_files
from paths import REPOSITORY
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

from magma_core import SGD, Adam, AdamW, RMSProp, damping, magma, read_state, write_state

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, of its own variables under NumPy 2

DOCUMENT = REPOSITORY / "docs" / "state.md"
AXES: dict[str, Any] = {f"^{name}$": layout.own_axes for name, layout in LAYOUTS.items()}


def tensor(x: np.ndarray, kind: str) -> Any:
    return keras.ops.cast(keras.ops.convert_to_tensor(x.astype(np.float32)), kind)  # exact: it came from this format


class Run:
    """An optimizer over all variables in their own layout."""

    def __init__(self, base: Any, rule: Any, kind: str = "float32", no_decay: Any = (), **options: Any) -> None:
        self.kind, self.done = kind, 0
        self.variables = [
            keras.Variable(tensor(own(name, x), kind), dtype=kind, name=name)
            for name, x in Core(base, rule, kind).params.items()
        ]
        self.optimizer = MaskedOptimizer(LR, rule, base, seed=SEED, block_axes=AXES, **options)
        self.optimizer.exclude_from_weight_decay(var_names=[f"^{name}$" for name in no_decay])
        self.optimizer.build(self.variables)

    def step(self, steps: int = 1) -> "Run":
        for _ in range(steps):
            self.done += 1
            grads = [tensor(own(name, gradient(name, self.done, self.kind)), self.kind) for name in LAYOUTS]
            self.optimizer.apply(grads, self.variables)
        return self

    def take_over(self, core: Core) -> "Run":
        """The variables, which are in no state file."""
        self.done = core.done
        for variable in self.variables:
            variable.assign(tensor(own(variable.name, core.params[variable.name]), self.kind))
        return self

    def save(self, path: Path) -> bytes:
        save_state(self.optimizer, path, axes=PERMUTATIONS)
        return path.read_bytes()

    def load(self, path: Path, **options: Any) -> "Run":
        load_state(self.optimizer, path, axes=PERMUTATIONS, **options)
        return self

    def check(self, core: Core, path: Path) -> None:
        """The same variables, and the same file."""
        for variable in self.variables:
            assert_bits_equal(host(variable), own(variable.name, core.params[variable.name]), variable.name)
        assert self.save(path / "own") == core.write(path / "core")


@every_case
def test_file_is_the_core_s_and_runs_go_on_from_it(tmp_path, base, rule):
    core, run = Core(base, rule).step(SAVED), Run(base, rule).step(SAVED)
    run.check(core, tmp_path)
    fresh = Run(base, rule).take_over(core).load(tmp_path / "core")
    fresh.check(core, tmp_path)
    fresh.step(STEPS - SAVED).check(core.step(STEPS - SAVED), tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_state_is_float32_whatever_the_variables_are(tmp_path, kind):
    core, run = Core(*CASES[5], kind).step(SAVED), Run(*CASES[5], kind).step(SAVED)
    run.check(core, tmp_path)
    run.step().take_over(core).load(tmp_path / "core").check(core, tmp_path)
    run.step(2).check(core.step(2), tmp_path)


def test_before_the_first_step(tmp_path):
    rule = magma(initial_score=0.25)
    run = Run(SGD(), rule)
    assert run.save(tmp_path / "own") == Core(SGD(), rule).write(tmp_path / "core")
    before = [host(x) for x in run.optimizer.variables]
    check_same(run.load(tmp_path / "core").optimizer.variables, before)


def test_from_torch_to_jax_to_keras(tmp_path):
    """Two steps each, in layouts of their own, are six steps of the core."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    magma_torch = pytest.importorskip("magma_torch", reason="torch is not installed")
    magma_jax = pytest.importorskip("magma_jax", reason="JAX is not installed")
    path, core = tmp_path / "state", Core(AdamW(), magma())
    params = {name: torch.nn.Parameter(torch.from_numpy(own(name, x))) for name, x in core.params.items()}
    groups = [
        {"params": [(name, p)], "masked": axes is not None, "block_axes": axes or ()}
        for name, p in params.items()
        for axes in [LAYOUTS[name].own_axes]
    ]
    theirs = magma_torch.Magma(groups, LR, seed=SEED, compile=False)
    for step in (1, 2):
        for name, param in params.items():
            param.grad = torch.from_numpy(own(name, gradient(name, step)))
        theirs.step()
    magma_torch.save_state(theirs, path, axes=PERMUTATIONS)
    tree = {name: p.detach().numpy().transpose(np.argsort(PERMUTATIONS[name])) for name, p in params.items()}
    transformation = magma_jax.magma(LR, seed=SEED, block_axes=lambda name, leaf: LAYOUTS[name].block_axes)
    state = magma_jax.load_state(transformation, tree, path)
    advance = jax.jit(transformation.step)
    for step in (3, 4):
        tree, state = advance(tree, {name: gradient(name, step) for name in tree}, state)
    magma_jax.save_state(transformation, tree, state, path)
    core.step(4)
    assert path.read_bytes() == core.write(tmp_path / "core")
    core.params = {name: np.asarray(tree[name]) for name in core.params}
    Run(AdamW(), magma()).take_over(core).load(path).step(2).check(core.step(2), tmp_path)
    again = Core(AdamW(), magma()).step(6)
    for name, x in again.params.items():
        assert_bits_equal(core.params[name], x, name)


def test_examples_of_the_document(tmp_path, monkeypatch):
    """From PyTorch to JAX to Keras, one after the other."""
    for name in ("torch", "magma_torch", "magma_jax"):
        pytest.importorskip(name, reason="the examples go through all frameworks")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text().partition("## 10.")[2], re.DOTALL)
    assert [re.search(r"import magma_(\w+)|from magma_(\w+)", block)[2] for block in blocks] == [
        "torch",
        "jax",
        "keras",
    ]
    space: dict[str, Any] = {}
    blocks[0] = blocks[0].replace("seed=7)", "seed=7, compile=False)")
    for block, steps in zip(blocks, (3, 6, 6), strict=True):
        exec(block, space)
        assert {one.step for one in read_state("state.safetensors").values()} == {steps}
    assert int(host(space["optimizer"].iterations)) == 6
    save_state(space["optimizer"], tmp_path / "keras", axes=space["LAYOUT"])
    assert (tmp_path / "keras").read_bytes() == (tmp_path / "state.safetensors").read_bytes()


# What Keras has of its own


def test_exclusions_from_weight_decay_are_weight_decay_0(tmp_path):
    base, rule = AdamW(weight_decay=0.5), magma()
    run = Run(base, rule, no_decay=["rows", "bias"]).step(2)
    run.save(tmp_path / "own")
    expected = Core(base, rule).step(2).saved()
    for name in ("rows", "bias"):
        expected[name] = replace(expected[name], base=replace(base, weight_decay=0.0))
    write_state(tmp_path / "core", expected)
    assert (tmp_path / "own").read_bytes() == (tmp_path / "core").read_bytes()
    again = Run(base, rule, no_decay=["rows", "bias"]).load(tmp_path / "core")
    check_same([x for x in again.optimizer.variables if x.name != "learning_rate"], [
        x for x in run.optimizer.variables if x.name != "learning_rate"])  # fmt: skip
    with pytest.raises(ValueError, match=r"base weight_decay 0.0, the optimizer has 0.5"):
        Run(base, rule).load(tmp_path / "core")
    Run(base, rule).load(tmp_path / "core", strict=False)


def test_exclusions_under_a_base_without_decay(tmp_path):
    run = Run(Adam(), magma(), no_decay=["rows"]).step(1)
    run.save(tmp_path / "own")
    assert read_state(tmp_path / "own")["rows"].base == Adam()


def test_accumulated_gradients(tmp_path):
    """Steps are counted, not calls; what is half done cannot be saved, and is dropped by what is loaded."""
    run, w = Magma(0.1, "sgd", gradient_accumulation_steps=2), keras.Variable([1.0, 2.0], name="w")
    for _ in range(4):
        run.apply([keras.ops.ones(2)], [w])
    save_state(run, tmp_path / "state")
    assert read_state(tmp_path / "state")["w"].step == 2
    before, value = weights(run), host(w)
    run.apply([keras.ops.ones(2)], [w])
    with pytest.raises(ValueError, match="1 of the 2 gradients of a step have been accumulated"):
        save_state(run, tmp_path / "state")
    load_state(run, tmp_path / "state")
    check_same(weights(run), before)
    assert_bits_equal(host(w), value)


def test_names_that_key_the_masks(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")], name="model")
    optimizer = Magma(0.1, mask_names={"model/dense/kernel": "dense.weight"})
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), batch_size=4, epochs=2, verbose=0)
    save_state(optimizer, tmp_path / "state", names={"model/dense/bias": "dense.bias"}, axes={"dense.weight": (1, 0)})
    found = read_state(tmp_path / "state")
    assert {name: (one.shape, one.step) for name, one in found.items()} == {
        "dense.weight": ((3, 4), 4),
        "dense.bias": ((3,), 4),
    }
    kernel = optimizer.variables[[x.name for x in optimizer.variables].index("model_dense_kernel_momentum")]
    assert_bits_equal(found["dense.weight"].state.mu, host(kernel).T)
    before = weights(optimizer)
    model.fit(np.ones((8, 4)), np.zeros((8, 3)), verbose=0)
    load_state(optimizer, tmp_path / "state", names=lambda name: name.replace("model/", "").replace("/", "."),
               axes=lambda name, shape: (1, 0) if len(shape) == 2 else None)  # fmt: skip
    check_same(weights(optimizer), before)


def test_variables_that_gradients_overwrite_have_no_state(tmp_path):
    scale, w = keras.Variable([1.0], name="scale"), keras.Variable([1.0, 2.0], name="w")
    scale.overwrite_with_gradient = True
    optimizer = Magma(0.1)
    optimizer.build([scale, w])
    save_state(optimizer, tmp_path / "state")
    assert list(read_state(tmp_path / "state")) == ["w"]
    load_state(optimizer, tmp_path / "state")


# Errors


def changed(path: Path, name: str, **changes: Any) -> None:
    found = read_state(path)
    write_state(path, found | {name: replace(found[name], **changes)})


ERRORS: dict[str, tuple[Any, str]] = {
    "seed": (lambda path: changed(path, "rows", seed=3), "'rows' was saved with seed 3, the optimizer has"),
    "base": (lambda path: changed(path, "rows", base=AdamW(eps=1e-6)), "base eps 1e-06, the optimizer has 1e-08"),
    "rule": (lambda path: changed(path, "rows", rule=magma(p=0.25)), "rule p 0.25, the optimizer has 0.5"),
    "step": (lambda path: changed(path, "rows", step=3), "step of 'rows' is 3, that of 'whole' 2"),
    "power": (
        lambda path: changed(path, "rows", state=read_state(path)["rows"].state._replace(nu_power=np.float32(0.5))),
        "nu_power of 'rows' is 0.5, that of 'whole' 0.998",
    ),
    "a name less": (
        lambda path: write_state(path, {name: x for name, x in read_state(path).items() if name != "bias"}),
        "'bias' is no parameter of the file",
    ),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cut off or added to"),
}


@pytest.fixture(scope="module")
def stepped() -> Run:
    """After two steps; not to be stepped."""
    return Run(AdamW(), magma()).step(2)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_leave_optimizer_and_file_alone(tmp_path, stepped, name):
    change, match = ERRORS[name]
    stepped.save(tmp_path / "state")
    change(tmp_path / "state")
    before, file = weights(stepped.optimizer), (tmp_path / "state").read_bytes()
    with pytest.raises(ValueError, match=match):
        stepped.load(tmp_path / "state")
    check_same(weights(stepped.optimizer), before)
    assert (tmp_path / "state").read_bytes() == file


def test_more_steps_than_are_counted(tmp_path, stepped):
    """As far as the backend's integers go, and not beyond."""
    stepped.save(tmp_path / "state")
    most = int(np.iinfo(host(stepped.optimizer.iterations).dtype).max)
    if most < 2**32:
        found = read_state(tmp_path / "state")
        write_state(tmp_path / "more", {name: replace(one, step=most + 1) for name, one in found.items()})
        with pytest.raises(ValueError, match=f"this optimizer counts to {most}"):
            stepped.load(tmp_path / "more")
    last = min(most, 2**32 - 1)
    write_state(tmp_path / "last", {name: replace(x, step=last) for name, x in read_state(tmp_path / "state").items()})
    assert int(host(Run(AdamW(), magma()).load(tmp_path / "last").optimizer.iterations)) == last


def test_layouts_must_be_explained(tmp_path, stepped):
    stepped.save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"'rows' has shape \(4, 3\), of which .*'rows', \(3, 4\): say with axes="):
        load_state(stepped.optimizer, tmp_path / "state")
    with pytest.raises(FileNotFoundError, match="missing"):
        stepped.load(tmp_path / "missing")


def test_without_strict_the_optimizer_s_options_stay(tmp_path, stepped):
    stepped.save(tmp_path / "state")
    other = Run(Adam(), magma(p=0.25))
    with pytest.raises(ValueError, match="load with strict=False"):
        other.load(tmp_path / "state")
    other.load(tmp_path / "state", strict=False).save(tmp_path / "again")
    found = read_state(tmp_path / "again")["rows"]
    assert (found.base, found.rule, found.step) == (Adam(), magma(p=0.25), 2)
    with pytest.raises(ValueError, match="the state of 'rows' has"):
        Run(RMSProp(), magma()).load(tmp_path / "state", strict=False)


@pytest.mark.parametrize(
    "optimizer",
    [
        Wrapped(keras.optimizers.Adam(), damping()),
        keras.optimizers.Adam(),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    ],
    ids=["wrapped", "another", "loss scale"],
)
def test_the_state_of_other_optimizers_is_their_own(tmp_path, optimizer):
    optimizer.build([keras.Variable([1.0], name="w", dtype="float32")])
    for use in (save_state, load_state):
        with pytest.raises(TypeError, match="the state of another optimizer, wrapped or not, is its own"):
            use(optimizer, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_optimizers_inside_a_loss_scale(tmp_path):
    """Keras puts them there if the policy is "mixed_float16"."""
    own, w = Magma(), keras.Variable([1.0, 2.0], name="w", dtype="float32")
    scaled = keras.optimizers.LossScaleOptimizer(own)
    scaled.build([w])
    own.apply([keras.ops.ones(2)], [w])
    save_state(scaled, tmp_path / "state")
    before = weights(own)
    own.apply([keras.ops.ones(2)], [w])
    load_state(scaled, tmp_path / "state")
    check_same(weights(own), before)


def test_an_optimizer_must_be_built(tmp_path):
    for use in (save_state, load_state):
        with pytest.raises(ValueError, match="must be built before"):
            use(Magma(), tmp_path / "state")


def test_mutated_files_are_loaded_or_refused(tmp_path):
    file = tmp_path / "state"
    valid, run = Core(AdamW(), magma()).step(3).write(file), Run(AdamW(), magma())
    check_mutated_files(
        file, valid, lambda: run.load(file), lambda: [host(x).tobytes() for x in run.optimizer.variables], 200
    )


def test_a_file_that_claims_gigabytes_is_not_read(monkeypatch, tmp_path):
    run = Run(AdamW(), magma())
    no_tensor_may_be_read(monkeypatch)
    with pytest.raises(ValueError, match="is no parameter of the file, which has 'w'"):
        run.load(write_claim(tmp_path / "state"))
    optimizer = Magma(LR)
    optimizer.build([keras.Variable(np.ones((2, 3)), name="w", dtype="float32")])
    with pytest.raises(ValueError, match=r"'w' has shape \(32768, 32768\)"):
        load_state(optimizer, tmp_path / "state")


# What users see


def test_docstring_examples_run():
    outcome = doctest.testmod(magma_keras.state_file, verbose=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("function", [save_state, load_state])
def test_arguments_are_documented_in_order(function):
    section = inspect.getdoc(function).split("Args:")[1].split("Raises:")[0]
    documented = [
        line.split(":")[0].strip() for line in section.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert documented == list(inspect.signature(function).parameters)
    assert function.__name__ in magma_keras.__all__
