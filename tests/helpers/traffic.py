"""The bytes that each kernel of a step moves, read from programs compiled for an H100 without needing one.

PYTHONPATH=FOLDER python tests/helpers/traffic.py one llama equal small    # test_ptx.py says what FOLDER is

The count assumes that a kernel reads its operands and writes its results once. For `magma_jax.gpu.kernels` that is an
upper bound: "recount" reads only what must be recounted; "move" reads and writes only kept blocks.
"""

import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

BANDWIDTH = 0.9 * 3.35e12  # bytes per second
_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_SHAPE = re.compile(rf"\b({'|'.join(_WIDTHS)})\[([\d,]*)\]")
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
_NESTED = {"while", "conditional", "call", "async-start"}


class Kernel(NamedTuple):
    """What one launch does."""

    name: str
    operation: str
    read: int
    written: int


def kernels(text: str) -> list[Kernel]:
    """Those of an optimized HLO module, in order; what is inside of loops and branches is not looked at."""
    found, shapes = [], {}
    entry = text[text.index("\nENTRY") :]
    for name, shape, operation, rest in re.findall(r"^ +(?:ROOT )?%(\S+) = (.*?) ([\w-]+)\((.*)$", entry, re.MULTILINE):
        shapes[name] = _size(shape)
        if operation in _FREE:
            continue
        operands = rest[: rest.index(")")]
        read = sum(shapes[x] for x in re.findall(r"%([\w.\-]+)", operands))
        pallas = re.search(r"/(\w+)/pallas_call", rest)
        label = pallas[1] if pallas else re.sub(r"[.\d]+$", "", name)
        found.append(Kernel(label, operation, read, shapes[name]))
    return found


def waits(found: list[Kernel]) -> list[str]:
    """What the host would have to see to the end before it can go on."""
    return [kernel.operation for kernel in found if kernel.operation in _NESTED | {"infeed", "outfeed", "send", "recv"}]


def _size(shape: str) -> int:
    return sum(_WIDTHS[kind] * prod(int(n) for n in extents.split(",") if n) for kind, extents in _SHAPE.findall(shape))


def _llama(layers: int = 4, width: int = 2048, hidden: int = 5632, words: int = 32000) -> dict[str, tuple[int, ...]]:
    layer = {
        **dict.fromkeys(("q", "o"), (width, width)),
        **dict.fromkeys(("k", "v"), (width // 4, width)),
        **dict.fromkeys(("gate", "up"), (hidden, width)),
        "down": (width, hidden),
        **dict.fromkeys(("before", "after"), (width,)),
    }
    body = {f"{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    return {"embedding": (words, width), **body, "norm": (width,)}


MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "one": {"w": (2048, 8192)},
    "llama": _llama(),
    "equal": {str(i): (512, 1024) for i in range(32)},
    "small": {str(i): (64 + i, 128) for i in range(100)},
}


def contenders(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Name, step and its arguments, the first and the last of which are given away."""
    import jax
    import jax.numpy as jnp
    import optax
    from magma_jax import magma

    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    adamw = optax.adamw(0.01)

    def dense(params: Any, grads: Any, state: Any) -> Any:
        updates, state = adamw.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    yield "optax.adamw", dense, (params, params, jax.eval_shape(adamw.init, params))
    for with_kernels in (False, True):
        optimizer = magma(0.01, kernels=with_kernels)
        arguments = (params, params, jax.eval_shape(optimizer.init, params))
        yield f"magma{', kernels' * with_kernels}", optimizer.step, arguments


def main(*models: str) -> None:
    """A line for the kernels of each name."""
    from ptx_worker import compiled

    for model in models or MODELS:
        count = sum(map(prod, MODELS[model].values()))
        for name, step, arguments in contenders(MODELS[model]):
            begun = time.perf_counter()
            found = kernels(compiled(step, *arguments, donated=(0, 2)).as_text())
            seconds = time.perf_counter() - begun
            print(
                f"\n{model}, {count / 1e6:.1f} M parameters, {name}: compiled in {seconds:.1f} s, waits {waits(found)}"
            )
            groups: dict[str, list[Kernel]] = defaultdict(list)
            for kernel in found:
                groups[kernel.name if kernel.read + kernel.written > count / 1000 else "(small)"].append(kernel)
            groups["together"] = found
            for label, members in groups.items():
                read, written = (sum(getattr(k, side) for k in members) / count for side in ("read", "written"))
                picoseconds = (read + written) / BANDWIDTH * 1e12
                print(f"{label:32} x{len(members):<4} {read:6.2f} read {written:6.2f} written {picoseconds:6.2f} ps")


if __name__ == "__main__":
    main(*sys.argv[1:])
