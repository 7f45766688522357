"""JSON that every reader parses alike: what only some accept is rejected."""

import json
import math
from collections import Counter
from typing import Any

from magma_core.arguments import short


def to_json(value: Any, /) -> str:
    """JSON that is unique for each value, in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: str, /) -> dict[str, Any]:
    """Parse a JSON object; ValueError for anything else, and for NaN, infinities and repeated keys."""
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no object of JSON")
    return value


def is_counts(value: Any, /) -> bool:
    """Whether ``value`` is a list of non-negative integers."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def is_shape(value: Any, /) -> bool:
    """Whether ``value`` is a shape that an array could have."""
    return is_counts(value) and len(value) <= 64 and math.prod([n or 1 for n in value]) < 2**61


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        again, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has the key {short(again)} twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"it has the constant {constant}")
