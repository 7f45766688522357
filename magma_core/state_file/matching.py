"""Checks that a state file matches the optimizer."""

import heapq
import os
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from magma_core.arguments import short
from magma_core.namespace import Array
from magma_core.state import POWERS
from magma_core.state_file.config import Plain, base_to_plain, rule_to_plain
from magma_core.state_file.saved import Saved
from magma_core.state_file.tensors import FilePath


def check_names(path: FilePath, there: Set[str], wanted: Set[str], /) -> None:
    """Raise unless the file holds exactly the expected parameters."""
    for missing, others, where in ((wanted - there, there, "the file"), (there - wanted, wanted, "the optimizer")):
        if missing:
            raise misfit(
                path,
                f"{short(min(missing))} is no parameter of {where}, which has {some(others)}: map the optimizer's "
                "names to the file's with names=",
            )


def check_options(path: FilePath, name: str, saved: Saved, wanted: Saved, strict: bool, /) -> None:
    """Raise unless a parameter's state has the expected fields and, if ``strict``, the expected options.

    An unmasked parameter does not use a seed.
    """
    options = (
        ("block_axes", saved.block_axes, wanted.block_axes),
        *([("seed", saved.seed, wanted.seed)] if wanted.block_axes is not None else []),
        *_pairs("base", base_to_plain(saved.base), base_to_plain(wanted.base)),
        *_pairs("rule", rule_to_plain(saved.own_rule), rule_to_plain(wanted.own_rule)),
    )
    for option, there, here in options if strict else ():
        if there != here:
            raise misfit(
                path,
                f"{name!r} was saved with {option} {there!r}, the optimizer has {here!r}: make it with the file's, or "
                "load with strict=False to go on with its own",
            )
    if saved.fields != wanted.fields:
        raise misfit(
            path,
            f"the state of {name!r} has {saved.fields}, the optimizer's {wanted.fields}: give it the base, the "
            "rule and the block axes of the file",
        )


class History(NamedTuple):
    """The history shared by all parameters, for frameworks that step them together."""

    step: int
    powers: dict[str, Array]  # running products, if any


def shared_history(path: FilePath, parameters: Mapping[str, Saved], /, *, most: int) -> History:
    """The common history of all parameters.

    Args:
        path: the file, for messages.
        parameters: at least one.
        most: the largest step count that the optimizer can represent.

    Raises:
        ValueError: if there is no parameter, or two have different histories; names both.
    """
    first, *others = parameters.items()
    for field in ("step", *POWERS):
        value = _of(first[1], field)
        for name, saved in others:
            if (other := _of(saved, field)) != value:
                raise misfit(
                    path,
                    f"{field} of {first[0]!r} is {value}, that of {name!r} {other}: this optimizer steps all of its "
                    "parameters together, and can go on only from where all of them have taken the same steps",
                )
    step = first[1].step
    if step > most:
        raise misfit(path, f"{step} steps have been done, and this optimizer counts to {most}: go on in PyTorch")
    kept = first[1].state._asdict()
    powers = {field: kept[field] for field in POWERS if kept[field] is not None}
    return History(step, powers)


def misfit(path: FilePath, what: str, /) -> ValueError:
    """The error that says which part of a file does not match."""
    return ValueError(f"state file {os.fspath(path)!r} does not fit: {what}")


def some(names: Iterable[str], /) -> str:
    """The first few of ``names``, for messages."""
    few = heapq.nsmallest(9, names)
    return ", ".join(map(short, few[:8])) + (", …" if len(few) > 8 else "")


def _pairs(label: str, there: Plain, here: Plain) -> list[tuple[str, Any, Any]]:
    return [(f"{label} {key}", there.get(key), here.get(key)) for key in (*here, *(there.keys() - here.keys()))]


def _of(saved: Saved, field: str) -> Any:
    if field == "step":
        return saved.step
    power = getattr(saved.state, field)
    return None if power is None else float(power)
