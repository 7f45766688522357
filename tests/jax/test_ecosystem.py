"""The transformations inside Equinox and Flax, and their state in checkpoints: bits, names, resumed runs.

Each library has the same network of 26 parameters; NumPy follows with the gradients that it found.
"""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import magma_jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from magma_conformance.bits import assert_bits_equal
from magma_jax import MagmaState, MagmaTransformation
from magma_jax.names import leaf_names
from magma_numpy import namespace as xp

import magma_core
from magma_core import SGD, AdamW, Base, Rule

STEPS, SAVED, RATE, SEED = 6, 3, 0.05, 11
RNG = np.random.default_rng(4)
DATA = [(np.float32(RNG.normal(size=(5, 3))), np.float32(RNG.normal(size=(5, 2)))) for _ in range(STEPS)]
# by the names and in the layout of torch
WEIGHTS = {
    name: np.float32(RNG.normal(size=shape))
    for name, shape in {"up.weight": (4, 3), "up.bias": (4,), "down.weight": (2, 4), "down.bias": (2,)}.items()
}
OTHERS = {name: x + 1 for name, x in WEIGHTS.items()}

KINDS: dict[str, tuple[Callable[..., MagmaTransformation], Base, Rule]] = {
    "magma-adamw": (magma_jax.magma, AdamW(weight_decay=0.1), magma_core.magma()),
    "skip_update-sgd": (magma_jax.skip_update, SGD(), magma_core.skip_update()),  # most of the state is None
}


def torch_name(path: str) -> str:
    """nnx has its arrays under "value" where it shows its variables, and Flax calls a transposed weight a kernel."""
    return path.removesuffix(".value").replace("kernel", "weight")


def block_axes(name: str, leaf: Any, units: int) -> Any:
    """Units index the blocks of weights, a bias is one block, and the last is not masked."""
    return {"down.bias": None, "up.bias": ()}.get(name, (units,))


@functools.cache
def optimizer(kind: str, units: int, process: int = 0) -> MagmaTransformation:
    """One for each ``process``, so that a run is resumed by another than began it."""
    make, base, _ = KINDS[kind]
    axes = functools.partial(block_axes, units=units)
    return make(RATE, base, seed=SEED, block_axes=axes, name=torch_name)


# Training in each library: all have the same three members and the same verbs


class Network(eqx.Module):
    """With leaves that are not parameters: an integer array, None, and a function."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear
    calls: jax.Array
    nothing: None
    activation: Callable[[Any], Any]

    def __call__(self, x: Any) -> Any:
        return self.down(self.activation(self.up(x)))


class Equinox:
    units = 0  # the axis of a weight that they are

    def __init__(self, transformation: MagmaTransformation, weights: dict[str, np.ndarray]) -> None:
        layers = [eqx.nn.Linear(*sizes, key=jax.random.key(0)) for sizes in ((3, 4), (4, 2))]
        network = Network(*layers, jnp.int32(7), None, jnp.tanh)
        self.transformation = transformation
        self.model = eqx.tree_at(
            lambda n: (n.up.weight, n.up.bias, n.down.weight, n.down.bias),
            network,
            tuple(jnp.asarray(weights[name]) for name in WEIGHTS),
        )
        self.state = transformation.init(self.params)

    @property
    def params(self) -> Any:
        return eqx.filter(self.model, eqx.is_array)

    def step(self, *data: Any) -> Any:
        self.model, self.state, grads = self._step(self.model, self.state, self.transformation, *data)
        assert self.model.calls == 7
        assert grads.calls is None
        return grads

    @staticmethod
    @eqx.filter_jit
    def _step(model: Any, state: MagmaState, transformation: MagmaTransformation, inputs: Any, targets: Any) -> Any:
        grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(inputs) - targets) ** 2))(model)
        updates, state = transformation.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, grads

    @property
    def tree(self) -> Any:
        return self.params, self.state

    def load(self, tree: Any) -> None:
        params, self.state = tree
        self.model = eqx.combine(params, self.model)


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(2, name="down")(jnp.tanh(linen.Dense(4, name="up")(x)))


NETWORK = LinenNetwork()


class Linen:
    units = 1

    def __init__(self, transformation: MagmaTransformation, weights: dict[str, np.ndarray]) -> None:
        params: dict[str, Any] = {"up": {}, "down": {}}
        for name, x in weights.items():
            layer, _, part = name.replace("weight", "kernel").partition(".")
            params[layer][part] = jnp.asarray(x.T)
        self.transformation = transformation
        self.tree = TrainState.create(apply_fn=NETWORK.apply, params=params, tx=transformation)

    @property
    def params(self) -> Any:
        return self.tree.params

    @property
    def state(self) -> MagmaState:
        return self.tree.opt_state

    def step(self, *data: Any) -> Any:
        self.tree, grads = self._step(self.tree, *data)
        return grads

    @staticmethod
    @jax.jit
    def _step(train_state: TrainState, inputs: Any, targets: Any) -> Any:
        grads = jax.grad(lambda p: jnp.mean((NETWORK.apply({"params": p}, inputs) - targets) ** 2))(train_state.params)
        return train_state.apply_gradients(grads=grads), grads

    def load(self, tree: Any) -> None:
        self.tree = tree


class NnxNetwork(nnx.Module):
    """With a variable that is not a parameter."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.up, self.down = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        self.calls = nnx.Variable(jnp.int32(0))
        for name, x in weights.items():
            layer, _, part = name.replace("weight", "kernel").partition(".")
            getattr(getattr(self, layer), part)[...] = jnp.asarray(x.T)

    def __call__(self, x: Any) -> Any:
        self.calls[...] += 1
        return self.down(jnp.tanh(self.up(x)))


class Nnx:
    units = 1

    def __init__(self, transformation: MagmaTransformation, weights: dict[str, np.ndarray]) -> None:
        self.transformation = transformation
        self.model = NnxNetwork(weights)
        self.optimizer = nnx.Optimizer(self.model, transformation, wrt=nnx.Param)

    @property
    def params(self) -> Any:
        return nnx.as_pure(nnx.state(self.model, nnx.Param))

    @property
    def state(self) -> MagmaState:
        return nnx.as_pure(self.optimizer.opt_state)

    def step(self, *data: Any) -> Any:
        return self._step(self.model, self.optimizer, *data)

    @staticmethod
    @nnx.jit
    def _step(model: Any, optimizer: Any, inputs: Any, targets: Any) -> Any:
        grads = nnx.grad(lambda m: jnp.mean((m(inputs) - targets) ** 2))(model)
        optimizer.update(model, grads)
        return nnx.as_pure(grads)

    @property
    def tree(self) -> Any:
        return nnx.state(self.model), nnx.state(self.optimizer)

    def load(self, tree: Any) -> None:
        for part, loaded in zip((self.model, self.optimizer), tree, strict=True):
            nnx.update(part, loaded)


LIBRARIES: dict[str, Any] = {"equinox": Equinox, "linen": Linen, "nnx": Nnx}


def train(library: str, kind: str, weights: dict[str, np.ndarray] = WEIGHTS, process: int = 0) -> Any:
    row = LIBRARIES[library]
    return row(optimizer(kind, row.units, process), weights)


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """Floats only."""
    pairs = zip(leaf_names(tree, torch_name), jax.tree.leaves(tree, is_leaf=lambda x: x is None), strict=True)
    return {name: np.asarray(x) for name, x in pairs if name in WEIGHTS}


# The bits of NumPy


def assert_state(state: MagmaState, states: dict[str, magma_core.State], count: int) -> None:
    assert_bits_equal(state.count, np.int32(count), "count")
    for field in ("mu", "nu", "score", "mu_power", "nu_power"):
        tree = getattr(state, field)
        for name, own in states.items():
            expected, power = getattr(own, field), field.endswith("power")
            if expected is not None:
                assert_bits_equal(tree if power else by_name(tree)[name], expected, f"{field} of {name}")
            else:
                assert tree is None or by_name(tree)[name].dtype == object, "not None"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_training(library: str, kind: str) -> None:
    """Parameters and state after each step are those of `magma_core` under the names of torch."""
    training, (_, base, rule) = train(library, kind), KINDS[kind]
    params = WEIGHTS if training.units == 0 else {name: x.T for name, x in WEIGHTS.items()}
    axes = {name: block_axes(name, None, training.units) for name in params}
    common: dict[str, Any] = {"base": base, "rule": rule, "xp": xp}
    states = {name: magma_core.init(x, block_axes=axes[name], **common) for name, x in params.items()}
    for step, data in enumerate(DATA, 1):
        grads = training.step(*data)
        assert set(by_name(grads)) == set(params)
        new, moved, _ = magma_core.update_all(
            *([tree[name] for name in params] for tree in (params, by_name(grads), states)),
            names=list(params),
            step=step,
            lr=RATE,
            seed=SEED,
            block_axes=axes,
            **common,
        )
        params, states = (dict(zip(params, each, strict=True)) for each in (new, moved))
        for name, actual in by_name(training.params).items():
            assert_bits_equal(actual, params[name], f"step {step}, {name}")
        assert_state(training.state, states, step)


# Names


DEFAULT_NAMES = {
    "equinox": {"up.weight", "up.bias", "down.weight", "down.bias"},
    "linen": {"up.kernel", "up.bias", "down.kernel", "down.bias"},
    "nnx": {"up.kernel", "up.bias", "down.kernel", "down.bias"},
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_default_names(library: str) -> None:
    """The same when the state is made and when it is used, also where the library passes trees of other kinds."""
    seen = set[str]()

    def record(name: str, leaf: Any) -> None:
        seen.add(name)

    training = LIBRARIES[library](magma_jax.skip_update(RATE, "sgd", block_axes=record), WEIGHTS)
    at_init = set(seen)
    seen.clear()
    training.step(*DATA[0])
    assert seen == DEFAULT_NAMES[library]
    assert at_init == seen


@pytest.mark.parametrize("library", LIBRARIES)
def test_names_key_the_masks(library: str) -> None:
    """Under the names of torch, units are kept when they are in torch, whatever the layout of the weights."""
    training, (_, base, rule) = train(library, "magma-adamw"), KINDS["magma-adamw"]
    grads = training.step(*DATA[0])
    look = jax.jit(lambda state: training.transformation.alignment(grads, state, training.params))
    coins = []
    for step in range(1, 9):
        seen = look(training.state._replace(count=jnp.int32(step - 1)))
        assert set(seen) == set(WEIGHTS) - {"down.bias"}
        for name, one in seen.items():
            common: dict[str, Any] = {"base": base, "rule": rule, "block_axes": block_axes(name, None, 0), "xp": xp}
            x, state = WEIGHTS[name], magma_core.init(WEIGHTS[name], **common)
            _, _, report = magma_core.update(x, x, state, name=name, step=step, lr=RATE, seed=SEED, **common)
            assert_bits_equal(one.keep, report.keep, f"step {step}, {name}")
            coins += [*np.ravel(report.keep)]
    assert 0.3 < np.mean(coins) < 0.7


# Checkpoints


def with_equinox(tree: Any, template: Any, folder: Path) -> Any:
    eqx.tree_serialise_leaves(folder / "state.eqx", tree)
    return eqx.tree_deserialise_leaves(folder / "state.eqx", template)


def with_orbax(tree: Any, template: Any, folder: Path) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", tree)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "state", template)


def with_orbax_manager(tree: Any, template: Any, folder: Path) -> Any:
    with ocp.CheckpointManager(folder) as manager:
        manager.save(SAVED, args=ocp.args.StandardSave(tree))
    with ocp.CheckpointManager(folder) as manager:
        assert manager.latest_step() == SAVED
        return manager.restore(SAVED, args=ocp.args.StandardRestore(template))


def with_msgpack(tree: Any, template: Any, folder: Path) -> Any:
    (folder / "state.msgpack").write_bytes(serialization.to_bytes(tree))
    return serialization.from_bytes(template, (folder / "state.msgpack").read_bytes())


def with_state_dict(tree: Any, template: Any, folder: Path) -> Any:
    return serialization.from_state_dict(template, serialization.to_state_dict(tree))


def with_pickle(tree: Any, template: Any, folder: Path) -> Any:
    """Leaves and structure; functions of the model stay behind."""
    (folder / "state.pickle").write_bytes(pickle.dumps(jax.tree.leaves(tree)))
    return jax.tree.unflatten(jax.tree.structure(template), pickle.loads((folder / "state.pickle").read_bytes()))


SAVES = [
    ("equinox", with_equinox),
    ("equinox", with_pickle),
    ("linen", with_orbax),
    ("linen", with_orbax_manager),
    ("linen", with_msgpack),
    ("linen", with_state_dict),
    ("linen", with_pickle),
    ("linen", with_equinox),
    ("nnx", with_orbax),
    ("nnx", with_orbax_manager),
]


@functools.cache
def uninterrupted(library: str, kind: str) -> list[np.ndarray]:
    training = train(library, kind)
    for data in DATA:
        training.step(*data)
    return [np.asarray(x) for x in jax.tree.leaves((training.params, training.state))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("library", "save"), SAVES)
def test_resumed_training(library: str, save: Any, kind: str, tmp_path: Path) -> None:
    """Saved, restored into shapes only, and put into training that began with other weights."""
    training = train(library, kind)
    for data in DATA[:SAVED]:
        training.step(*data)
    template = jax.eval_shape(lambda: train(library, kind, OTHERS, process=1).tree)
    restored = save(training.tree, template, tmp_path)
    resumed = train(library, kind, OTHERS, process=1)
    resumed.load(restored)
    for data in DATA[SAVED:]:
        resumed.step(*data)
    leaves = jax.tree.leaves((resumed.params, resumed.state))
    for actual, expected in zip(leaves, uninterrupted(library, kind), strict=True):
        assert_bits_equal(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_state(kind: str) -> None:
    """With its type and its structure."""
    state = train("linen", kind).state
    restored = pickle.loads(pickle.dumps(state))
    assert type(restored) is MagmaState
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for actual, expected in zip(*map(jax.tree.leaves, (restored, state)), strict=True):
        assert_bits_equal(actual, expected)


def test_restored_numpy_leaves_without_jit() -> None:
    """Flax gives back NumPy's arrays, which nothing makes JAX's own before a step that is not compiled."""
    transformation, params = magma_jax.magma(RATE), {"w": jnp.array([1.0, -2.0, 3.0])}
    params, state = transformation.step(params, params, transformation.init(params))
    expected = transformation.step(params, params, state)
    restored = serialization.from_bytes((params, state), serialization.to_bytes((params, state)))
    assert {type(x) for x in jax.tree.leaves(restored)} == {np.ndarray}
    params, state = restored
    for x, y in zip(*map(jax.tree.leaves, (transformation.step(params, params, state), expected)), strict=True):
        assert_bits_equal(x, y)
