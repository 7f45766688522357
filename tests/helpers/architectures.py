"""The parameters of common architectures, and which of them `attention_and_mlp` is to mask."""

from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """A parameter of an architecture, and the selection that is right for it."""

    name: str  # with dots
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None
    unclear: bool
    by_class: bool  # names alone do not tell


def _row(line: str) -> Row:
    mark, name, shape, *note = line.split()
    axes = {"+": (), "0": (0,)}.get(mark)
    assert mark in "+0?-", line
    return Row(name, tuple(map(int, shape.split("x"))), axes, mark == "?", note == ["class"])


def _read() -> dict[str, list[Row]]:
    text = Path(__file__).with_name("architectures.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, list[Row]] = {}
    for line in text:
        if line.startswith("#") or not line:
            continue
        if " " not in line:
            rows = found[line] = []
        else:
            rows.append(_row(line))
    return found


ARCHITECTURES = _read()


def named(architecture: str) -> list[Row]:
    """The rows that names alone decide."""
    return [row for row in ARCHITECTURES[architecture] if not row.by_class]


def has_none(rows: list[Row]) -> bool:
    """Whether nothing of this is masked, so that an adapter raises."""
    return all(row.axes is None for row in rows)
