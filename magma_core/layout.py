"""Between a file and an optimizer: whose state is whose, which axis is which, and whether the two fit.

The caller maps what differs between frameworks. A permutation says of each own axis which of the file's it is, as
`numpy.transpose` takes it: own = file.transpose(permutation). Moments are transposed. Block axes are translated and
keep their order, so that scores, running products and masks are what they were.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from magma_core.namespace import Array
from magma_core.plain import Plain, base_to_plain, rule_to_plain
from magma_core.saved import Saved, checked
from magma_core.tensorfile import FilePath

FileNames: TypeAlias = Mapping[str, str] | Callable[[str], str]
FileAxes: TypeAlias = Mapping[str, Sequence[int]] | Callable[[str, tuple[int, ...]], Sequence[int] | None]

_MOMENTS = ("mu", "nu")


def to_file(own: Mapping[str, Saved], /, *, names: FileNames | None, axes: FileAxes | None) -> dict[str, Saved]:
    """What an optimizer remembers, by its own names and in its own layout, as it stands in a file.

    Raises:
        ValueError, TypeError: if ``names`` or ``axes`` cannot be, or what is remembered of a parameter.
    """
    called = _file_names(own, names)
    _check_known("axes", own, axes)
    sound = {name: checked(name, saved) for name, saved in own.items()}
    return {called[name]: _turned(saved, _inverse(_permutation(name, saved, axes))) for name, saved in sound.items()}


def from_file(
    path: FilePath,
    found: Mapping[str, Saved],
    own: Mapping[str, Saved],
    /,
    *,
    names: FileNames | None,
    axes: FileAxes | None,
    strict: bool,
) -> dict[str, Saved]:
    """What a file holds for an optimizer, by its own names and in its own layout, checked.

    Args:
        path: of the file, for messages.
        found: what it holds.
        own: what the optimizer wants, by its own names; steps and states are not looked at.
        names: see `magma_core.layout`.
        axes: likewise.
        strict: whether base, rule, seed and block axes have to be the optimizer's. Otherwise, only the fields and
            shapes of the state.

    Raises:
        ValueError, TypeError: naming the file, the parameter, both values and the remedy.
    """
    called = _file_names(own, names)
    _check_known("axes", own, axes)
    wanted_names = set(called.values())
    for missing, there, where in (
        (wanted_names - found.keys(), found, "the file"),
        (found.keys() - wanted_names, wanted_names, "the optimizer"),
    ):
        if missing:
            raise _misfit(
                path,
                f"{min(missing)!r} is no parameter of {where}, which has {_some(there)}: map the optimizer's names to "
                "the file's with names=",
            )
    fitting = {}
    for name, wanted in own.items():
        permutation = _permutation(name, wanted, axes)
        saved = found[called[name]]
        turned_shape = [saved.shape[axis] for axis in permutation] if len(saved.shape) == len(permutation) else None
        if turned_shape != list(wanted.shape):
            raise _misfit(
                path,
                f"{called[name]!r} has shape {saved.shape}, of which axes {tuple(permutation)} do not make that of the "
                f"optimizer's {name!r}, {wanted.shape}: say with axes= which of the file's axes is which of its own",
            )
        fitting[name] = turned = _turned(saved, permutation)
        if strict:
            _check_same(path, name, turned, wanted)
        if turned.fields != wanted.fields:
            raise _misfit(
                path,
                f"the state of {name!r} has {turned.fields}, the optimizer's {wanted.fields}: give it the base, the "
                "rule and the block axes of the file",
            )
    return fitting


class History(NamedTuple):
    """What all parameters share in frameworks whose steps are of all of them."""

    step: int
    powers: dict[str, Array]  # running products, as far as there are any


def shared_history(path: FilePath, parameters: Mapping[str, Saved], /, *, most: int) -> History:
    """The history that all parameters have.

    Args:
        path: of the file, for messages.
        parameters: at least one.
        most: the largest step that the optimizer counts to.

    Raises:
        ValueError: if there is none, or two have different ones: naming both.
    """
    first, *others = parameters.items()
    for field in ("step", "mu_power", "nu_power"):
        value = _of(first[1], field)
        for name, saved in others:
            if (other := _of(saved, field)) != value:
                raise _misfit(
                    path,
                    f"{field} of {first[0]!r} is {value}, that of {name!r} {other}: this optimizer steps all of its "
                    "parameters together, and can go on only from where all of them have taken the same steps",
                )
    step = first[1].step
    if step > most:
        raise _misfit(path, f"{step} steps have been done, and this optimizer counts to {most}: go on in PyTorch")
    kept = first[1].state._asdict()
    powers = {field: kept[field] for field in ("mu_power", "nu_power") if kept[field] is not None}
    return History(step, powers)


def _check_same(path: FilePath, name: str, saved: Saved, wanted: Saved) -> None:
    """Raise unless the file's options are the optimizer's; a parameter that is not masked has no use for a seed."""
    for option, there, here in (
        ("block_axes", saved.block_axes, wanted.block_axes),
        *([("seed", saved.seed, wanted.seed)] if wanted.block_axes is not None else []),
        *_pairs("base", base_to_plain(saved.base), base_to_plain(wanted.base)),
        *_pairs("rule", rule_to_plain(saved.own_rule), rule_to_plain(wanted.own_rule)),
    ):
        if there != here:
            raise _misfit(
                path,
                f"{name!r} was saved with {option} {there!r}, the optimizer has {here!r}: make it with the file's, or "
                "load with strict=False to go on with its own",
            )


def _pairs(label: str, there: Plain, here: Plain) -> list[tuple[str, Any, Any]]:
    return [(f"{label} {key}", there.get(key), here.get(key)) for key in (*here, *(there.keys() - here.keys()))]


def _misfit(path: FilePath, what: str) -> ValueError:
    return ValueError(f"state file {os.fspath(path)!r} does not fit: {what}")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")


def _of(saved: Saved, field: str) -> Any:
    return saved.step if field == "step" else None if (x := getattr(saved.state, field)) is None else float(x)


def _file_names(own: Mapping[str, Saved], names: FileNames | None) -> dict[str, str]:
    """The name in the file of each parameter."""
    if names is not None and not callable(names) and not isinstance(names, Mapping):
        raise TypeError(
            f"names must map the optimizer's names to the file's, or be a function that does, got {names!r}"
        )
    _check_known("names", own, names)
    called = {
        name: names(name) if callable(names) else name if names is None else names.get(name, name) for name in own
    }
    owners: dict[str, str] = {}
    for name, file_name in called.items():
        if not isinstance(file_name, str):
            raise TypeError(f"names must give strings, got {file_name!r} for {name!r}")
        if file_name in owners:
            raise ValueError(
                f"names gives {file_name!r} for both {owners[file_name]!r} and {name!r}: give each parameter its own"
            )
        owners[file_name] = name
    return called


def _permutation(name: str, own: Saved, axes: FileAxes | None) -> list[int]:
    """For each own axis the file's."""
    if axes is not None and not callable(axes) and not isinstance(axes, Mapping):
        raise TypeError(
            f"axes must map the optimizer's names to permutations, or be a function that does, got {axes!r}"
        )
    rank = len(own.shape)
    given = None if axes is None else axes(name, own.shape) if callable(axes) else axes.get(name)
    if given is None:
        return list(range(rank))
    try:
        if sorted(given) == list(range(rank)):
            return [int(axis) for axis in given]
    except TypeError:
        pass
    raise ValueError(
        f"axes must give {name!r}, of shape {own.shape}, a permutation of its {rank} axes such as "
        f"{tuple(reversed(range(rank)))}, got {given!r}"
    )


def _check_known(argument: str, own: Mapping[str, Saved], given: object) -> None:
    """A name that is mapped and is not there is a mistake."""
    if isinstance(given, Mapping) and (unknown := [name for name in given if name not in own]):
        raise ValueError(f"{argument} has {unknown[0]!r}, which is no parameter of the optimizer; it has {_some(own)}")


def _inverse(permutation: list[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


def _turned(saved: Saved, permutation: list[int]) -> Saved:
    """With axis i that which was permutation[i]."""
    moments = {field: getattr(saved.state, field) for field in _MOMENTS}
    return replace(
        saved,
        shape=tuple(saved.shape[axis] for axis in permutation),
        block_axes=None if saved.block_axes is None else tuple(permutation.index(axis) for axis in saved.block_axes),
        state=saved.state._replace(
            **{field: x if x is None else x.transpose(permutation) for field, x in moments.items()}
        ),
    )
