"""Real gradients for the conformance run, from a small byte-level language model that learns Python's source code.

Every machine that runs the project has this text, and it is hard enough for an optimizer: absent bytes have gradients
of exactly zero, embedding rows wake up late, and magnitudes span many binades.
"""

import math
import os
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from magma_core.optional import require

torch = require("torch", extra="torch")

_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_ROPE_BASE = 10_000.0
_RMS_EPS = 1e-5


def corpus(size: int) -> np.ndarray:
    """The first ``size`` bytes of the Python standard library's source.

    Files are joined in order of name, without tests and installed packages. The text depends on the Python version, so
    digests computed from it hold for one version only.

    Args:
        size: the number of bytes, ≥ 1; there are about 9 million.

    Returns:
        (size,) uint8.

    Raises:
        ValueError: if ``size`` is not positive.
        RuntimeError: if there is not enough source, for example because the library is a zip file or was stripped.

    Example:
        >>> bytes(corpus(22)).decode()
        '\"\"\"Record of phased-in'
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    root = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for name in sorted(_sources(root)):
        text += (root / name).read_bytes()
        if len(text) >= size:
            return np.frombuffer(bytes(text[:size]), dtype=np.uint8)
    raise RuntimeError(
        f"the standard library in {root} has {len(text)} bytes of Python source, {size} are wanted: "
        "run a Python that was installed with its source files"
    )


def _sources(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _EXCLUDED]
        for file in files:
            if file.endswith(".py"):
                yield (Path(folder) / file).relative_to(root).as_posix()


class LanguageModel:
    """A decoder-only transformer over bytes, with NumPy arrays in and out.

    Embedding, blocks of (RMSNorm, causal attention with rotary positions, RMSNorm, SwiGLU), RMSNorm, head; no biases,
    no dropout, no tied weights. Matrices are stored (out, in). The model is pure: it holds the text and the shapes, no
    weights.

    Args:
        seed: for the initial weights and the batches.
        width: of the residual stream.
        layers: number of blocks.
        heads: of attention; ``width / heads`` must be even.
        hidden: width of the SwiGLU.
        batch: sequences per batch.
        length: predicted bytes per sequence.
        text: uint8; by default a quarter of a million bytes of `corpus`.

    Raises:
        ValueError: if the shapes do not match, or the text is shorter than one sequence.

    Example:
        >>> model = LanguageModel()
        >>> params = model.parameters()
        >>> sum(p.size for p in params.values())
        1016960
        >>> loss, grads = model.loss_and_gradients(params, step=1)
        >>> round(loss, 1), grads["layers.0.attention.wq"].shape
        (5.6, (128, 128))
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 448,
        batch: int = 8,
        length: int = 64,
        text: np.ndarray | None = None,
    ) -> None:
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 * heads, got width={width} and heads={heads}")
        self.seed, self.layers, self.heads, self.batch, self.length = seed, layers, heads, batch, length
        self.text = corpus(2**18) if text is None else text
        if self.text.size <= length:
            raise ValueError(f"text has {self.text.size} bytes, a sequence takes {length + 1}")
        self.shapes = _shapes(width, layers, hidden)
        self._rotation = _rotation(length, width // heads)

    def parameters(self) -> dict[str, np.ndarray]:
        """The initial weights, float32: norms 1, matrices uniform with variance 1 / fan-in or less.

        They come from the raw words of PCG64, which NumPy guarantees (unlike its distributions), by operations that
        IEEE 754 determines: every machine gets the same bits.
        """
        words = np.random.PCG64(np.random.SeedSequence([self.seed, 0]))
        return {name: self._initial(name, shape, words) for name, shape in self.shapes.items()}

    def loss_and_gradients(self, params: Mapping[str, np.ndarray], step: int) -> tuple[float, dict[str, np.ndarray]]:
        """Mean cross-entropy in nats per byte on the batch of ``step``, and its gradients.

        Args:
            params: weights by name, float32 (or float64, to check the gradients themselves).
            step: t ≥ 0; selects the batch.

        Returns:
            The loss, and gradients with the weights' order, shapes and dtypes. Their last bits depend on the processor
            and on torch's version.

        Raises:
            ValueError: if names or shapes are not those of `parameters`.
        """
        given = {name: tuple(array.shape) for name, array in params.items()}
        if given != self.shapes:
            wrong = sorted(name for name, _ in given.items() ^ self.shapes.items())[0]
            raise ValueError(f"{wrong!r} has shape {given.get(wrong)}, expected {self.shapes.get(wrong)}")
        # copied: other frameworks hand out read-only memory, which torch rejects
        weights = {name: torch.tensor(np.asarray(params[name]), requires_grad=True) for name in self.shapes}
        sequences = torch.from_numpy(self.tokens(step))
        with _one_thread():
            logits = self._logits(weights, sequences[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())
            gradients = torch.autograd.grad(loss, list(weights.values()))
        return loss.item(), {name: g.numpy() for name, g in zip(weights, gradients, strict=True)}

    def tokens(self, step: int) -> np.ndarray:
        """(batch, length + 1) int64: the batch of ``step``, windows at random places of the text."""
        words = np.random.PCG64(np.random.SeedSequence([self.seed, 1, step]))
        starts = words.random_raw(self.batch) % np.uint64(self.text.size - self.length)
        return self.text[starts[:, None].astype(np.int64) + np.arange(self.length + 1)].astype(np.int64)

    def attention_and_mlp(self, name: str) -> bool:
        """Whether ``name`` is a matrix of attention or MLP, the parameters that the paper masks.

        Example:
            >>> model = LanguageModel()
            >>> [name for name in model.shapes if not model.attention_and_mlp(name)][:2]
            ['embedding', 'layers.0.attention_norm']
        """
        return ".attention." in name or ".mlp." in name

    def _initial(self, name: str, shape: tuple[int, ...], words: Any) -> np.ndarray:
        if name.endswith("norm"):
            return np.ones(shape, np.float32)
        deviation = 1 / math.sqrt(shape[1])
        if name.endswith((".wo", ".down")):  # keeps the size of the residual stream independent of depth (GPT-2)
            deviation /= math.sqrt(2 * self.layers)
        if name in ("embedding", "head"):  # small, so that the first prediction is nearly uniform
            deviation = 0.02
        integers = (words.random_raw(math.prod(shape)) >> np.uint64(40)).astype(np.float64)  # below 2²⁴
        uniform = (integers + (0.5 - 2**23)) * (deviation * math.sqrt(3) / 2**23)
        return uniform.astype(np.float32).reshape(shape)

    def _logits(self, weights: Mapping[str, Any], tokens: Any) -> Any:
        """(batch, length, 256)."""
        x = weights["embedding"][tokens]
        cosine, sine = (torch.from_numpy(part).to(x.dtype) for part in self._rotation)
        for layer in range(self.layers):
            own = {name: weights[f"layers.{layer}.{name}"] for name in _layer_shapes(0, 0)}
            h = _rms_norm(x, own["attention_norm"])
            q, k, v = (self._split(h @ own[f"attention.{w}"].T) for w in ("wq", "wk", "wv"))
            q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + attended.transpose(1, 2).flatten(2) @ own["attention.wo"].T
            h = _rms_norm(x, own["mlp_norm"])
            gate = torch.nn.functional.silu(h @ own["mlp.gate"].T)
            x = x + (gate * (h @ own["mlp.up"].T)) @ own["mlp.down"].T
        return _rms_norm(x, weights["norm"]) @ weights["head"].T

    def _split(self, x: Any) -> Any:
        """(batch, length, width) into (batch, heads, length, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Makes sums independent of the number of cores; a second thread gains little on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shapes(width: int, layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embedding": (256, width)}
    for layer in range(layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _layer_shapes(width, hidden).items()}
    return shapes | {"norm": (width,), "head": (256, width)}


def _layer_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "attention_norm": (width,),
        **{f"attention.{w}": (width, width) for w in ("wq", "wk", "wv", "wo")},
        "mlp_norm": (width,),
        "mlp.gate": (hidden, width),
        "mlp.up": (hidden, width),
        "mlp.down": (width, hidden),
    }


def _rotation(length: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of rotary positions (Su et al., arXiv 2104.09864), each (length, head / 2)."""
    frequency = _ROPE_BASE ** (-np.arange(0, head, 2) / head)
    angle = np.arange(length)[:, None] * frequency
    return np.cos(angle), np.sin(angle)


def _rotate(x: Any, cosine: Any, sine: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


def _rms_norm(x: Any, scale: Any) -> Any:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _RMS_EPS) * scale
