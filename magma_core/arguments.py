"""Checks of single arguments. Each error names the argument, its value and the remedy."""

import math
import numbers
import reprlib
from collections.abc import Sequence

LARGEST = (2.0 - 2.0**-23) * 2.0**127
"""The largest finite binary32."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 8


def short(value: object, /) -> str:
    """``value`` for messages: its repr on one line, shortened, without terminal control characters."""
    text = _REPR.repr(value)
    if not text.isprintable():  # arrays print several lines; other objects print anything
        text = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    return text if len(text) <= 240 else f"{text[:160]} … {text[-70:]}"


def check_number(name: str, value: object) -> float:
    """Return ``value`` as a float; TypeError if it is not a real number, ValueError if it is NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {short(value)} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite in float32, got {short(value)}") from None
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, got nan")
    return number


def check_interval(name: str, value: object, low: float, high: float | None) -> None:
    """Raise unless ``low`` ≤ ``value`` ≤ ``high``; without ``high``, unless ``value`` is finite in binary32."""
    number = check_number(name, value)
    if high is None:
        if not low <= number <= LARGEST:
            raise ValueError(f"{name} must be at least {low:.6g} and finite in float32, got {short(value)}")
    elif not low <= number <= high:
        raise ValueError(f"{name} must lie in [{low:.9g}, {high:.9g}], got {short(value)}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {short(value)}")


def check_integer(name: str, value: object, low: int, high: int, remedy: str) -> None:
    """Raise unless ``value`` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {short(value)} of type {type(value).__name__}")
    if not low <= int(value) <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], got {short(value)}: {remedy}")


def check_flag(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {short(value)}")
