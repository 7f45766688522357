"""What the names and classes of modules say: attention, an MLP, a layer, or something without matrices to mask.

Names are read in snake case, so that ``SelfAttention_0`` and ``self_attention`` are alike. Of a class, only the end
counts: what stands before it is often the model's name.
"""

import re
from functools import cache
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["attention", "mlp"]

_ATTENTION = re.compile(r"(attention|attn)s?\d*(_|$)|(^|_)(att|mhs?a)(_|$)")
_MLP = re.compile(
    r"(mlp|ffn|experts|feed_?forward)s?\d*(_|$)|(^|_)(ff\d?|ffw|expert|moe|glu|intermediate)(_|$)|dense\w*_dense$"
)
_CLASS = re.compile(
    r"(attention|attn|_mhs?a|mlp|ffn|ffw|_ff|experts?|feed_?forward|_moe|glu|intermediate|dense_\w*dense)"
    r"_?(v?\d+)?(_block|_layer)?$"
)
_NO_MODULE = re.compile(
    r"norm|(^|_)ln|embed|bias|drop|pool|router|predict|hyper|(^|_)hc(_|$)|(model|net|network|layers|head)$"
)
_LAYER = re.compile(r"\d+|h_?\d*|\w*(layer|block)s?_?\d*")
_CLASS_OF_LAYER = re.compile(r"(layer|block)$")
_OUTPUT = re.compile(r"(^|_)output(_|$)")
_QUERIES = re.compile(r"w?qkv(_proj)?|c_attn|query_key_value|[qkv]_proj|in_proj_weight|w[qkv]|query(_proj)?|to_q(kv)?")
_MLP_PROJECTION = re.compile(
    r"(gate|up|down|gate_up)_proj|c_fc|fc_?[12]|fc_(in|out)|dense_h_to_4h|dense_4h_to_h|w[123]|linear_?[12]"
)
_WEIGHT = re.compile(r"w|weight|kernel|scale|gamma|g")
_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)")
_NO_MATRICES = re.compile(
    rf"{_NORM.pattern}|embed|(^|_)embs?(_|$)|bias|router|gating|adapter|(^|_)ada(_|$)|pool|classifier"
    r"|hyper|(^|_)hc(_|$)|(^|_)head$"
)
_CLASS_WITHOUT_MATRICES = re.compile(r"(router|gating|moe_gate|adapter|pool(er|ing)?|classifier|head)$")
_CLASS_OF_VECTORS = re.compile(r"(embeddings?|norm(_?\dd)?)$")
_NO_MATRIX = re.compile(r"^b(_\w+|\d)?$|(^|_)(pos|position|relative|rel)(_|$)|scale|table")
_ADDED = re.compile(r"lora_[ab]|base_layer|original_module|modules_to_save|parametrizations")
_CONVOLUTION = re.compile(r"conv")
_EXPERTS = re.compile(r"expert|(^|_)moe(_block)?$")
_GATE = re.compile(r"gate|wg")


@cache
def _snake(name: str) -> str:
    name = name.replace("MoE", "Moe")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@cache
def role(name: str, of: str, /) -> Role | None:
    """Whether a module of this name and class is attention or an MLP; the class counts first.

    Example:
        >>> role("1", "T5LayerFF"), role("mlp", ""), role("attention_norm", "LayerNorm"), role("0", "Qwen2MoeModel")
        ('mlp', 'mlp', None, None)
    """
    name, of = _snake(name), _snake(of)
    if not _NO_MODULE.search(of) and (end := _CLASS.search(of)):
        return "attention" if _ATTENTION.search(end[0]) else "mlp"
    if _NO_MODULE.search(name):
        return None
    return "attention" if _ATTENTION.search(name) else "mlp" if _MLP.search(name) else None


@cache
def is_layer(name: str, of: str, /) -> bool:
    """Whether a module may be a layer, or the stack of all: an item of a list, or called so."""
    if _NO_MATRICES.search(_snake(name)):
        return False
    return bool(_LAYER.fullmatch(_snake(name)) or _CLASS_OF_LAYER.search(_snake(of)))


@cache
def is_output(name: str, of: str, /) -> bool:
    """Whether a module of a layer may be the last part of its MLP, as in BERT."""
    return bool(_OUTPUT.search(_snake(name)) or _OUTPUT.search(_snake(of)))


@cache
def makes_queries(name: str, /) -> bool:
    """Whether a projection is attention's, so that the module around it is attention, or a layer without one."""
    return bool(_QUERIES.fullmatch(_snake(name)))


@cache
def is_projection(name: str, /) -> bool:
    """Whether common models call a matrix of attention or of an MLP so."""
    return makes_queries(name) or bool(_MLP_PROJECTION.fullmatch(_snake(name)))


@cache
def is_weight(name: str, /) -> bool:
    """Whether modules call their one matrix or scale so."""
    return bool(_WEIGHT.fullmatch(_snake(name)))


@cache
def is_added(name: str, /) -> bool:
    """Whether an adapter or a parametrization has put this between a module and its weight."""
    return bool(_ADDED.fullmatch(_snake(name)))


@cache
def is_norm(name: str, /) -> bool:
    """Whether this is a normalization."""
    return bool(_NORM.search(_snake(name)))


@cache
def is_convolution(name: str, /) -> bool:
    """Whether this name or class is a convolution's."""
    return bool(_CONVOLUTION.search(_snake(name)))


@cache
def is_experts(name: str, /) -> bool:
    """Whether this name or class is that of experts."""
    return bool(_EXPERTS.search(_snake(name)))


@cache
def is_gate(name: str, /) -> bool:
    """Whether this is a router if it is beside experts, and a matrix of a gated MLP if it is not."""
    return bool(_GATE.fullmatch(_snake(name)))


@cache
def holds_none(name: str, of: str, /) -> bool:
    """Whether a module of this name and class is a norm, embedding, router, head or the like."""
    return bool(_NO_MATRICES.search(_snake(name)) or _CLASS_WITHOUT_MATRICES.search(_snake(of)))


@cache
def has_vectors(of: str, /) -> bool:
    """Whether the own tensors of a module of this class are an embedding's or a norm's."""
    return bool(_CLASS_OF_VECTORS.search(_snake(of)))


@cache
def is_none(name: str, /) -> bool:
    """Whether a tensor of this name is no matrix in spite of its shape: a bias, a table of positions."""
    return bool(_NO_MATRICES.search(_snake(name)) or _NO_MATRIX.search(_snake(name)))
