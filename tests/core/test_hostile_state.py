"""Malicious state files: none costs more than its size, and no message repeats its content unescaped."""

import json
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from portable_problem import no_tensor_may_be_read, write_claim

from magma_core import SGD, AdamW, Saved, State, dense, magma, read_state, write_state
from magma_core.state_file import tensors
from magma_core.state_file.mapping import from_file

EVIL = "\x1b[2J\r\n\u202e\x00" + "x" * 5000
"""Text that would clear a terminal, forge a line of a log, turn what follows around, and fill the screen."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


def start(shape: tuple[int, ...] = ()) -> Saved:
    return Saved(shape, (), 0, 7, AdamW(), magma(), State()).started()


def load(path: Path, own: dict[str, Saved]) -> dict[str, Saved]:
    return dict(from_file(path, own, names=None, axes=None, strict=True))


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header, what its metadata say, and the data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["state"]), raw[8 + length :]


def put_together(path: Path, header: dict[str, Any], state: Any, data: bytes) -> None:
    header = {**header, "__metadata__": {**header["__metadata__"], "state": json.dumps(state)}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# Memory


def test_a_shape_that_is_not_wanted_is_refused_before_it_is_read(path):
    """4 GiB, of which the disk has next to nothing."""
    write_claim(path)
    own = {"w": Saved((2, 3), None, 0, 0, SGD(), dense(), State())}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"'w' has shape \(32768, 32768\)"):
            load(path, own)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


OTHERS = {
    "names": ({"v": Saved((4, 4), None, 0, 0, SGD(), dense(), State())}, "no parameter of the file"),
    "base": ({"w": Saved((4, 4), None, 0, 0, SGD(momentum=0.5), dense(), State())}, "base momentum 0.9"),
    "fields": ({"w": Saved((4, 4), (), 0, 0, SGD(), magma(), State())}, "block_axes None"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_nothing_is_read_of_what_does_not_fit(monkeypatch, path, case):
    own, match = OTHERS[case]
    write_claim(path, 4)
    no_tensor_may_be_read(monkeypatch)
    with pytest.raises(ValueError, match=match):
        load(path, own)
    with pytest.raises(AssertionError, match="w/mu was read"):
        load(path, {"w": Saved((4, 4), None, 0, 0, SGD(), dense(), State())})


def test_parameters_are_read_one_at_a_time(path):
    """Who keeps a part of each, as a rank does, needs memory for one."""
    own = {f"w{i}": start((64, 1024)) for i in range(8)}
    write_state(path, own)
    size = sum(x.nbytes for x in own["w0"].state if x is not None)
    tracemalloc.start()
    try:
        for _, saved in from_file(path, own, names=None, axes=None, strict=True):
            del saved
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


# Time


def calls_in(path: Path) -> int:
    """How many functions of Python are called while a file is read: the same on every machine."""
    count = 0

    def note(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        read_state(path)
    except ValueError:
        pass
    finally:
        sys.setprofile(None)
    return count


def test_names_are_compared_before_what_is_said_of_them_is_looked_at(path):
    """Many parameters without tensors: the reader does next to nothing for each."""
    write_state(path, {"w": start()})
    header, state, data = parts(path)
    entry, many = state["parameters"]["w"], 2000
    put_together(path, header, {**state, "parameters": {f"a{i}": entry for i in range(many)}}, data)
    with pytest.raises(ValueError, match="lacks the tensors of 'a0'"):
        read_state(path)
    assert calls_in(path) < 2 * many


def test_reading_is_linear(path):
    counts = []
    for many in (200, 400):
        write_state(path, {f"w{i}": start() for i in range(many)})
        counts.append(calls_in(path))
    assert counts[1] < 2.1 * counts[0]
    assert counts[1] < 150 * 400


def test_groups_of_a_file_are_no_more_than_its_parameters(path):
    write_state(path, {"w": start()})
    header, state, data = parts(path)
    put_together(path, header, {**state, "groups": state["groups"] * 2000}, data)
    with pytest.raises(ValueError, match="there are 2000 groups for 1 parameters"):
        read_state(path)
    assert calls_in(path) < 3 * 2000 + 500  # objects of JSON, and nothing else


# The length of the header


def test_a_header_that_is_too_long_is_not_read(path):
    path.write_bytes(struct.pack("<Q", 2**26 + 1) + b"{")
    with path.open("r+b") as file:
        file.truncate(2**27)
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=f"has a header of {2**26 + 1} bytes .*, more than {2**26}: .* several files"
        ):
            read_state(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_header_that_would_be_too_long_is_not_written(monkeypatch, path):
    write_state(path, {"w": start()})
    before = path.read_bytes()
    length = struct.unpack("<Q", before[:8])[0]
    monkeypatch.setattr(tensors, "LONGEST_HEADER", length)
    write_state(path, {"w": start()})
    monkeypatch.setattr(tensors, "LONGEST_HEADER", length - 1)
    with pytest.raises(ValueError, match=f"would have {length} bytes, more than {length - 1}"):
        write_state(path, {"w": start()})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Messages


def places_in(value: Any) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, inner in items for rest in [(), *places_in(inner)]]


def changed(value: Any, place: tuple[Any, ...], evil: Any, as_key: bool) -> Any:
    """With ``evil`` at a place, or as the key of what is there."""
    first, *rest = place
    if rest:
        inner = changed(value[first], tuple(rest), evil, as_key)
    elif not as_key:
        inner = evil
    else:
        return {evil if key == first else key: x for key, x in value.items()} if isinstance(value, dict) else None
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[first] = inner
    return copied


@pytest.mark.parametrize(
    "evil", [EVIL, [EVIL] * 100, {EVIL: EVIL}, [10**400] * 20], ids=["text", "list", "object", "n"]
)
def test_what_a_file_chose_is_shown_by_its_repr_and_shortened(path, evil):
    """Wherever it stands in the header or in the metadata: names, types, shapes, kinds, versions, numbers."""
    own = {"w": start((2, 3)), "v": Saved((4,), None, 1, 3, SGD(), dense(), State(np.ones(4, np.float32)))}
    write_state(path, own)
    header, state, data = parts(path)
    refused = 0
    for in_header in (True, False):
        for place in places_in(header if in_header else state):
            for as_key in (False, True):
                if as_key and not isinstance(evil, str):
                    continue
                target = changed(header if in_header else state, place, evil, as_key)
                if target is None or (in_header and not isinstance(target.get("__metadata__"), dict)):
                    continue
                put_together(path, target if in_header else header, state if in_header else target, data)
                for read in (read_state, lambda path: load(path, own)):
                    try:
                        read(path)
                    except ValueError as error:
                        refused += 1
                        message = str(error).removeprefix(f"state file {str(path)!r} ")
                        assert message.isprintable(), (place, message)
                        assert len(message) < 700, (place, message)
                        assert ": " in message[-250:], (place, message)  # the remedy has not been cut off
    assert refused > 50


def test_a_type_that_is_unknown(path):
    write_state(path, {"w": start()})
    header, state, data = parts(path)
    header["w/mu"]["dtype"] = "F32\n\x1b[31mall is well"
    put_together(path, header, state, data)
    with pytest.raises(ValueError, match=r"has 'w/mu' as 'F32\\n\\x1b\[31mall is well', not 'F32': save it anew"):
        read_state(path)


def test_names_that_do_not_fit(path):
    write_state(path, {EVIL: start(), EVIL[1:]: start()})
    for own in ({"w": start()}, {EVIL: start()}):
        with pytest.raises(ValueError, match="does not fit") as caught:
            load(path, own)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000
