"""Which tensors are attention and MLP matrices, by names and shapes."""

import pytest
from architectures import ARCHITECTURES, named

from magma_core.selection import Choice, Tensor, select


def choices(shapes: dict[str, tuple[int, ...]]) -> dict[str, Choice]:
    tensors = [Tensor(tuple(name.split(".")), shape) for name, shape in shapes.items()]
    return dict(zip(shapes, select(tensors), strict=True))


def axes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
    return {name: choice.axes for name, choice in choices(shapes).items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_by_their_names(architecture):
    rows = named(architecture)
    found = choices({row.name: row.shape for row in rows})
    assert {name: tuple(choice) for name, choice in found.items()} == {
        row.name: (row.axes, row.unclear) for row in rows
    }


LAYER = {
    "attention.query.kernel": (8, 2, 4),
    "attention.query_norm.scale": (4,),
    "attention.out.kernel": (2, 4, 8),
    "mlp.up.kernel": (8, 16),
    "mlp.experts.up": (3, 8, 16),
    "norm.scale": (8,),
}


def layers(extent: int, axis: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"decoder.layers.{name}": (*shape[:axis], extent, *shape[axis:]) for name, shape in LAYER.items()}
    return {"embedding": (256, 8), "decoder.norm.scale": (8,), **shapes}


def test_stacked_layers_are_told_by_the_shapes_of_their_norms():
    assert axes({f"decoder.layers.0.{name}": shape for name, shape in LAYER.items()}) == {
        "decoder.layers.0.attention.query.kernel": (),
        "decoder.layers.0.attention.query_norm.scale": None,
        "decoder.layers.0.attention.out.kernel": (),
        "decoder.layers.0.mlp.up.kernel": (),
        "decoder.layers.0.mlp.experts.up": (0,),
        "decoder.layers.0.norm.scale": None,
    }
    assert list(axes(layers(5, 0)).values()) == [None, None, (0,), None, (0,), (0,), (0, 1), None]


def test_layers_may_be_stacked_along_the_second_axis():
    assert list(axes(layers(5, 1)).values()) == [None, None, (1,), None, (1,), (1,), (1, 0), None]


def test_norms_of_heads_are_no_stack():
    """In Cohere's attention a norm has the shape (heads, width of a head)."""
    found = axes({"layers.0.attn.q_norm.weight": (2, 4), "layers.0.attn.q_proj.weight": (8, 8)})
    assert found == {"layers.0.attn.q_norm.weight": None, "layers.0.attn.q_proj.weight": ()}


def test_a_layer_without_modules_is_told_by_its_queries():
    shapes = {"norm": (4, 8), "qkv": (4, 8, 24), "out": (4, 8, 8), "up": (4, 8, 32), "down": (4, 32, 8)}
    found = axes({"embedding": (256, 8), **{f"layers.{name}": each for name, each in shapes.items()}, "head": (8, 256)})
    assert list(found.values()) == [None, None, (0,), (0,), (0,), (0,), None]


def test_a_module_with_queries_is_attention():
    found = axes({"layers.0.mixer.q_proj.weight": (8, 8), "layers.0.mixer.o.weight": (8, 8)})
    assert list(found.values()) == [(), ()]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attn.pos_table", (1, 6, 8)),
        ("attn.bank", (1, 6, 8)),
        ("attn.time_mix_key", (1, 1, 8)),
        ("attn.qkv.parametrizations.weight.original0", (24, 1)),
        ("attn.relative_position_bias_table", (9, 2)),
        ("attn.q_norm.weight", (2, 4)),
        ("attn.conv.weight", (8, 8, 3, 3)),
        ("attn.dwconv.weight", (8, 1, 3)),
        ("mlp.router.weight", (4, 8)),
        ("mlp.shared_expert_gate.weight", (1, 8)),
        ("mlp.experts.gate_up_proj_bias", (4, 16)),
        ("norm1.linear.weight", (48, 8)),
        ("adaLN_modulation.1.weight", (48, 8)),
    ],
)
def test_no_matrices(name, shape):
    found = axes({"blocks.0.attn.qkv.weight": (24, 8), f"blocks.0.{name}": shape})
    assert list(found.values()) == [(), None]


@pytest.mark.parametrize(
    "name",
    [
        "attn.qkv.parametrizations.weight.original1",
        "attn.qkv.lora_A.default.weight",
        "fc1.lora_B.default.weight",
        "fc1.parametrizations.weight.original1",
        "ff.net.0.proj.weight",
        "attn2.to_out.0.weight",
        "DenseReluDense.wi.weight",
        "intermediate.dense.weight",
        "output.dense.weight",
        "MlpBlock_0.Dense_1.kernel",
        "MultiHeadDotProductAttention_0.query.kernel",
    ],
)
def test_matrices(name):
    found = axes({"blocks.0.attn.qkv.weight": (24, 8), f"blocks.0.{name}": (16, 8)})
    assert list(found.values()) == [(), ()]


def test_a_gate_is_a_router_beside_experts_only():
    shapes = {"mlp.gate": (8, 16), "mlp.up": (8, 16), "moe.gate": (8, 3), "moe.up": (3, 8, 16)}
    assert list(axes({f"layers.0.{name}": shape for name, shape in shapes.items()}).values()) == [(), (), None, (0,)]


def test_the_gate_of_stacked_layers_is_no_router():
    shapes = {
        "mlp.gate": (3, 8, 16),
        "mlp.up": (3, 8, 16),
        "norm": (3, 8),
        "moe.gate": (3, 8, 4),
        "moe.up": (3, 4, 8, 16),
    }
    found = axes({f"layers.{name}": shape for name, shape in shapes.items()})
    assert list(found.values()) == [(0,), (0,), None, None, (0, 1)]


def test_the_gate_of_attention_is_no_router():
    assert axes({"layers.0.attn.gate": (8, 8), "layers.0.attn.q": (8, 2, 4)}) == dict.fromkeys(
        ["layers.0.attn.gate", "layers.0.attn.q"], ()
    )


def test_an_mlp_outside_of_layers_counts_if_there_are_none():
    assert axes({"mlp.fc1.weight": (8, 8)}) == {"mlp.fc1.weight": ()}
    found = axes(
        {"layers.0.attn.qkv.weight": (24, 8), "merger.mlp.0.weight": (8, 8), "t_embedder.mlp.0.weight": (8, 8)}
    )
    assert list(found.values()) == [(), None, None]


def test_classes_count_before_names():
    """A GPT whose modules have names of one letter."""
    classes = ("GPT", "ModuleList", "Block", "CausalSelfAttention", "Linear")
    other = ("GPT", "ModuleList", "Block", "SwiGLU", "Linear")
    tensors = [
        Tensor(("h", "0", "a", "x", "weight"), (8, 8), classes),
        Tensor(("h", "0", "m", "y", "weight"), (8, 8), other),
        Tensor(("h", "0", "attention_bank", "weight"), (8, 8), (*classes[:3], "Embedding")),
        Tensor(("attention_model", "weight"), (8, 8), ("GPT", "AttentionModel")),
    ]
    assert [choice.axes for choice in select(tensors)] == [(), (), None, None]


def test_what_no_rule_decides_is_unclear_in_masked_layers_only():
    found = choices(
        {
            "layers.0.mamba.in_proj.weight": (8, 8),  # nothing in this layer is masked, but in others
            "layers.1.attn.qkv.weight": (24, 8),
            "layers.1.side.up.weight": (8, 8),
            "layers.1.attn.window.conv.weight": (8, 8, 3),
            "stages.0.reduction.proj.weight": (8, 8),
        }
    )
    assert [choice.unclear for choice in found.values()] == [True, False, True, True, False]


def test_matrices_beside_attention_are_unclear_in_a_model_without_layers():
    found = choices({"attention.query.kernel": (8, 2, 4), "dense_1.kernel": (8, 16), "embedding.embeddings": (256, 8)})
    assert [choice.unclear for choice in found.values()] == [False, True, False]
