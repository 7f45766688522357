"""Questions about the parts of a step: cipher, coins, quantisation with sums, and score."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from magma_conformance.vectors import oracle
from magma_conformance.vectors.generator.draws import VALUES, Draws, values
from magma_conformance.wire import hex_arrays


class Asked(NamedTuple):
    """A question, and its subject."""

    comment: str
    kind: str
    inputs: dict[str, Any]


def asked(comment: str, kind: str, **arrays: np.ndarray) -> Asked:
    """A question about a part."""
    return Asked(comment, kind, {name: hex_arrays.to_json(array) for name, array in arrays.items()})


def cipher() -> Iterator[Asked]:
    """Random123's three known answers, carries everywhere, and ordinary words."""
    top = 0xFFFFFFFF
    counters = [
        ("zeros, the first known answer of Random123", (0, 0), (0, 0)),
        ("ones, the second known answer of Random123", (top, top), (top, top)),
        ("digits of pi, the third known answer of Random123", (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)),
        ("the counter wraps around the key", (1, 1), (top, top)),
        ("the key wraps around the counter", (top, top), (1, 1)),
        ("the highest bits", (1 << 31, 1 << 31), (1 << 31, 1 << 31)),
        ("a key whose third word is 0", (0x1BD11BDA, 0), (7, 9)),
        ("only the second words", (0, 1), (0, 1)),
        ("only the first words", (1, 0), (1, 0)),
    ]
    draws = Draws("cipher")
    counters += [("drawn words", (draws.word(), draws.word()), (draws.word(), draws.word())) for _ in range(7)]
    for comment, key, counter in counters:
        yield asked(comment, "threefry", key=np.array(key, np.uint32), counter=np.array(counter, np.uint32))


NAMES = {
    "an ordinary name": "layers.0.attention.wq",
    "the empty name": "",
    "a name of one byte": "w",
    "a name with slashes and a space": "model/dense 1/kernel",
    "a name outside ASCII": "couche/poids_été",
    "a name in other scripts": "層.0.重み🔥",
    "a name of 55 bytes, the most for one block of SHA-256": "n" * 55,
    "a name of 56 bytes, which takes two blocks": "n" * 56,
    "a name of 64 bytes, a whole block": "n" * 64,
    "a name of 300 bytes": "layers.block." * 23 + "w",
}


def _coins(comment: str, name: str, seed: int, step: int, block: Sequence[int], **limit: np.ndarray) -> Asked:
    return asked(
        comment,
        "coins",
        name=np.frombuffer(name.encode("utf-8"), np.uint8),
        seed=np.array(seed, np.uint64),
        step=np.array(step, np.uint32),
        block=np.array(block, np.uint32),
        **limit,
    )


def coins() -> Iterator[Asked]:
    """Keys from names and seeds, counters up to their limits, and coins at the threshold."""
    half, few = np.array(0.5), [0, 1, 2, 3]
    for comment, name in NAMES.items():
        yield _coins(comment, name, 7, 1, few, p=half)
    for seed in (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1):
        yield _coins(f"seed {seed}", "w", seed, 1, few, p=half)
    for step in (2, 2**16, 2**31 - 1, 2**31, 2**32 - 1):
        yield _coins(f"step {step}", "w", 1, step, few, p=half)
    yield _coins("block indices up to the last", "w", 1, 1, [0, 2**16, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], p=half)
    yield _coins("step and block both at their ends", "w", 2**64 - 1, 2**32 - 1, [2**32 - 1], p=half)
    for p, comment in (
        (0.0, "nothing is kept"),
        (1.0, "everything is kept"),
        (2.0**-24, "the smallest threshold, 1"),
        (2.0**-25, "rounds to a threshold of 0: a tie"),
        (3 * 2.0**-25, "rounds to a threshold of 2: a tie"),
        (1 - 2.0**-25, "rounds to a threshold of 2^24: a tie"),
        (1 - 2.0**-24, "the largest threshold below 2^24"),
        (0.1, "no binary fraction"),
    ):
        yield _coins(f"p = {p!r}: {comment}", "w", 3, 1, range(16), p=np.array(p))
    coin = {b: oracle.coin(3, "w", 1, b) >> 8 for b in range(64)}
    odd, even = (next(b for b in range(16) if coin[b] % 2 == parity) for parity in (1, 0))
    for b in (odd, even):
        for part, what in (
            (0.0, "exactly p: not kept"),
            (0.25, "less than half a unit below p: not kept"),
            (0.5, "half a unit below p, which is rounded to even"),
            (0.75, "more than half a unit below p: kept"),
            (1.0, "a unit below p: kept"),
        ):
            p = (coin[b] + part) * 2.0**-24
            yield _coins(f"the coin of block {b} is {what}", "w", 3, 1, [b], p=np.array(p))
    b = next(b for b in coin if coin[b] % 2 and 2**22 <= coin[b] < 2**23)
    p = (coin[b] + 0.49) * 2.0**-24  # rounded to binary32, p would be half a unit above the coin
    yield _coins(f"the coin of block {b} is just less than half a unit below p", "w", 3, 1, [b], p=np.array(p))
    low = [b for b in coin if coin[b] < 2**22][:2]  # scores meet their thresholds in quarters of a unit
    for b in (odd, even, *low):
        parts = [0.0, 0.25, 0.5, 0.75, 1.0] if b in low else [0.0, 1.0]
        score = np.array([(coin[b] + part) * 2.0**-24 for part in parts], np.float32)
        yield _coins(f"scores around the coin of block {b}", "w", 3, 1, [b] * len(parts), score=score)
    draws = Draws("score thresholds")
    for n in range(3):
        score = np.array([abs(draws.real(-27, -23 if n else -1)) for _ in range(8)], np.float32)
        yield _coins("scores between two thresholds", "w", 3, n + 1, range(8), score=score)


def _f32(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def sums() -> Iterator[Asked]:
    """Each kind of values in either operand, and grids at their limits."""
    for kind in (kind for kind in VALUES if kind != "zeros of both signs"):  # operands have been flushed
        for other in ("ordinary values", kind):
            if other == kind == "ordinary values":
                continue
            draws = Draws(f"sums {kind} {other}")
            m, g = (
                np.array([oracle.flush(x) for x in values(one, 24, "float32", draws)], np.float32)
                for one in (kind, other)
            )
            yield asked(f"{kind} against {other}", "sums", mu=m, gradient=g)
    draws = Draws("sums")
    ordinary = np.array(values("ordinary values", 300, "float32", draws), np.float32)
    yield asked("three hundred values: sums beyond 2^24", "sums", mu=ordinary, gradient=ordinary[::-1].copy())
    yield asked("the same three hundred values", "sums", mu=ordinary, gradient=ordinary)
    largest = np.full(64, np.float32(1.0 - 2.0**-24))
    yield asked("values that quantise to 2^15", "sums", mu=largest, gradient=-largest)
    yield asked("a single element", "sums", mu=_f32([[3.0]]), gradient=_f32([[-0.1]]))
    yield asked("no elements", "sums", mu=np.zeros((0, 3), np.float32), gradient=np.zeros((0, 3), np.float32))
    ends = np.array([2.0**-100, 2.0**-99, 2.0**-86, 0.0], np.float32)
    yield asked("the smallest exponents", "sums", mu=ends, gradient=_f32([2.0**127, 2.0**112, -(2.0**111), 1]))
    yield asked("the largest numbers", "sums", mu=np.full(5, np.finfo(np.float32).max), gradient=ends[[0, 1, 2, 3, 0]])
    nan = _f32([1.0, math.nan, 2.0])
    yield asked("one operand with a NaN", "sums", mu=nan, gradient=_f32([1, 2, 3]))
    yield asked("one operand with infinities", "sums", mu=_f32([1, 2, 3]), gradient=_f32([-math.inf, 0, 1]))


def score() -> Iterator[Asked]:
    """Extreme cosines, sigmoids over their whole range, and averages."""

    def one(comment: str, columns: Sequence[Sequence[int]], tau: float, a: float, start: Sequence[float]) -> Asked:
        table = np.array(columns, np.int64).reshape(-1, 3).T
        before = np.array([oracle.rounded(s) for s in start], np.float32)
        return asked(comment, "score", sums=table, tau=np.array(tau), ema=np.array(a), score=before)

    yield one("a norm of zero", [(0, 0, 0), (0, 0, 9), (0, 9, 0)], 2.0, 0.9, [0.5, 0.25, 0.75])
    yield one("parallel, opposite, orthogonal", [(25, 25, 25), (-25, 25, 25), (0, 25, 36)], 2.0, 0.9, [0.5] * 3)
    for start in (0.0, 1.0):
        yield one(f"a score of {start}", [(12, 25, 36), (-12, 25, 36)], 2.0, 0.9, [start] * 2)
    yield one("a score whose average is flushed", [(0, 0, 0)], 2.0**-100, 0.0, [2.0**-99])
    yield one("a score below 2^-100", [(-9, 9, 9)], 0.01, 1 - 2.0**-24, [0.0])
    top = 2**62
    yield one("the largest sums", [(top, top, top), (-top, top, top), (top - 1, top, top)], 2.0, 0.9, [0.5] * 3)
    beyond = [
        n for n in range(3, 4000) if oracle.div(oracle.real(n), oracle.mul(*[oracle.sqrt(oracle.real(n))] * 2)) > 1
    ]
    yield one(
        "rounding takes the cosine beyond 1 and −1",
        [(n, n, n) for n in beyond[:3]] + [(-n, n, n) for n in beyond[3:6]],
        0.01,
        0.0,
        [0.5] * 6,
    )
    for tau in (2.0, 0.5, 0.02, 0.0156, 1e-3, 2.0**-100, 1e30):
        draws = Draws(f"score {tau}")
        columns = [_triple(draws, 1 + 6 * n) for n in range(8)]
        starts = [abs(draws.real(-4, -1)) for _ in columns]
        yield one(f"tau = {tau!r}, cosines of every size", columns, tau, 0.9, starts)
    for a in (0.0, 0.1, 1 - 2.0**-24):
        draws = Draws(f"ema {a}")
        columns = [_triple(draws, 20) for _ in range(8)]
        yield one(f"ema = {a!r}", columns, 0.7, a, [abs(draws.real(-4, -1)) for _ in columns])
    draws, found = Draws("conversions"), []
    for bits in range(1, 9):  # of H. The first sum is a tie that rounds down, and L comes too late to break it
        high = 2 ** (bits - 1) + draws.between(0, 2 ** (bits - 1) - 1)
        middle = draws.between(0, 2 ** (22 - bits)) * 2 ** (bits + 1) + 2 ** (bits - 1)
        n = (high << 38) + (middle << 14) + draws.between(1, 2**14 - 1)
        found.append((n // 2, n, n // 3 + 1))
    yield one("sums that are converted in three pieces", found, 0.3, 0.5, [0.5] * 8)
    found = []
    while len(found) < 4:  # and pieces that give another cosine when added from the other end
        n = (draws.between(1, 255) << 38) + (draws.word() >> 8 << 14) + (draws.word() >> 18)
        last = oracle.add(oracle.mul(2.0**14, float((n >> 14) % 2**24)), float(n % 2**14))
        other = oracle.add(oracle.mul(2.0**38, float(n >> 38)), last)
        if oracle.real(n) != other and oracle.div(other, 2.0**48) != oracle.cosine(n, 2**48, 2**48):
            found.append((n, 2**48, 2**48))
    yield one("sums whose pieces are added from the upper end", found, 0.3, 0.5, [0.5] * 4)


def _triple(draws: Draws, bits: int) -> tuple[int, int, int]:
    """Sums that two integer vectors could have, with a cosine anywhere in [−1, 1]."""
    x, y = (draws.word() >> 12 << bits >> 8) + 1, (draws.word() >> 12 << bits >> 8) + 1
    whole = math.isqrt(x * y)
    return (whole * draws.between(-(2**16), 2**16)) >> 16, x, y
