"""What `attention_and_mlp` masks in models of transformers: tiny ones, without memory."""

import warnings
from typing import Any

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, has_none
from magma_torch import attention_and_mlp

WORDS = {"vocab_size": 16}
BERT = dict(WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
LLAMA = dict(BERT, num_key_value_heads=2, head_dim=4)
MOE = dict(LLAMA, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16)
GPT = dict(WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2)
OPT = dict(BERT, ffn_dim=16, max_position_embeddings=8, word_embed_proj_dim=8)
T5 = dict(WORDS, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, relative_attention_num_buckets=4)
IMAGES = dict(BERT, image_size=8, patch_size=4)
BART = dict(
    WORDS,
    d_model=8,
    max_position_embeddings=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
)
MLA = {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4}
MAMBA = {"mamba_num_heads": 2, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1}

CONFIGS: dict[str, dict[str, Any]] = {
    "albert": dict(BERT, embedding_size=4),
    "bart": BART,
    "bert": BERT,
    "blip": {
        "text_config": dict(BERT, encoder_hidden_size=8, is_decoder=True, max_position_embeddings=8),
        "vision_config": IMAGES,
        "projection_dim": 8,
    },
    "blip-2": {
        "text_config": dict(OPT, model_type="opt"),
        "vision_config": IMAGES,
        "qformer_config": dict(BERT, encoder_hidden_size=8),
    },
    "bloom": dict(WORDS, hidden_size=8, n_layer=1, n_head=2),
    "clip_vision_model": IMAGES,
    "ctrl": dict(GPT, dff=16),
    "deberta-v2": BERT,
    "deepseek_v3": dict(MOE, **MLA, first_k_dense_replace=0, n_routed_experts=4, n_group=1, topk_group=1),
    "distilbert": dict(WORDS, dim=8, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=8),
    "electra": dict(BERT, embedding_size=4),
    "esm": dict(BERT, pad_token_id=1, mask_token_id=2, position_embedding_type="rotary"),
    "falcon": BERT,
    "fnet": BERT,
    "gemma2": LLAMA,
    "gpt2": GPT,
    "gpt_neo": dict(BERT, num_layers=1, num_heads=2, attention_types=[[["global"], 1]], max_position_embeddings=8),
    "gpt_neox": BERT,
    "gpt_oss": dict(LLAMA, **EXPERTS),
    "gptj": dict(GPT, rotary_dim=2),
    "jamba": dict(
        dict(LLAMA, num_hidden_layers=2),
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        num_experts=4,
    ),
    "jetmoe": dict(BERT, **EXPERTS, num_key_value_heads=2, kv_channels=4),
    "llama": LLAMA,
    "longformer": dict(BERT, attention_window=[2]),
    "mamba": dict(BERT, state_size=4),
    "mixtral": dict(LLAMA, **EXPERTS),
    "mobilebert": dict(BERT, embedding_size=4, intra_bottleneck_size=8, true_hidden_size=8),
    "nemotron_h": dict(
        dict(MOE, **MAMBA, num_hidden_layers=4, layers_block_type=["mamba", "moe", "attention", "mlp"]),
        n_routed_experts=4,
        moe_shared_expert_intermediate_size=16,
    ),
    "opt": OPT,
    "phi": BERT,
    "qwen2_moe": dict(MOE, num_experts=4),
    "qwen3_next": dict(
        dict(MOE, num_hidden_layers=2), **LINEAR, num_experts=4, layer_types=["linear_attention", "full_attention"]
    ),
    "reformer": dict(
        dict(BERT, num_hidden_layers=2, attn_layers=["local", "lsh"], is_decoder=True),
        attention_head_size=4,
        feed_forward_size=16,
        axial_pos_embds=False,
    ),
    "roberta": dict(BERT, max_position_embeddings=8),
    "rwkv": dict(BERT, attention_hidden_size=8),
    "segformer": {
        "num_encoder_blocks": 1,
        "depths": [1],
        "sr_ratios": [2],
        "hidden_sizes": [8],
        "patch_sizes": [3],
        "strides": [2],
        "num_attention_heads": [2],
        "mlp_ratios": [2],
    },
    "squeezebert": dict(BERT, embedding_size=8),
    "swin": {
        "image_size": 8,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "mlp_ratio": 2,
    },
    "switch_transformers": dict(
        T5, num_experts=2, num_decoder_layers=1, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1
    ),
    "t5": T5,
    "umt5": T5,
    "vit": IMAGES,
    "wav2vec2": dict(
        dict(BERT, conv_dim=[8], conv_stride=[2], conv_kernel=[3]),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    ),
    "whisper": dict(BART, num_mel_bins=4, pad_token_id=0, max_source_positions=8, max_target_positions=8),
    "xlm": dict(WORDS, emb_dim=8, n_layers=1, n_heads=2),
    "xlnet": dict(WORDS, d_model=8, n_layer=1, n_head=2, d_inner=16),
    "xlstm": dict(BERT, num_heads=2),
}


def build(architecture: str) -> torch.nn.Module:
    """The model without its memory."""
    config = transformers.AutoConfig.for_model(architecture, **CONFIGS[architecture])
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config)


def test_every_architecture_is_listed():
    assert list(CONFIGS) == sorted(ARCHITECTURES)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_masked(architecture):
    rows, model = ARCHITECTURES[architecture], build(architecture)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {row.name: row.shape for row in rows} == {name: shape for name, shape in shapes.items() if len(shape) > 1}
    if has_none(rows):
        with pytest.raises(ValueError, match="no attention or MLP matrix was recognised"):
            attention_and_mlp(model, quiet=True)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        groups = attention_and_mlp(model, quiet=True)
    axes = {name: group["block_axes"] if group["masked"] else None for group in groups for name, _ in group["params"]}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    masked = {row.name: row.axes for row in rows}
    assert axes == {name: masked.get(name) for name in shapes if name in trained}
    unclear = [row.name for row in rows if row.unclear]
    assert len(warned) == bool(unclear)
    said = "".join(str(warning.message) for warning in warned)
    assert all(name.rpartition(".")[0].rpartition(".")[2] in said for name in unclear)
