"""State files with one changed byte or entry: each must be refused or loaded, and nothing between."""

import copy
import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ODD: list[Any] = [None, True, -1, 0.5, 2**31, 2**64, 1e308, "", "x\x1b\n", [], [0, 0], {}, {"kind": "sgd"}]
"""What may stand anywhere instead of what stands there."""


def mutated_files(valid: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Some files that are almost ``valid``, the same for the same arguments."""
    rng = random.Random(seed)
    (length,) = struct.unpack("<Q", valid[:8])
    header, data = json.loads(valid[8 : 8 + length]), valid[8 + length :]
    state = json.loads(header["__metadata__"]["state"])
    for _ in range(count):
        kind = rng.choice(("flip", "flip", "cut", "header", "header", "state", "state", "state"))
        if kind == "flip":
            place, bit = rng.randrange(8 + length), rng.randrange(8)
            if rng.random() < 0.4:  # of a value: its largest bit but the sign
                place, bit = len(valid) - 4 * rng.randrange(len(data) // 4) - 1, 6
            yield valid[:place] + bytes([valid[place] ^ 1 << bit]) + valid[place + 1 :]
        elif kind == "cut":
            first, second = sorted(rng.randrange(len(valid)) for _ in range(2))
            yield valid[:first] + valid[second if rng.random() < 0.5 else len(valid) :]
        else:
            changed_header, changed_state = copy.deepcopy(header), copy.deepcopy(state)
            _change(changed_header if kind == "header" else changed_state, rng)
            if kind == "state":
                changed_header["__metadata__"]["state"] = json.dumps(changed_state)
            text = json.dumps(changed_header).encode()
            yield struct.pack("<Q", len(text)) + text + data


def check_mutated_files(
    path: Path, valid: bytes, load: Callable[[], object], remembered: Callable[[], object], count: int
) -> None:
    """Load many, and raise unless each is loaded, or refused with an error that is documented and nothing changed.

    Args:
        path: where ``load`` finds the file.
        valid: a file that has something else than what is remembered at first.
        load: loads it.
        remembered: everything that the optimizer remembers, to be compared.
        count: how many.
    """
    before, seen = remembered(), Counter[str]()
    path.write_bytes(valid)
    for file in mutated_files(valid, 15, count):
        path.write_bytes(file)
        refusal: Exception | None = None
        try:
            load()
        except (ValueError, OSError) as error:
            refusal = error
        seen["loaded" if refusal is None else "refused"] += 1
        after = remembered()
        assert refusal is None or (str(path) in str(refusal) and after == before), refusal
        before = after
    assert seen["refused"] > count // 2
    assert seen["loaded"] > 0


def _change(value: Any, rng: random.Random) -> None:
    """Replace, drop, rename or add something, somewhere in ``value``."""
    places = list(_places(value))
    inner, key = rng.choice(places)
    what = rng.choice(("replace", "replace", "drop", "add"))
    if what == "replace":
        inner[key] = rng.choice(ODD)
    elif what == "drop":
        del inner[key]
    elif isinstance(inner, dict):
        inner[rng.choice(("", "x", "mu", f"{key}/mu", "__metadata__"))] = inner[key]
    else:
        inner.append(inner[key])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
