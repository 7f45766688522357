"""How a block is kept or dropped: Threefry-2x32-20 as a counter-based coin (spec section 7).

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the Random123 library.
Words are int64 arrays with values in [0, 2³²): torch lacks arithmetic on uint32, and every framework has this.
"""

import hashlib
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

from magma_core.blocks import Blocks
from magma_core.config import Rule
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real

Words: TypeAlias = tuple[Array, Array]

MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(key: Words, counter: Words, /, *, xp: Namespace) -> Words:
    """Two random words for each pair of counter words (int64 arrays that broadcast with the key's)."""
    schedule = (*key, xp.bitwise_xor(xp.bitwise_xor(key[0], key[1]), _PARITY))
    x, y = _add(counter[0], key[0], xp), _add(counter[1], key[1], xp)
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x = _add(x, y, xp)
            y = xp.bitwise_xor(_rotate(y, distance, xp), x)
        x = _add(x, schedule[(group + 1) % 3], xp)
        y = _add(y, _add(schedule[(group + 2) % 3], group + 1, xp), xp)
    return x, y


def name_words(name: str, /) -> tuple[int, int]:
    """The first eight bytes of the SHA-256 of a parameter's name as two big-endian words.

    Example:
        >>> [hex(word) for word in name_words("layers.0.attention.wq")]
        ['0x37b95727', '0xeeb7221b']
    """
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def coins(
    names: Sequence[str],
    cuts: Sequence[Blocks],
    /,
    *,
    step: int | Array,
    seed: int | Array,
    xp: Namespace,
    device: Any,
) -> Array:
    """One random word for every block of every parameter, as one vector (spec 7.2).

    Args:
        names: the parameters.
        cuts: the blocks of each.
        step: t in [1, 2³²).
        seed: in [0, 2⁶⁴).

    Returns:
        (number of all blocks,) int64, each in [0, 2³²): the first output word under the parameter's key for the
        counter (step, block index).
    """

    def words(values: Sequence[int]) -> Array:
        return xp.asarray(list(values), dtype=xp.int64, device=device)

    hashes = [name_words(name) for name in names]
    name_counter = words([high for high, _ in hashes]), words([low for _, low in hashes])
    keys = threefry2x32(_seed_words(seed, xp, device), name_counter, xp=xp)

    counts = [blocks.count for blocks in cuts]
    owner = xp.concat(
        [xp.full((count,), i, dtype=xp.int64, device=device) for i, count in enumerate(counts)], axis=0
    )
    block = xp.concat([xp.arange(count, dtype=xp.int64, device=device) for count in counts], axis=0)
    key = xp.take(keys[0], owner, axis=0), xp.take(keys[1], owner, axis=0)
    return threefry2x32(key, (_word(step, xp, device), block), xp=xp)[0]


def keep_mask(u: Array, rule: Rule, score: Real | None, /, *, xp: Namespace) -> Array:
    """(u >> 8) < round(survival · 2²⁴): the probabilities 0 and 1 are exact (spec 7.3)."""
    draw = xp.bitwise_right_shift(u, 8)
    if rule.survival == "score":
        assert score is not None
        return xp.less(draw, xp.astype((score * 2.0**24).rint().array, xp.int64))
    return xp.less(draw, round(rule.p * 2**24))


def _seed_words(seed: int | Array, xp: Namespace, device: Any) -> Words:
    if isinstance(seed, numbers.Integral):
        return _word(int(seed) >> 32, xp, device), _word(int(seed) & MASK, xp, device)
    wide = xp.astype(seed, xp.int64)
    return _word(xp.bitwise_right_shift(wide, 32), xp, device), _word(wide, xp, device)


def _word(value: int | Array, xp: Namespace, device: Any) -> Array:
    if isinstance(value, numbers.Integral):
        return xp.asarray(int(value), dtype=xp.int64, device=device)
    return xp.bitwise_and(xp.astype(value, xp.int64), MASK)


def _add(a: Array, b: Array | int, xp: Namespace) -> Array:
    return xp.bitwise_and(xp.add(a, b), MASK)


def _rotate(x: Array, distance: int, xp: Namespace) -> Array:
    high = xp.bitwise_and(xp.bitwise_left_shift(x, distance), MASK)
    return xp.bitwise_or(high, xp.bitwise_right_shift(x, 32 - distance))
