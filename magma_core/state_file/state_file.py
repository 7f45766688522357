"""An optimizer's state in a file that every framework, and a few lines of any language, can read: docs/state.md."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from magma_core.arguments import short
from magma_core.config import Base, Rule
from magma_core.state import State
from magma_core.state_file.config import base_from_plain, base_to_plain, rule_from_plain, rule_to_plain
from magma_core.state_file.saved import Saved, check_range, normalized, validated
from magma_core.state_file.strict_json import is_counts, is_shape, parse_json, to_json
from magma_core.state_file.tensors import FilePath, Stored, TensorFile, write_tensors

FORMAT, VERSION, SPEC = "magma-state", "1", 1
"""The identification in a file: its name, the version of docs/state.md, and the version of docs/spec.md."""

_PARAMETER = {"group", "step", "shape", "block_axes"}
_GROUP = {"seed", "base", "rule"}


def write_state(path: FilePath, parameters: Mapping[str, Saved], /) -> None:
    """Write or replace a state file atomically.

    The same parameters always give the same bytes.

    Args:
        path: the file.
        parameters: the saved state of each parameter by name, at least one.

    Raises:
        ValueError, TypeError: naming the parameter, the fault and the remedy.
        OSError: if the file cannot be written. After any error, the former file at ``path`` is still there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from magma_core import AdamW, Saved, State, magma, read_state, write_state
        >>> start = Saved((4, 3), (0,), 0, 7, AdamW(), magma(), State()).started()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_state(Path(folder) / "state.safetensors", {"w": start})
        ...     found = read_state(Path(folder) / "state.safetensors")
        >>> found["w"].state.score
        array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    if not isinstance(parameters, Mapping) or not all(isinstance(name, str) for name in parameters):
        raise TypeError(f"parameters must map names to what is saved, got {short(parameters)}")
    if not parameters:
        raise ValueError("there must be at least one parameter to save")
    sound = {name: validated(name, saved) for name, saved in sorted(parameters.items())}
    groups: list[Any] = []
    described = {}
    for name, saved in sound.items():
        group = {"seed": saved.seed, "base": base_to_plain(saved.base), "rule": rule_to_plain(saved.rule)}
        if group not in groups:
            groups.append(group)
        axes = saved.block_axes if saved.block_axes is None else list(saved.block_axes)
        described[name] = {
            "group": groups.index(group),
            "step": saved.step,
            "shape": list(saved.shape),
            "block_axes": axes,
        }
    text = to_json({"spec": SPEC, "groups": groups, "parameters": described})
    tensors = {
        f"{name}/{field}": getattr(saved.state, field) for name, saved in sound.items() for field in saved.fields
    }
    write_tensors(path, tensors, {"format": FORMAT, "version": VERSION, "state": text})


def read_state(path: FilePath, /) -> dict[str, Saved]:
    """Read and validate a file from `write_state`, or from any program that follows docs/state.md.

    Args:
        path: the file.

    Returns:
        The saved state of each parameter by name, in the order of the file.

    Raises:
        ValueError: naming the file, the fault and the remedy.
        OSError: if it cannot be opened, e.g. a `FileNotFoundError` or an `IsADirectoryError`.

    Example:
        See `write_state`.
    """
    with open_state(path) as file:
        return {name: file.read(name, saved) for name, saved in file.described().items()}


@contextmanager
def open_state(path: FilePath, /) -> Iterator["StateFile"]:
    """An open file whose tensors have not been read yet; errors: see `read_state`."""
    with TensorFile(path) as file:
        yield StateFile(file)


class StateFile:
    """The parameters of an open file; tensors are read one parameter at a time.

    The file may come from an untrusted source. Cheap checks come first: names before descriptions, descriptions before
    tensors. A reader that knows the expected parameters spends no more time and memory than they need.

    Args:
        file: must stay open while this is used.

    Attributes:
        names: the parameters' names.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._check_kind()
        try:
            self._content = parse_json(file.metadata.get("state", "null"))
            _check_keys("state", self._content, {"spec", "groups", "parameters"})
            _check_content(**self._content)
        except ValueError as error:
            raise self._unusable(error) from None
        self.names = self._content["parameters"].keys()
        self._tensors: dict[str, dict[str, Stored]] = {}
        for tensor, stored in file.tensors.items():
            name, slash, field = tensor.rpartition("/")
            if not slash:
                raise file.wrong(f"has a tensor {short(tensor)}, which is no parameter's: save it anew")
            self._tensors.setdefault(name, {})[field] = stored
        if lacking := self.names - self._tensors.keys():
            raise file.wrong(f"lacks the tensors of {short(min(lacking))}: save it anew")
        if odd := self._tensors.keys() - self.names:
            raise file.wrong(f"has tensors that its metadata do not call for, of {short(min(odd))}: save it anew")

    def described(self) -> dict[str, Saved]:
        """All parameters without their states, sorted by name; validated, with their tensors' shapes."""
        try:
            settings = [_group(f"group {i}", group) for i, group in enumerate(self._content["groups"])]
            entries = sorted(self._content["parameters"].items())
            found = {name: _parameter(name, entry, settings) for name, entry in entries}
        except (ValueError, TypeError) as error:
            raise self._unusable(error) from None
        for name, saved in found.items():
            fields, tensors = saved.fields, self._tensors[name]
            if odd := fields.keys() ^ tensors.keys():
                what = "lacks the tensor" if min(odd) in fields else "has a tensor that its metadata do not call for,"
                raise self._file.wrong(f"{what} {short(f'{name}/{min(odd)}')}: save it anew")
            for field, shape in fields.items():
                if (there := tensors[field].shape) != shape:
                    raise self._file.wrong(
                        f"has {short(f'{name}/{field}')} of shape {short(there)}, not {short(shape)}: save it anew"
                    )
        return found

    def read(self, name: str, saved: Saved, /) -> Saved:
        """``saved``, one result of `described`, with its state."""
        state = State(**{field: self._file.array(f"{name}/{field}") for field in saved.fields})
        try:
            check_range(state)
        except ValueError as error:
            raise self._file.wrong(f"has a parameter {short(name)} of which {error}: save it anew") from None
        return replace(saved, state=state)

    def _check_kind(self) -> None:
        metadata = self._file.metadata
        if metadata.get("format") != FORMAT:
            raise self._file.wrong(
                f"has format {short(metadata.get('format'))}, not {FORMAT!r}: save_state writes those that can be read"
            )
        if metadata.get("version") != VERSION:
            raise self._file.wrong(
                f"has version {short(metadata.get('version'))}, and {VERSION!r} can be read: take a newer magma-optim, "
                "or save it anew with this one"
            )

    def _unusable(self, error: Exception) -> ValueError:
        return self._file.wrong(f"has metadata that cannot be used ({error}): save it anew")


def _check_content(spec: Any, groups: Any, parameters: Any) -> None:
    if type(spec) is not int or spec != SPEC:
        raise ValueError(f"spec is {short(spec)}, and {SPEC} can be read")
    if not isinstance(groups, list):
        raise ValueError(f"groups is no list, but {short(groups)}")
    if not isinstance(parameters, dict) or not parameters:
        raise ValueError(f"parameters does not describe any by name, but is {short(parameters)}")
    if len(groups) > len(parameters):
        raise ValueError(f"there are {len(groups)} groups for {len(parameters)} parameters: more than can be used")


def _group(label: str, group: Any) -> tuple[int, Base, Rule]:
    _check_keys(label, group, _GROUP)
    return group["seed"], base_from_plain(group["base"]), rule_from_plain(group["rule"])


def _parameter(name: str, entry: Any, settings: Sequence[tuple[int, Base, Rule]]) -> Saved:
    if not isinstance(entry, dict) or entry.keys() != _PARAMETER:
        _check_keys(f"parameter {short(name)}", entry, _PARAMETER)
    group, shape, axes = entry["group"], entry["shape"], entry["block_axes"]
    if type(group) is not int or not 0 <= group < len(settings):
        raise ValueError(f"group of {short(name)} is {short(group)}, of {len(settings)} that there are")
    if not is_shape(shape):
        raise ValueError(f"shape of {short(name)} is {short(shape)}")
    if axes is not None and not is_counts(axes):
        raise ValueError(f"block_axes of {short(name)} are {short(axes)}: a list of axes, counted from 0, or null")
    seed, base, rule = settings[group]
    saved = Saved(tuple(shape), None if axes is None else tuple(axes), entry["step"], seed, base, rule, State())
    return normalized(name, saved)


def _check_keys(label: str, value: Any, keys: set[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{label} is no object, but {short(value)}")
    if odd := value.keys() ^ keys:
        raise ValueError(f"{label} {'lacks' if min(odd) in keys else 'has an unknown'} {short(min(odd))}")
