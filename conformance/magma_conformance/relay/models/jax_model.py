"""`magma_conformance.cases.language_model` in jax.numpy: the same function, with kernels stored (in, out)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from magma_conformance.relay.models.layout import turned
from magma_conformance.relay.models.rotary import RMS_EPS, rotation
from magma_conformance.relay.plan import RelayPlan


def tree(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters from the files, as a tree whose dotted paths are the names."""
    params: dict[str, Any] = {}
    for name, array in weights.items():
        *branches, leaf = name.split(".")
        place = params
        for branch in branches:
            place = place.setdefault(branch, {})
        place[leaf] = jnp.asarray(turned(name, array))
    return params


def flat(params: Any) -> dict[str, np.ndarray]:
    """The inverse of `tree`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
    return {name: turned(name, array) for name, array in named.items()}


def logits(params: Any, tokens: Any, plan: RelayPlan) -> jax.Array:
    """(batch, length, 256)."""
    cosine, sine = (part[:, None, :] for part in rotation(tokens.shape[1], plan.width // plan.heads))

    def rotated(x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=-1)
        return jnp.concatenate((first * cosine - second * sine, first * sine + second * cosine), axis=-1)

    x = params["embedding"][tokens]
    heads = (*tokens.shape, plan.heads, plan.width // plan.heads)
    for layer in range(plan.layers):
        own = params["layers"][str(layer)]
        h = _rms_norm(x, own["attention_norm"])
        q, k, v = ((h @ own["attention"][w]).reshape(heads) for w in ("wq", "wk", "wv"))
        attended = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + attended.reshape(x.shape) @ own["attention"]["wo"]
        h = _rms_norm(x, own["mlp_norm"])
        x = x + (jax.nn.silu(h @ own["mlp"]["gate"]) * (h @ own["mlp"]["up"])) @ own["mlp"]["down"]
    return _rms_norm(x, params["norm"]) @ params["head"]


def _rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + RMS_EPS) * scale
