"""Files of float32 tensors in the safetensors format, read as untrusted input (docs/state.md).

The format's own library is not used: its metadata order changes from run to run, it reads the last of two tensors of
one name, and many of its failures are not ValueErrors.
"""

import math
import os
import stat
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

from magma_core.arguments import short
from magma_core.namespace import Array
from magma_core.state_file.atomic_write import replacing
from magma_core.state_file.strict_json import is_counts, is_shape, parse_json, to_json

FilePath: TypeAlias = str | os.PathLike[str]

LONGEST_HEADER = 2**26
"""Bytes: a header of this length takes seconds and one or two gigabytes to read."""

_METADATA = "__metadata__"
_FLOAT32 = "<f4"


class Stored(NamedTuple):
    """A header's entry for a tensor; ``start`` and ``stop`` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A file with a validated header; a context in which its tensors can be read.

    Attributes:
        metadata: the file's text entries.
        tensors: the entries by tensor name.

    Raises:
        ValueError: from the constructor, if the file is not in the format.
        OSError: from the constructor, if it cannot be opened, e.g. a `FileNotFoundError` or an `IsADirectoryError`.
    """

    def __init__(self, path: FilePath, /) -> None:
        self.path = os.fspath(path)
        mode = os.stat(self.path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for its other end
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
        """A tensor as a NumPy array."""
        import numpy as np  # imported here and below, because the core imports nothing for files until asked

        _, shape, start, _ = self.tensors[name]
        array = np.empty(shape, _FLOAT32)
        self._file.seek(self._data + start)
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise self.wrong(f"ended within {short(name)}: it was written to while it was read")
        return array.astype(np.float32, copy=False)  # the host's byte order

    def wrong(self, what: str) -> ValueError:
        """The error that names the file and its fault."""
        return ValueError(f"state file {self.path!r} {what}")

    def _read_header(self, size: int) -> tuple[dict[str, str], dict[str, Stored], int]:
        if size < 8:
            raise self.wrong(f"has {size} bytes, too few for a file of tensors: save it anew")
        (length,) = struct.unpack("<Q", self._file.read(8))
        if length > size - 8:
            raise self.wrong(
                f"has a header of {length} bytes according to its first eight, but only {size} bytes in all: it is of "
                "another format, or was cut off; save it anew"
            )
        if length > LONGEST_HEADER:
            raise self.wrong(
                f"has a header of {length} bytes according to its first eight, more than {LONGEST_HEADER}: it is of "
                "another format, or has too many parameters; save them in several files"
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
            f"describes the tensor {short(name)} as {short(entry)}, not by dtype, shape and data_offsets: save it anew"
        )

    def _check_covered(self, size: int) -> None:
        """Raise unless every byte after the header belongs to exactly one tensor, all of them float32."""
        end = 0
        for name, (dtype, shape, start, stop) in sorted(self.tensors.items(), key=lambda item: item[1][2:]):
            if dtype != "F32":
                raise self.wrong(f"has {short(name)} as {short(dtype)}, not 'F32': save it anew")
            if start != end or stop - start != 4 * math.prod(shape):
                raise self.wrong(
                    f"has {short(name)}, of shape {short(shape)}, at bytes {short(start)} to {short(stop)} of {size}, "
                    f"and not in as many from {end} on: it was damaged; save it anew"
                )
            end = stop
        if end != size:
            raise self.wrong(f"has {size} bytes for tensors of {end}: it was cut off or added to; save it anew")


def write_tensors(path: FilePath, tensors: Mapping[str, Array], metadata: Mapping[str, str], /) -> None:
    """Write or replace a file atomically; the same arguments always give the same bytes.

    Args:
        path: the file.
        tensors: float32 NumPy arrays, in any layout.
        metadata: text entries.

    Raises:
        ValueError: if the header would exceed the readers' limit, or ``path`` is something other than a regular file.
        OSError: if the file cannot be written; no trace of it remains.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name, array in sorted(tensors.items()):
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + 4 * array.size]}
        end += 4 * array.size
    text = to_json(header).encode("ascii")
    text += b" " * (-len(text) % 8)  # aligns the data that follows
    if len(text) > LONGEST_HEADER:
        raise ValueError(
            f"the header of {os.fspath(path)!r} would have {len(text)} bytes, more than {LONGEST_HEADER}: split it"
        )
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in sorted(tensors.items()):
            file.write(_bytes(array))


def _bytes(array: Array) -> memoryview:
    """Row-major, little-endian bytes; all NaNs are equal (spec 1.5), so one pattern replaces them all."""
    import numpy as np

    array = np.ascontiguousarray(array, _FLOAT32).reshape(-1)
    odd = np.isnan(array)
    if odd.any():
        array = np.where(odd, np.array(0x7FC00000, "<u4").view(_FLOAT32), array)
    return array.view(np.uint8).data
