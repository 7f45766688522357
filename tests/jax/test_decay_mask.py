"""``weight_decay_mask``: some leaves decay and others do not, with the bits that each would have by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_jax import load_state, magma, save_state, scale_by_magma, scale_by_skip_update, skip_update, wrap_magma
from magma_numpy import namespace as xp

from magma_core import AdamW, Rule, init, read_state, update_all
from magma_core import magma as magma_rule

RATE, DECAY = 0.05, 0.25
SHAPES = {"w": (4, 3), "b": (3,), "plain": (5,)}
AXES: dict[str, Any] = {"w": (0,), "b": (), "plain": None}
MASK = {"w": True, "b": False, "plain": False}


def draw(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def by_the_core(rule: Rule, weight_decay: float) -> dict[str, Any]:
    """Parameters after three steps in which every leaf decays by this much."""
    options: Any = {"base": AdamW(weight_decay=weight_decay), "rule": rule, "xp": xp}
    params = draw(0)
    states = [init(x, block_axes=AXES[name], **options) for name, x in params.items()]
    for step in range(1, 4):
        given = list(params.values()), list(draw(step).values()), states
        more: Any = {"names": list(params), "step": step, "lr": RATE, "seed": 3, "block_axes": AXES}
        new, states, _ = update_all(*given, **more, **options)
        params = dict(zip(params, new, strict=True))
    return params


@pytest.mark.parametrize("way", ["step", "update"])
def test_each_leaf_has_the_bits_of_a_run_where_all_do_as_it_does(way: str) -> None:
    """With dense decay by ``step``; and with decay that is an array."""
    decay, weight_decay = ("dense", DECAY) if way == "step" else ("masked", jnp.float32(DECAY))
    options: Any = {"weight_decay": weight_decay, "decay": decay, "block_axes": lambda name, leaf: AXES[name]}
    optimizer = magma(RATE, weight_decay_mask=MASK, seed=3, **options)
    params, state = draw(0), optimizer.init(draw(0))

    @jax.jit
    def run(params: Any, grads: Any, state: Any) -> Any:
        if way == "step":
            return optimizer.step(params, grads, state)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(1, 4):
        params, state = run(params, draw(step), state)
    plain, decayed = (by_the_core(magma_rule(decay=options["decay"]), each) for each in (0.0, DECAY))
    for name, decays in MASK.items():
        assert_bits_equal(params[name], (decayed if decays else plain)[name])
        assert np.any(decayed[name] != plain[name]), "decay changes nothing here"


NESTED = {"head": {"w": 1.0, "b": 1.0}, "body": [1.0, None]}
FORMS: dict[str, tuple[Any, Any]] = {
    "tree": ({"w": 1.0, "b": 1.0}, {"w": True, "b": False}),
    "NumPy's bools": ({"w": 1.0, "b": 1.0}, {"w": np.bool_(True), "b": np.bool_(False)}),
    "prefix": (NESTED, {"head": False, "body": True}),
    "None where there is no leaf": (NESTED, {"head": {"w": False, "b": False}, "body": [True, None]}),
    "function": (NESTED, lambda params: jax.tree.map(lambda _: True, params) | {"head": False}),
    "hidden leaves": ({"w": optax.MaskedNode(), "b": 1.0, "c": 1.0}, {"w": True, "b": False, "c": True}),
    "the tree is a leaf": (1.0, lambda params: np.ndim(params) == 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    """As `optax.adamw` takes them: what moves without gradients decays."""
    tree, mask = FORMS[form]
    params = jax.tree.map(jnp.asarray, tree)
    optimizer = skip_update(1.0, "sgd", p=1.0, weight_decay=0.5, weight_decay_mask=mask)
    theirs = optax.add_decayed_weights(0.5, mask)
    grads = jax.tree.map(jnp.zeros_like, params)
    moved, _ = optimizer.step(params, grads, optimizer.init(params))
    expected, _ = theirs.update(grads, theirs.init(params), params)
    jax.tree.map(assert_bits_equal, moved, jax.tree.map(lambda x, u: x - u, params, expected))


def test_injected() -> None:
    """As a tree, or as a function that is named in ``static_args``; any other function would be a schedule."""
    params = {"w": jnp.ones((1, 1)), "b": jnp.ones(1)}

    def step(mask: Any, *static: str) -> Any:
        make = optax.inject_hyperparams(skip_update, static_args=static)
        optimizer = make(1.0, "sgd", p=1.0, weight_decay=0.5, weight_decay_mask=mask)
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        return jax.tree.map(lambda x: float(x.squeeze()), updates)

    matrices = lambda params: jax.tree.map(lambda x: x.ndim == 2, params)  # noqa: E731
    assert step({"w": True, "b": False}) == step(matrices, "weight_decay_mask") == {"w": -0.5, "b": 0.0}
    with pytest.raises(TypeError, match=r"weight_decay_mask must be a tree .*, got False: .*static_args"):
        step(matrices)


def test_directions() -> None:
    params = {"w": jnp.ones(()), "b": jnp.ones(())}
    optimizer = scale_by_skip_update("sgd", p=1.0, weight_decay=0.5, weight_decay_mask={"w": True, "b": False})
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert jax.tree.map(float, updates) == {"w": 0.5, "b": 0.0}


def test_leaves_without_a_gradient_at_a_step() -> None:
    """The mask is a tree like the parameters, also where a whole branch has no gradient."""
    params = {"a": {"x": jnp.ones(()), "y": jnp.ones(())}, "b": jnp.ones(())}
    optimizer = skip_update(1.0, "sgd", p=1.0, weight_decay=0.5, weight_decay_mask={"a": True, "b": False})
    state = optimizer.init(params)
    moved, _ = optimizer.step(params, {"a": {"x": jnp.zeros(()), "y": None}, "b": jnp.zeros(())}, state)
    assert jax.tree.map(float, moved) == {"a": {"x": 0.5, "y": 1.0}, "b": 1.0}


def test_in_groups() -> None:
    """`optax.partition` hides the leaves of other groups, from a mask that is a tree of all of them too."""
    params = {"w": jnp.ones(()), "b": jnp.ones(()), "head": jnp.ones(())}
    mask = {"w": True, "b": False, "head": True}
    own = skip_update(1.0, "sgd", p=1.0, weight_decay=0.5, weight_decay_mask=mask)
    optimizer = optax.partition({"own": own, "other": optax.sgd(1.0)}, {"w": "own", "b": "own", "head": "other"})
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert jax.tree.map(float, updates) == {"w": -0.5, "b": 0.0, "head": 0.0}


def test_parameters_are_needed_where_a_leaf_decays() -> None:
    grads = {"w": jnp.ones(()), "b": jnp.ones(())}
    optimizer = scale_by_magma("adamw", weight_decay_mask={"w": True, "b": False})
    with pytest.raises(ValueError, match="params must be given because of weight decay"):
        optimizer.update(grads, optimizer.init(grads))


def test_file_has_the_decay_of_each_leaf(tmp_path: Any) -> None:
    """So that in PyTorch and Keras, too, the same parameters decay."""
    params = draw(0)
    optimizer = magma(RATE, weight_decay=DECAY, weight_decay_mask=MASK)
    state = optimizer.init(params)
    save_state(optimizer, params, state, tmp_path / "state")
    bases = {name: saved.base for name, saved in read_state(tmp_path / "state").items()}
    assert bases == {name: AdamW(weight_decay=DECAY if decays else 0.0) for name, decays in MASK.items()}
    load_state(optimizer, params, tmp_path / "state")
    with pytest.raises(ValueError, match=r"'b' was saved with base weight_decay 0.0, the optimizer has 0.25"):
        load_state(magma(RATE, weight_decay=DECAY), params, tmp_path / "state")


def test_a_mask_that_selects_nothing_warns() -> None:
    optimizer = magma(RATE, weight_decay_mask=lambda params: jax.tree.map(lambda x: x.ndim > 2, params))
    with pytest.warns(UserWarning, match="weight_decay_mask selects no leaf"):
        optimizer.init(draw(0))


def test_wrapped_optimizers_have_their_own() -> None:
    params = {"w": jnp.ones(()), "b": jnp.ones(())}
    optimizer = wrap_magma(optax.adamw(1.0, weight_decay=0.5, mask={"w": True, "b": False}), p=1.0)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert updates["w"] < 0
    assert updates["b"] == 0
