"""Keep masks: Threefry-2x32-20 as a counter-based coin (spec section 7).

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the Random123 library.
Words are int64 arrays with values in [0, 2³²): torch lacks uint32 arithmetic, and every framework has int64.
"""

import functools
import hashlib
import numbers
import operator
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

from magma_core.blocks import Blocks, Shard
from magma_core.namespace import Array, Namespace

Words: TypeAlias = tuple[Array, Array]

MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

# Python integers as a namespace: keys of constant seeds are computed once, hidden from compilers. (For a chain of
# constants, Inductor's time grows exponentially with the number of rounds.)
_PYTHON: Any = SimpleNamespace(
    add=operator.add,
    bitwise_and=operator.and_,
    bitwise_or=operator.or_,
    bitwise_xor=operator.xor,
    bitwise_left_shift=operator.lshift,
    bitwise_right_shift=operator.rshift,
)


def threefry2x32(key: Words, counter: Words, /, *, xp: Namespace) -> Words:
    """Two random words for each pair of counter words; key and counter broadcast (spec 7.1)."""
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


def mask_key(name: str, seed: int | Array, /, *, xp: Namespace) -> Words | tuple[int, int]:
    """The key of a parameter's masks: its name, encrypted under the seed (spec 7.2).

    Args:
        name: the parameter's name.
        seed: an int in [0, 2⁶⁴), or a 0-d integer array, taken modulo 2⁶⁴.
        xp: the namespace of ``seed``.

    Returns:
        Two Python integers for a Python seed, otherwise two 0-d int64 arrays.

    Example:
        >>> from magma_numpy import namespace as xp
        >>> [hex(word) for word in mask_key("layers.0.attention.wq", 7, xp=xp)]
        ['0xc597f987', '0x137b5fb1']
    """
    if isinstance(seed, numbers.Integral):
        return threefry2x32((int(seed) >> 32, int(seed) & MASK), name_words(name), xp=_PYTHON)
    wide = xp.astype(seed, xp.int64)
    seed_words = xp.bitwise_and(xp.bitwise_right_shift(wide, 32), MASK), xp.bitwise_and(wide, MASK)
    words = name_words(name)
    counter = xp.asarray(words[0], dtype=xp.int64), xp.asarray(words[1], dtype=xp.int64)
    return threefry2x32(seed_words, counter, xp=xp)


class BlockWords(NamedTuple):
    """The words that distinguish the coins of blocks: int64 arrays that broadcast to one entry per block."""

    high: Array  # key of the block's parameter
    low: Array
    index: Array  # b, within the parameter


def key_vectors(keys: Sequence[Words | tuple[int, int]], /, *, xp: Namespace, device: Any) -> Words:
    """The two key words of several parameters, each of shape (parameters,), int64.

    Args:
        keys: `mask_key` of each parameter.
        xp: the namespace of the vectors.
        device: the device of the vectors.
    """

    def vector(words: list[Any]) -> Array:
        python = all(isinstance(word, int) for word in words)
        return xp.asarray(words, dtype=xp.int64, device=device) if python else xp.stack(words)

    return vector([high for high, _ in keys]), vector([low for _, low in keys])


def block_index(blocks: Blocks, shard: Shard | None = None, /, *, xp: Namespace, device: Any) -> Array:
    """The index b of every block of a parameter, or of its part in ``shard``, in block shape (spec 3).

    Built axis by axis: a reshaped vector of all blocks could not be sharded.
    """
    index = xp.asarray(0, dtype=xp.int64, device=device)
    for axis in blocks.axes:
        along = xp.arange(blocks.shape[axis], dtype=xp.int64, device=device)
        if shard is not None:
            along = xp.add(along, shard.starts[axis])
        index = xp.add(xp.multiply(index[..., None], (shard or blocks).shape[axis]), along)
    return index


def coins(words: BlockWords, step: int | Array, /, *, xp: Namespace) -> Array:
    """One random word per block (spec 7.2).

    Args:
        words: key and index of the blocks.
        step: t in [1, 2³²), or an integer array with each block's step.
        xp: the namespace of the words.

    Returns:
        int64, in the broadcast shape of ``words``, each in [0, 2³²): the first output word under the parameter's key
        for the counter (step, block index).
    """
    if isinstance(step, numbers.Integral):
        step = xp.asarray(int(step), dtype=xp.int64, device=xp.device(words.index))
    step = xp.bitwise_and(xp.astype(step, xp.int64), MASK)
    opaque = getattr(xp, "threefry2x32", None)
    cipher = opaque if opaque is not None else functools.partial(threefry2x32, xp=xp)
    return cipher((words.high, words.low), (step, words.index))[0]


def keep_mask(u: Array, limit: int | Array, /, *, xp: Namespace) -> Array:
    """(u >> 8) < T, see `magma_core.hyperparameters.coin_limit` (spec 7.3)."""
    return xp.less(xp.bitwise_right_shift(u, 8), limit)


def _add(a: Array, b: Array | int, xp: Namespace) -> Array:
    return xp.bitwise_and(xp.add(a, b), MASK)


def _rotate(x: Array, distance: int, xp: Namespace) -> Array:
    high = xp.bitwise_and(xp.bitwise_left_shift(x, distance), MASK)
    return xp.bitwise_or(high, xp.bitwise_right_shift(x, 32 - distance))
