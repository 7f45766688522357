"""`magma_conformance.cases.language_model` as Keras layers: the same function, with kernels stored (in, out)."""

import re
from typing import Any

import keras
from keras import ops

from magma_conformance.relay.models.rotary import RMS_EPS, rotation
from magma_conformance.relay.plan import RelayPlan


class Attention(keras.layers.Layer):
    """Causal attention with rotary positions."""

    def __init__(self, plan: RelayPlan, name: str) -> None:
        super().__init__(name=name)
        self._heads = (plan.length, plan.heads, plan.width // plan.heads)
        self._rotation = [part[:, None, :] for part in rotation(plan.length, self._heads[-1])]
        self.wq, self.wk, self.wv, self.wo = (_dense(plan.width, w) for w in ("wq", "wk", "wv", "wo"))

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make the kernels, (width, width) each."""
        for layer in (self.wq, self.wk, self.wv, self.wo):
            layer.build(shape)

    def call(self, x: Any) -> Any:
        """(batch, length, width) to the same shape."""
        q, k, v = (ops.reshape(layer(x), (-1, *self._heads)) for layer in (self.wq, self.wk, self.wv))
        attended = ops.dot_product_attention(self._rotated(q), self._rotated(k), v, is_causal=True)
        return self.wo(ops.reshape(attended, ops.shape(x)))

    def _rotated(self, x: Any) -> Any:
        first, second = ops.split(x, 2, axis=-1)
        cosine, sine = (ops.convert_to_tensor(part) for part in self._rotation)
        return ops.concatenate((first * cosine - second * sine, first * sine + second * cosine), axis=-1)


class SwiGLU(keras.layers.Layer):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, plan: RelayPlan, name: str) -> None:
        super().__init__(name=name)
        self.gate, self.up = _dense(plan.hidden, "gate", activation="silu"), _dense(plan.hidden, "up")
        self.down = _dense(plan.width, "down")

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make the kernels."""
        self.gate.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], self.up.units))

    def call(self, x: Any) -> Any:
        """(batch, length, width) to the same shape."""
        return self.down(self.gate(x) * self.up(x))


def language_model(plan: RelayPlan) -> keras.Model:
    """Maps (batch, length) integers to logits of bytes, (batch, length, 256)."""
    tokens = keras.Input((plan.length,), dtype="int32")
    x = keras.layers.Embedding(256, plan.width, name="embedding")(tokens)
    for i in range(plan.layers):
        x = x + Attention(plan, f"layers-{i}-attention")(_norm(f"layers-{i}-attention_norm")(x))
        x = x + SwiGLU(plan, f"layers-{i}-mlp")(_norm(f"layers-{i}-mlp_norm")(x))
    return keras.Model(tokens, _dense(256, "head")(_norm("norm")(x)))


def file_name(path: str) -> str:
    """A variable's name in the files, from its path; not all backends allow dots in paths.

    Example:
        >>> file_name("layers-0-attention/wq/kernel")
        'layers.0.attention.wq'
    """
    return re.sub("[-/]", ".", path.rpartition("/")[0])


def _dense(units: int, name: str, **options: Any) -> keras.layers.Dense:
    return keras.layers.Dense(units, use_bias=False, name=name, **options)


def _norm(name: str) -> keras.layers.RMSNormalization:
    return keras.layers.RMSNormalization(epsilon=RMS_EPS, name=name)
