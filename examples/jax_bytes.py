"""Train a byte-level language model with optax.adamw and with Magma, and plot both.

A transformer in plain JAX with stacked layers; every layer of every matrix is a block. The text is the conformance
run's: Python's standard library.

    python examples/jax_bytes.py --steps 300 --picture docs/pictures/jax-bytes.png
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import losses
import optax
from magma_conformance.cases.language_model import corpus
from magma_jax import magma
from rich.progress import Progress

LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 4, 128, 4, 64, 16
WARM_UP = 0.1
LR = 0.003
TEXT = 2**20  # bytes


def initial_parameters(key: jax.Array) -> dict[str, Any]:
    """Embedding, stacked layers, norms and head."""
    shapes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    keys = iter(jax.random.split(key, 2 + len(shapes)))
    matrices = {
        name: jax.random.normal(next(keys), (LAYERS, *shape)) / shape[0] ** 0.5 for name, shape in shapes.items()
    }
    return {
        "embedding": 0.02 * jax.random.normal(next(keys), (256, WIDTH)),
        "layers": {**matrices, "norm1": jnp.ones((LAYERS, WIDTH)), "norm2": jnp.ones((LAYERS, WIDTH))},
        "head": jax.random.normal(next(keys), (WIDTH, 256)) / WIDTH**0.5,
    }


def loss(params: dict[str, Any], text: jax.Array) -> jax.Array:
    """Nats per byte on a batch of texts, (BATCH, CONTEXT + 1)."""

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * weight * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    def layer(x: jax.Array, own: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        q, k, v = jnp.split(norm(x, own["norm1"]) @ own["qkv"], 3, axis=-1)
        heads = (x.shape[0], x.shape[1], HEADS, WIDTH // HEADS)
        attended = jax.nn.dot_product_attention(*(y.reshape(heads) for y in (q, k, v)), is_causal=True)
        x = x + attended.reshape(x.shape) @ own["out"]
        return x + jax.nn.gelu(norm(x, own["norm2"]) @ own["up"]) @ own["down"], None

    x, _ = jax.lax.scan(layer, params["embedding"][text[:, :-1]], params["layers"])
    logits = norm(x, jnp.ones(WIDTH)) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


def block_axes(name: str, leaf: jax.Array) -> tuple[int, ...] | None:
    """Attention and MLP matrices are masked layer by layer; embedding, norms and head are not."""
    return (0,) if leaf.ndim == 3 else None


def optimizers(steps: int) -> dict[str, optax.GradientTransformation]:
    """The optimizers by their labels in the picture."""

    rate = optax.warmup_cosine_decay_schedule(0.1 * LR, LR, int(WARM_UP * steps), steps, 0.1 * LR)
    return {
        "adamw": optax.adamw(rate, weight_decay=0.01),
        "magma(adamw)": magma(rate, weight_decay=0.01, block_axes=block_axes),
        "magma(adamw), lr_scale 3.3": magma(rate, lr_scale=3.3, weight_decay=0.01, block_axes=block_axes),
    }


def train(label: str, optimizer: optax.GradientTransformation, steps: int, progress: Progress) -> list[float]:
    """Train, and return the loss of each step."""
    text = jnp.asarray(corpus(TEXT))
    params = initial_parameters(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        starts = jax.random.randint(key, (BATCH, 1), 0, len(text) - CONTEXT - 1)
        value, grads = jax.value_and_grad(loss)(params, text[starts + jnp.arange(CONTEXT + 1)].astype(jnp.int32))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    curve = []
    bar = progress.add_task(label, total=steps)
    for i in range(steps):
        params, state, value = step(params, state, jax.random.fold_in(jax.random.key(1), i))
        curve.append(float(value))
        progress.update(bar, advance=1, description=f"{label}: {curve[-1]:.3f}")
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of each run (at least 20)")
    parser.add_argument("--picture", type=Path, default=Path("jax-bytes.png"))
    arguments = parser.parse_args()
    with Progress(transient=True) as progress:
        curves = {
            label: train(label, optimizer, arguments.steps, progress)
            for label, optimizer in optimizers(arguments.steps).items()
        }
    losses.report(curves, "Byte-level language model, 0.9 M parameters", arguments.picture)


if __name__ == "__main__":
    main()
