"""The ``block_axes`` that `attention_and_mlp` makes of a tree."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from architectures import ARCHITECTURES, has_none, named
from magma_jax import attention_and_mlp, magma
from magma_jax.names import leaf_names


def tree(shapes):
    """A nested dict by the parts of names."""
    root = {}
    for name, shape in shapes.items():
        *parts, last = name.split(".")
        node = root
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return root


def selected(params, **options):
    """The block axes of all leaves by name."""
    block_axes = attention_and_mlp(params, quiet=True, **options)
    return {name: block_axes(name, None) for name in leaf_names(params, options.get("name"))}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures(architecture):
    rows = named(architecture)
    params = tree({row.name: row.shape for row in rows})
    if has_none(rows):
        with pytest.raises(ValueError, match="no attention or MLP matrix was recognised"):
            selected(params)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = selected(params)
    assert found == {row.name: row.axes for row in rows}
    assert len(warned) == any(row.unclear for row in rows)
    assert all(warning.filename == __file__ for warning in warned)


def test_modules_of_flax():
    linen = pytest.importorskip("flax.linen", reason="flax is not installed")

    class EncoderBlock(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            y = linen.LayerNorm()(x)
            x = x + linen.MultiHeadDotProductAttention(2)(y, y)
            y = linen.Dense(16)(linen.LayerNorm()(x))
            return x + linen.Dense(8)(y), None

    class Model(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            x = linen.Embed(16, 8)(tokens)
            x, _ = EncoderBlock()(x, None)
            stack = linen.scan(EncoderBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = stack(name="layers")(x, None)
            return linen.Dense(16, name="head")(x)

    shapes = jax.eval_shape(Model().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.int32))
    found = selected(shapes)
    masked = {name.removeprefix("params."): axes for name, axes in found.items() if axes is not None}
    attention = [f"MultiHeadDotProductAttention_0.{name}.kernel" for name in ("key", "out", "query", "value")]
    own = ["Dense_0.kernel", "Dense_1.kernel", *attention]
    assert masked == {f"EncoderBlock_0.{name}": () for name in own} | {f"layers.{name}": (0,) for name in own}


def test_paths_of_haiku():
    params = {
        "gpt/~/layer_0/attn/query": {"w": jnp.ones((8, 8)), "b": jnp.ones(8)},
        "gpt/~/head": {"w": jnp.ones((8, 9))},
    }
    assert list(selected(params).values()) == [None, None, ()]


def test_the_optimizer_takes_it_under_the_same_names():
    params = {"layers": [{"attention": {"qkv": jnp.ones((3, 9))}, "norm": jnp.ones(3)}], "step": jnp.array(0)}

    def rename(path):
        return f"net.{path}"

    block_axes = attention_and_mlp(params, name=rename, quiet=True)
    for optimizer in (
        magma(0.1, block_axes=block_axes, name=rename),
        optax.masked(magma(0.1, block_axes=block_axes, name=rename), {"layers": True, "step": False}),
    ):
        optimizer.init(params)
    state = magma(0.1, block_axes=block_axes, name=rename).init(params)
    assert [score.shape for score in jax.tree.leaves(state.score)] == [()]
    with pytest.raises(ValueError, match=r"given other parameters, such as 'net\..*', without 'layers\.0\..*name="):
        magma(0.1, block_axes=block_axes).init(params)


def test_it_prints_what_it_finds(capsys):
    attention_and_mlp(tree({"layers.0.mlp.up": (4, 4), "layers.1.mlp.up": (4, 4), "head": (4, 4)}))
    assert capsys.readouterr().out.splitlines() == [
        "matrices, one block each: 2 tensors, 32 elements",
        "  layers.*.mlp.up",
        "not masked: 1 tensors, 16 elements",
        "  head",
    ]
    selected(tree({"layers.0.mlp.up": (4, 4)}))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{}, {"steps": 3}, len, {"step": jnp.arange(3)}])
def test_what_has_no_parameters(wrong):
    with pytest.raises(TypeError, match="params must be a tree of arrays of floats"):
        attention_and_mlp(wrong)
