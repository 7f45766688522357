"""Maps names and axes between a file and an optimizer.

The caller maps the differences between frameworks. A permutation gives the file's axis for each own axis, as in
`numpy.transpose`: own = file.transpose(permutation). Moments are transposed. Block axes are translated and keep their
order, so scores, running products and masks stay the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypedDict

from magma_core.arguments import short
from magma_core.signatures import shares_arguments
from magma_core.state_file.matching import check_names, check_options, misfit, some
from magma_core.state_file.saved import Saved, validated
from magma_core.state_file.state_file import open_state
from magma_core.state_file.tensors import FilePath

FileNames: TypeAlias = Mapping[str, str] | Callable[[str], str]
FileAxes: TypeAlias = Mapping[str, Sequence[int]] | Callable[[str, tuple[int, ...]], Sequence[int] | None]

_MOMENTS = ("mu", "nu")


class SaveOptions(TypedDict, total=False):
    """Keyword arguments of `to_file`."""

    names: FileNames | None
    axes: FileAxes | None


class LoadOptions(SaveOptions, total=False):
    """Keyword arguments of `from_file`."""

    strict: bool


def to_file(
    own: Mapping[str, Saved], /, *, names: FileNames | None = None, axes: FileAxes | None = None
) -> dict[str, Saved]:
    """An optimizer's state under the file's names and in the file's layout.

    Args:
        own: the optimizer's state, by its own names.
        names: the file's names, where they differ from the optimizer's own, which key the masks: a mapping from own
            names, or a function of one.
        axes: the file's axis for each of the optimizer's axes, where the two differ: a mapping from own names to
            permutations, or a function of name and shape that returns one, or None. ``(1, 0)`` transposes a matrix.

    Raises:
        ValueError, TypeError: if ``names`` or ``axes`` is invalid, or a parameter's state is.
    """
    called = _file_names(own, names)
    _check_known("axes", own, axes)
    sound = {name: validated(name, saved) for name, saved in own.items()}
    return {called[name]: _turned(saved, _inverse(_permutation(name, saved, axes))) for name, saved in sound.items()}


@shares_arguments(to_file)
def from_file(
    path: FilePath,
    own: Mapping[str, Saved],
    /,
    *,
    names: FileNames | None = None,
    axes: FileAxes | None = None,
    strict: bool = True,
) -> Iterator[tuple[str, Saved]]:
    """A file's state under the optimizer's names and in its layout, one parameter at a time.

    Tensors are read only after everything else matches: whatever a file claims to hold, loading takes no more memory
    than the optimizer's own state. Values are validated as they are read, so change nothing before the last one.

    Args:
        path: the file.
        own: the state that the optimizer expects, by its own names; steps and values are ignored.
        strict: whether base, rule, seed and block axes in the file must equal the optimizer's. If not, the optimizer
            continues with its own, and only fields and shapes must match.

    Raises:
        ValueError, TypeError: naming the file, the parameter, both values and the remedy.
        OSError: if the file cannot be opened.
    """
    called = _file_names(own, names)
    _check_known("axes", own, axes)
    permutations = {name: _permutation(name, wanted, axes) for name, wanted in own.items()}
    with open_state(path) as file:
        check_names(path, file.names, set(called.values()))
        found = file.described()
        for name, wanted in own.items():
            saved, permutation = found[called[name]], permutations[name]
            if not _is_turned(saved.shape, permutation, wanted.shape):
                raise misfit(
                    path,
                    f"{called[name]!r} has shape {short(saved.shape)}, of which axes {tuple(permutation)} do not make "
                    f"that of the optimizer's {name!r}, {wanted.shape}: say with axes= which of the file's axes is "
                    "which of its own",
                )
            check_options(path, name, _turned(saved, permutation), wanted, strict)
        for name, file_name in called.items():
            yield name, _turned(file.read(file_name, found[file_name]), permutations[name])


def _file_names(own: Mapping[str, Saved], names: FileNames | None) -> dict[str, str]:
    """The file's name of each parameter."""
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
    """The file's axis for each own axis."""
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


def _is_turned(shape: Sequence[int], permutation: list[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and [shape[axis] for axis in permutation] == list(wanted)


def _check_known(argument: str, own: Mapping[str, Saved], given: object) -> None:
    """Raise for a mapped name that does not exist: it is a mistake."""
    if isinstance(given, Mapping) and (unknown := [name for name in given if name not in own]):
        raise ValueError(f"{argument} has {unknown[0]!r}, which is no parameter of the optimizer; it has {some(own)}")


def _inverse(permutation: list[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


def _turned(saved: Saved, permutation: list[int]) -> Saved:
    """Moves axis permutation[i] to axis i."""
    moments = {field: getattr(saved.state, field) for field in _MOMENTS}
    return replace(
        saved,
        shape=tuple(saved.shape[axis] for axis in permutation),
        block_axes=None if saved.block_axes is None else tuple(permutation.index(axis) for axis in saved.block_axes),
        state=saved.state._replace(
            **{field: x if x is None else x.transpose(permutation) for field, x in moments.items()}
        ),
    )
