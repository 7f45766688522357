"""Bases and rules as plain values for files, with the names of docs/porting.md section 1."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeAlias

from magma_core.arguments import short
from magma_core.base_arguments import base_name
from magma_core.config import BASES, Base, Rule

Plain: TypeAlias = dict[str, float | bool | str]
"""Names and values that JSON can represent."""


def base_to_plain(base: Base, /) -> Plain:
    """``base`` as its ``kind``, a key of `magma_core.config.BASES`, and its numbers.

    Example:
        >>> from magma_core import SGD
        >>> base_to_plain(SGD())
        {'kind': 'sgd', 'momentum': 0.9, 'nesterov': False, 'weight_decay': 0.0}
    """
    return {"kind": base_name(base), **asdict(base)}


def base_from_plain(values: Mapping[str, Any], /) -> Base:
    """The base that `base_to_plain` described.

    Raises:
        ValueError: for an unknown kind, a missing or unknown value, or a value out of range.
        TypeError: if ``values`` is not a mapping, or a value has the wrong type.
    """
    _check_mapping("base", values)
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in BASES:
        raise ValueError(f"kind of a base must be one of {', '.join(map(repr, BASES))}, got {short(kind)}")
    return BASES[kind](**_numbers(f"base {kind!r}", BASES[kind], values, {"kind"}))


def rule_to_plain(rule: Rule, /) -> Plain:
    """The fields of ``rule``.

    Example:
        >>> from magma_core import magma
        >>> rule_to_plain(magma())["survival"]
        'p'
    """
    return asdict(rule)


def rule_from_plain(values: Mapping[str, Any], /) -> Rule:
    """The rule that `rule_to_plain` described; errors: see `base_from_plain`."""
    _check_mapping("rule", values)
    return Rule(**_numbers("rule", Rule, values, set()))


def _check_mapping(label: str, values: object) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(f"{label} must map names to values, got {short(values)}")


def _numbers(label: str, kind: type, values: Mapping[str, Any], besides: set[str]) -> dict[str, Any]:
    """All fields of ``kind``: changing a default must not change the meaning of a file."""
    names = {field.name for field in fields(kind)}
    if odd := sorted(map(str, (names | besides) ^ values.keys())):
        what = "lacks" if odd[0] in names | besides else "has an unknown"
        raise ValueError(f"{label} {what} {short(odd[0])}; it is described by {', '.join(sorted(names | besides))}")
    return {name: values[name] for name in names}
