"""Parts of a step by magma_core in any mode, for questions other than "steps" (docs/porting.md, section 2)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from magma_conformance.implementations.modes import Mode
from magma_conformance.task import Arrays
from magma_core import alignment, magma
from magma_core.blocks import Blocks
from magma_core.hyperparameters import coin_limit, rule_numbers
from magma_core.keep import BlockWords, coins, keep_mask, mask_key, threefry2x32
from magma_core.namespace import Array, Namespace
from magma_core.numerics import real

Given: TypeAlias = Mapping[str, Array]


def core_part(mode: Mode, kind: str, inputs: Arrays, /) -> dict[str, np.ndarray]:
    """The core's answer. Inputs that are plain values there (name, seed, p, τ, a) are constants of the program."""
    dtypes, arrays, program = _PARTS[kind](inputs, mode.xp)

    def whole(*operands: Array) -> Any:
        with mode.xp.scope():
            return program(*operands)

    with mode.xp.scope():
        results = mode.compile(whole)(*(mode.put(array) for array in arrays))
        return {name: mode.get(x).astype(dtype) for (name, dtype), x in zip(dtypes.items(), results, strict=True)}


_Prepared: TypeAlias = tuple[dict[str, Any], list[np.ndarray], Callable[..., tuple[Array, ...]]]


def _threefry(inputs: Arrays, xp: Namespace) -> _Prepared:
    def program(k0: Array, k1: Array, x0: Array, x1: Array) -> tuple[Array, ...]:
        return (xp.stack(threefry2x32((k0, k1), (x0, x1), xp=xp)),)

    scalars = [inputs[name][i] for name in ("key", "counter") for i in (0, 1)]
    return {"words": np.uint32}, [np.asarray(x, np.int64) for x in scalars], program


def _coins(inputs: Arrays, xp: Namespace) -> _Prepared:
    high, low = mask_key(bytes(inputs["name"]).decode("utf-8"), int(inputs["seed"]), xp=xp)
    blocks, rule = inputs["block"].astype(np.int64), magma(p=float(inputs.get("p", 1.0)))

    def program(step: Array, index: Array, *score: Array) -> tuple[Array, ...]:
        device = xp.device(index)
        key = [xp.full(blocks.shape, word, dtype=xp.int64, device=device) for word in (high, low)]
        words = BlockWords(key[0], key[1], index)
        limit = coin_limit(real(score[0], xp=xp)) if score else rule_numbers(rule).limit
        u = coins(words, step, xp=xp)
        return u, keep_mask(u, limit, xp=xp)

    arrays = [inputs["step"].astype(np.int64), blocks, *([inputs["score"]] if "score" in inputs else [])]
    return {"coins": np.uint32, "keep": bool}, arrays, program


def _sums(inputs: Arrays, xp: Namespace) -> _Prepared:
    blocks = Blocks(inputs["mu"].shape, ())

    def program(mu: Array, gradient: Array) -> tuple[Array, ...]:
        operands = real(mu, xp=xp), real(gradient, xp=xp)
        total = alignment.alignment_sums(*operands, blocks)
        if 0 in blocks.shape:
            return mu, gradient, total
        peaks = alignment.largest(operands, blocks.inner_axes)
        on_grid = (
            alignment.on_grid(x, alignment.grid(peak, xp=xp)).replace(
                xp.logical_not(alignment.finite(peak, xp=xp)), 0.0
            )
            for x, peak in zip(operands, peaks, strict=True)
        )
        return *(x.array for x in on_grid), total

    return {"x": np.int32, "y": np.int32, "sums": np.int64}, [inputs["mu"], inputs["gradient"]], program


def _score(inputs: Arrays, xp: Namespace) -> _Prepared:
    numbers = rule_numbers(magma(tau=float(inputs["tau"]), ema=float(inputs["ema"])))

    def program(sums: Array, score: Array) -> tuple[Array, ...]:
        c = alignment.cosine(sums, xp=xp)
        sigmoid = alignment.sigmoid(c * numbers.inverse_tau)
        return c.array, sigmoid.array, alignment.update_score(score, c, numbers).array

    return (
        {"cosine": np.float32, "sigmoid": np.float32, "score": np.float32},
        [inputs["sums"], inputs["score"]],
        program,
    )


_PARTS: dict[str, Callable[[Arrays, Namespace], _Prepared]] = {
    "threefry": _threefry,
    "coins": _coins,
    "sums": _sums,
    "score": _score,
}
