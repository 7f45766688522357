"""Selects the paper's masked parameters, attention and MLP matrices, by the names of common models."""

import re
from typing import Any

from torch import Tensor, nn

from magma_core.config import check_lr_scale

_CONTAINERS = re.compile(r"(self_|cross_|linear_)?(attn|attention)|mlp|ffn|feed_forward|moe|block_sparse_moe|experts")
_MATRICES = re.compile(
    r"w?qkv(_proj)?|query_key_value|c_attn|[qkv]_proj|o(ut)?_proj|w[qkvo]|[qkv]_[ab]_proj\w*|kv_[ab]_proj\w*"
    r"|(gate|up|down|gate_up)_proj|c_fc|c_proj|fc[12]|fc_(in|out)|dense_h_to_4h|dense_4h_to_h|w[123]|linear[12]"
)
_WRAPPERS = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NEVER = re.compile(r".*(norm|embed|router|lm_head|bias).*|ln(_.*)?|w[tp]e|head", re.IGNORECASE)


def attention_and_mlp(model: nn.Module, *, lr_scale: float | None = None, quiet: bool = False) -> list[dict[str, Any]]:
    """Parameter groups that mask only attention and MLP matrices, as in arXiv 2602.15322.

    It recognizes the names of Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX, OPT, Mixtral and DeepSeek in
    transformers, and similarly named models. It prints the selection, so check it. A parameter of three or more axes
    counts as a stack of experts, one block per expert.

    Args:
        model: the model. Parameters that do not require gradients are omitted.
        lr_scale: learning-rate factor for masked parameters only, ≥ 2⁻¹⁰⁰. None for the optimizer's own.
        quiet: print nothing.

    Returns:
        One to three groups with ``masked``, ``block_axes`` and, if given, ``lr_scale``, for `Magma`, `SkipUpdate` or
        `MaskedOptimizer`.

    Raises:
        ValueError: if no attention or MLP matrix is found, or ``lr_scale`` is out of range.
        TypeError: if ``lr_scale`` is not a number.

    Example:
        >>> import torch
        >>> from magma_torch import Magma, attention_and_mlp
        >>> model = torch.nn.TransformerEncoderLayer(8, 2)
        >>> groups = attention_and_mlp(model, quiet=True)
        >>> [name for name, _ in groups[0]["params"]]
        ['self_attn.in_proj_weight', 'self_attn.out_proj.weight', 'linear1.weight', 'linear2.weight']
        >>> optimizer = Magma(groups, lr=3e-3)
    """
    # wrappers prefix the names, but names key the masks
    named = ((_WRAPPERS.sub("", name), p) for name, p in model.named_parameters())
    parameters = {name: p for name, p in named if p.requires_grad}
    chosen = {name for name, p in parameters.items() if p.ndim >= 2 and _is_matrix(name, parameters)}
    if not chosen:
        raise ValueError(
            f"no attention or MLP matrix was recognised among {len(parameters)} parameters such as "
            f"{next(iter(parameters), 'none')!r}: put the parameters to mask into a group of their own"
        )
    masked: dict[str, Any] = {"masked": True}
    if lr_scale is not None:
        check_lr_scale(lr_scale)
        masked["lr_scale"] = lr_scale
    kinds = {
        "matrices, one block each": {**masked, "block_axes": ()},
        "experts, a block each": {**masked, "block_axes": (0,)},
        "not masked": {"masked": False, "block_axes": ()},
    }
    members: dict[str, list[tuple[str, Tensor]]] = {kind: [] for kind in kinds}
    for name, p in parameters.items():
        stacked = "experts, a block each" if p.ndim > 2 else "matrices, one block each"
        members[stacked if name in chosen else "not masked"].append((name, p))
    if not quiet:
        _print(members)
    return [{"params": members[kind], **options} for kind, options in kinds.items() if members[kind]]


def _is_matrix(name: str, parameters: dict[str, Any]) -> bool:
    parts = name.split(".")
    if any(_NEVER.fullmatch(part) for part in parts):
        return False
    if "gate" in parts:  # the experts' router
        owner = ".".join(parts[: parts.index("gate")])
        if any(other.startswith(f"{owner}.experts") for other in parameters):
            return False
    return any(_CONTAINERS.fullmatch(part) or _MATRICES.fullmatch(part) for part in parts)


def _print(members: dict[str, list[tuple[str, Tensor]]]) -> None:
    for kind, named in members.items():
        elements = sum(p.numel() for _, p in named)
        print(f"{kind}: {len(named)} tensors, {elements:,} elements")
        for pattern in dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name, _ in named):
            print(f"  {pattern}")
