"""The state of an optimizer in a file that every framework, and a few lines of anything, can read: docs/state.md."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from magma_core.config import Base, Rule
from magma_core.plain import base_from_plain, base_to_plain, rule_from_plain, rule_to_plain
from magma_core.saved import Saved, check_range, checked, settled
from magma_core.state import State
from magma_core.tensorfile import FilePath, TensorFile, is_counts, is_shape, parse_json, short, to_json, write_tensors

FORMAT, VERSION, SPEC = "magma-state", "1", 1
"""What a file says that it is: its name, the version of docs/state.md, and that of docs/spec.md."""

_PARAMETER = {"group", "step", "shape", "block_axes"}
_GROUP = {"seed", "base", "rule"}


def write_state(path: FilePath, parameters: Mapping[str, Saved], /) -> None:
    """Write the state of an optimizer, or replace it, at once or not at all.

    The same parameters always give the same bytes.

    Args:
        path: of the file.
        parameters: by name, at least one.

    Raises:
        ValueError, TypeError: naming the parameter, what is wrong with it and the remedy.
        OSError: if the file cannot be written. In every case, what was at ``path`` is still there.

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
    sound = {name: checked(name, saved) for name, saved in sorted(parameters.items())}
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
    """What `write_state`, or a program that follows docs/state.md, has written; all of it is checked.

    Args:
        path: of the file.

    Returns:
        What the file holds, by the names of the parameters, in their order.

    Raises:
        ValueError: naming the file, what is wrong with it, and the remedy.
        OSError: if it cannot be opened: a `FileNotFoundError` or an `IsADirectoryError`, for example.

    Example:
        See `write_state`.
    """
    with TensorFile(path) as file:
        described = _described(file)
        wanted = {
            f"{name}/{field}": shape for name, saved in described.items() for field, shape in saved.fields.items()
        }
        if odd := sorted(wanted.keys() ^ file.tensors.keys()):
            what = "lacks the tensor" if odd[0] in wanted else "has a tensor that its metadata does not call for,"
            raise file.wrong(f"{what} {odd[0]!r}: save it anew")
        for tensor, shape in wanted.items():
            if (found := file.tensors[tensor].shape) != shape:
                raise file.wrong(f"has {tensor!r} of shape {found}, not {shape}: save it anew")
        parameters = {}
        for name, saved in described.items():
            state = State(**{field: file.array(f"{name}/{field}") for field in saved.fields})
            try:
                check_range(state)
            except ValueError as error:
                raise file.wrong(f"has a parameter {name!r} of which {error}: save it anew") from None
            parameters[name] = replace(saved, state=state)
        return parameters


def _described(file: TensorFile) -> dict[str, Saved]:
    """What the metadata say of each parameter, without its state."""
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise file.wrong(
            f"has format {metadata.get('format')!r}, not {FORMAT!r}: save_state writes those that can be read"
        )
    if metadata.get("version") != VERSION:
        raise file.wrong(
            f"has version {metadata.get('version')!r}, and {VERSION!r} can be read: take a newer magma-core, or save "
            "it anew with this one"
        )
    try:
        content = parse_json(metadata.get("state", "null"))
        _check_keys("state", content, {"spec", "groups", "parameters"})
        if type(content["spec"]) is not int or content["spec"] != SPEC:
            raise ValueError(f"spec is {short(content['spec'])}, and {SPEC} can be read")
        groups, parameters = content["groups"], content["parameters"]
        if not isinstance(groups, list):
            raise ValueError(f"groups is no list, but {short(groups)}")
        if not isinstance(parameters, dict) or not parameters:
            raise ValueError(f"parameters does not describe any by name, but is {short(parameters)}")
        settings = [_group(f"group {i}", group) for i, group in enumerate(groups)]
        return {name: _parameter(name, entry, settings) for name, entry in sorted(parameters.items())}
    except (ValueError, TypeError, RecursionError) as error:  # the last from showing what is nested deeply
        raise file.wrong(f"has metadata that cannot be used ({error}): save it anew") from None


def _group(label: str, group: Any) -> tuple[int, Base, Rule]:
    _check_keys(label, group, _GROUP)
    return group["seed"], base_from_plain(group["base"]), rule_from_plain(group["rule"])


def _parameter(name: str, entry: Any, settings: list[tuple[int, Base, Rule]]) -> Saved:
    _check_keys(f"parameter {name!r}", entry, _PARAMETER)
    group, shape, axes = entry["group"], entry["shape"], entry["block_axes"]
    if type(group) is not int or not 0 <= group < len(settings):
        raise ValueError(f"group of {name!r} is {short(group)}, of {len(settings)} that there are")
    if not is_shape(shape):
        raise ValueError(f"shape of {name!r} is {short(shape)}")
    if axes is not None and not is_counts(axes):
        raise ValueError(f"block_axes of {name!r} are {short(axes)}: a list of axes, counted from 0, or null")
    seed, base, rule = settings[group]
    saved = Saved(tuple(shape), None if axes is None else tuple(axes), entry["step"], seed, base, rule, State())
    return settled(name, saved)


def _check_keys(label: str, value: Any, keys: set[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{label} is no object, but {short(value)}")
    if odd := sorted(value.keys() ^ keys):
        raise ValueError(f"{label} {'lacks' if odd[0] in keys else 'has an unknown'} {odd[0]!r}")
