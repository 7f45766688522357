"""Files of float32 tensors in the safetensors format, read as what a stranger may have made (docs/state.md).

The format's own library is not used: it writes metadata in an order that changes from run to run, reads the last of
two tensors of one name, and fails in many ways that are no ValueError.
"""

import json
import math
import os
import reprlib
import secrets
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

from magma_core.namespace import Array

FilePath: TypeAlias = str | os.PathLike[str]

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own readers refuse more."""

_METADATA = "__metadata__"
_FLOAT32 = "<f4"


class Stored(NamedTuple):
    """What a header says of a tensor; ``start`` and ``stop`` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A file whose header has been read and found sound; a context in which its tensors can be read.

    Attributes:
        metadata: its text entries.
        tensors: by name.

    Raises:
        ValueError: from the constructor, if it is not in the format.
        OSError: likewise, if it cannot be opened: a `FileNotFoundError` or an `IsADirectoryError`, for example.
    """

    def __init__(self, path: FilePath, /) -> None:
        self.path = os.fspath(path)
        mode = os.stat(self.path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # to open a pipe would wait for its other end
            raise ValueError(f"{self.path!r} is no regular file: copy what it gives into one")
        self._file = open(self.path, "rb")  # noqa: SIM115
        try:
            size = os.fstat(self._file.fileno()).st_size
            self.metadata, self.tensors, self._data = self._read_header(size)
            self._check_covered(size - self._data)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def array(self, name: str) -> Array:
        """A tensor, as a NumPy array."""
        import numpy as np  # here and below, for the core imports nothing unless it is asked for files

        _, shape, start, _ = self.tensors[name]
        array = np.empty(shape, _FLOAT32)
        self._file.seek(self._data + start)
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise self.wrong(f"ended within {name!r}: it was written to while it was read")
        return array.astype(np.float32, copy=False)  # the host's own order of bytes

    def wrong(self, what: str) -> ValueError:
        """The error that says what is wrong with the file."""
        what = what if len(what) <= 600 else f"{what[:600]}…"  # a stranger chose it
        return ValueError(f"state file {self.path!r} {what}")

    def _read_header(self, size: int) -> tuple[dict[str, str], dict[str, Stored], int]:
        if size < 8:
            raise self.wrong(f"has {size} bytes, too few for a file of tensors: save it anew")
        (length,) = struct.unpack("<Q", self._file.read(8))
        if length > min(size - 8, LONGEST_HEADER):
            raise self.wrong(
                f"has a header of {length} bytes according to its first eight, but {size} bytes in all, or more than "
                f"{LONGEST_HEADER}: it is of another format, or was cut off; save it anew"
            )
        raw = self._file.read(length)
        try:
            if raw[:1] != b"{":
                raise ValueError("it does not begin with '{'")
            header = parse_json(raw.decode("utf-8"))
        except ValueError as error:
            raise self.wrong(f"has a header that cannot be read ({error}): save it anew") from None
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise self.wrong(
                f"has a {_METADATA} that does not map names to text, but is {short(metadata)}: save it anew"
            )
        return metadata, {name: self._stored(name, entry) for name, entry in header.items()}, 8 + length

    def _stored(self, name: str, entry: Any) -> Stored:
        if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
            dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
            if isinstance(dtype, str) and is_shape(shape) and is_counts(offsets) and len(offsets) == 2:
                return Stored(dtype, tuple(shape), *offsets)
        raise self.wrong(
            f"describes the tensor {name!r} as {short(entry)}, not by dtype, shape and data_offsets: save it anew"
        )

    def _check_covered(self, size: int) -> None:
        """Raise unless every byte after the header belongs to exactly one tensor, all of them float32."""
        end = 0
        for name, (dtype, shape, start, stop) in sorted(self.tensors.items(), key=lambda item: item[1][2:]):
            if dtype != "F32":
                raise self.wrong(f"has {name!r} as {dtype}, not F32: save it anew")
            if start != end or stop - start != 4 * math.prod(shape):
                raise self.wrong(
                    f"has {name!r}, of shape {shape}, at bytes {start} to {stop} of {size}, and not in as many from "
                    f"{end} on: it was damaged; save it anew"
                )
            end = stop
        if end != size:
            raise self.wrong(f"has {size} bytes for tensors of {end}: it was cut off or added to; save it anew")


def write_tensors(path: FilePath, tensors: Mapping[str, Array], metadata: Mapping[str, str], /) -> None:
    """Write a file, or replace it, at once or not at all; the same arguments always give the same bytes.

    Args:
        path: of the file.
        tensors: float32 NumPy arrays, in any layout.
        metadata: text entries.

    Raises:
        ValueError: if the header would be longer than readers take, or ``path`` is something but a regular file.
        OSError: if the file cannot be written; there is no trace of it then.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name, array in sorted(tensors.items()):
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + 4 * array.size]}
        end += 4 * array.size
    text = to_json(header).encode("ascii")
    text += b" " * (-len(text) % 8)  # so that what follows is aligned
    target = Path(os.path.realpath(path))  # a link stays one
    if len(text) > LONGEST_HEADER:
        raise ValueError(
            f"the header of {str(target)!r} would have {len(text)} bytes, more than {LONGEST_HEADER}: split it"
        )
    if target.exists() and not target.is_file() and not target.is_dir():
        raise ValueError(f"{str(target)!r} is no regular file: choose another path")
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, array in sorted(tensors.items()):
                file.write(_bytes(array))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _bytes(array: Array) -> memoryview:
    """Row-major and little-endian; all NaNs are equal (spec 1.5), so that one stands for them."""
    import numpy as np

    array = np.ascontiguousarray(array, _FLOAT32).reshape(-1)
    odd = np.isnan(array)
    if odd.any():
        array = np.where(odd, np.array(0x7FC00000, "<u4").view(_FLOAT32), array)
    return array.view(np.uint8).data


def to_json(value: Any, /) -> str:
    """JSON in which the same value has always the same characters, all of them ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: str, /) -> dict[str, Any]:
    """An object of JSON; ValueError if it is none, and for what only some readers take: NaN, keys that are repeated."""
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no object of JSON")
    return value


def short(value: Any, /) -> str:
    """What a stranger chose, cut to a length that a message can have."""
    return reprlib.repr(value)


def is_counts(value: Any, /) -> bool:
    """Whether ``value`` is a list of integers that are not negative."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def is_shape(value: Any, /) -> bool:
    """Whether ``value`` is the shape of an array that could be made."""
    return is_counts(value) and len(value) <= 64 and math.prod(max(n, 1) for n in value) < 2**61


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has the key {key!r} twice")
        found[key] = value
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"it has the constant {constant}")
