"""The parameters that `attention_and_mlp` selects, by the names of real models."""

import pytest
import torch
from magma_torch import Magma, attention_and_mlp
from torch import nn

MODELS = {
    "llama": (
        "model.layers.0.self_attn.q_proj.weight model.layers.0.self_attn.o_proj.weight "
        "model.layers.0.mlp.gate_proj.weight model.layers.0.mlp.down_proj.weight",
        "model.embed_tokens.weight model.layers.0.input_layernorm.weight model.norm.weight lm_head.weight",
    ),
    "gpt2": (
        "transformer.h.0.attn.c_attn.weight transformer.h.0.attn.c_proj.weight transformer.h.0.mlp.c_fc.weight",
        "transformer.wte.weight transformer.wpe.weight transformer.h.0.ln_1.weight transformer.h.0.attn.c_attn.bias",
    ),
    "gpt_neox": (
        "gpt_neox.layers.0.attention.query_key_value.weight gpt_neox.layers.0.attention.dense.weight "
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
        "gpt_neox.embed_in.weight embed_out.weight gpt_neox.final_layer_norm.weight",
    ),
    "opt": (
        "model.decoder.layers.0.self_attn.out_proj.weight model.decoder.layers.0.fc1.weight "
        "model.decoder.layers.0.fc2.weight",
        "model.decoder.embed_positions.weight model.decoder.layers.0.self_attn_layer_norm.weight",
    ),
    "mixtral": (
        "model.layers.0.block_sparse_moe.experts.0.w1.weight model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.block_sparse_moe.gate.weight model.norm.weight",
    ),
    "deepseek": (
        "model.layers.0.self_attn.q_a_proj.weight model.layers.0.self_attn.kv_a_proj_with_mqa.weight "
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.gate.weight model.layers.0.self_attn.q_a_layernorm.weight",
    ),
    "bytes": ("layers.0.attention.wq layers.0.mlp.gate layers.0.mlp.down", "embedding layers.0.attention_norm head"),
}


def model(names: str, shape: tuple[int, ...] = (4, 4)) -> nn.Module:
    """A module with parameters of these names."""
    root = nn.Module()
    for name in names.split():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        small = leaf == "bias" or "norm" in name or "ln_" in name
        module.register_parameter(leaf, nn.Parameter(torch.ones(4) if small else torch.ones(shape)))
    return root


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind):
    chosen, others = MODELS[kind]
    masked, plain = attention_and_mlp(model(f"{chosen} {others}"), quiet=True)
    assert {name for name, _ in masked["params"]} == set(chosen.split())
    assert {name for name, _ in plain["params"]} == set(others.split())
    assert (masked["masked"], masked["block_axes"], plain["masked"]) == (True, (), False)


def test_stacked_experts_are_a_block_each():
    stacked = model("layers.0.mlp.experts.gate_up_proj", (3, 4, 4))
    (group,) = attention_and_mlp(stacked, quiet=True)
    assert group["block_axes"] == (0,)
    optimizer = Magma([group], compile=False)
    for p in stacked.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.alignment()["layers.0.mlp.experts.gate_up_proj"].keep.shape == (3,)


def test_frozen_parameters_are_left_out():
    frozen = model(" ".join(MODELS["llama"]))
    frozen.get_parameter("lm_head.weight").requires_grad_(False)
    groups = attention_and_mlp(frozen, quiet=True)
    assert "lm_head.weight" not in [name for group in groups for name, _ in group["params"]]


def test_what_was_found_is_printed(capsys):
    attention_and_mlp(model("layers.0.mlp.fc1.weight layers.1.mlp.fc1.weight layers.1.norm.weight lm_head.weight"))
    assert capsys.readouterr().out.splitlines() == [
        "matrices, one block each: 2 tensors, 32 elements",
        "  layers.*.mlp.fc1.weight",
        "experts, a block each: 0 tensors, 0 elements",
        "not masked: 2 tensors, 20 elements",
        "  layers.*.norm.weight",
        "  lm_head.weight",
    ]


def test_quiet_prints_nothing(capsys):
    attention_and_mlp(model("layers.0.mlp.fc1.weight"), quiet=True)
    assert not capsys.readouterr().out


def test_a_model_without_any_is_refused():
    with pytest.raises(ValueError, match=r"no attention or MLP matrix .* 'weight'"):
        attention_and_mlp(nn.Linear(2, 2), quiet=True)
