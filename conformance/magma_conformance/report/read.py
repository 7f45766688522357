"""Reads the report of a run, of this version or an older one, and says what is wrong with what is not one."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from magma_conformance.report.report import STATUSES
from magma_conformance.versions import SUITE_VERSION
from magma_conformance.wire.untrusted import open_foreign, shown

_MOST = 2**28  # bytes of a report; one of all modes has half a million
_LARGEST = 1e100  # of any number in a report; JSON would allow for numbers that a float cannot hold
_TEXTS = {"*": str}
_DIFFERENCE = {
    "what": str,
    "index": (list, tuple, None),
    "expected": str,
    "actual": str,
    "ulp": (int, None),
    "count": int,
}
_RESULT = {
    "mode": str,
    "case": str,
    "column": str,
    "status": set(STATUSES),
    "seconds": float,
    "steps": int,
    "reason": str,
    "mismatch?": {"step": int, "array": str, "difference": _DIFFERENCE},
    "flags?": [str],
    "digest?": str,
}
_REPORT = {
    "vectors_version?": int,
    "spec_version?": int,
    "date?": str,
    "environment": {
        "python": str,
        "system": str,
        "machine": str,
        "processor": str,
        "versions": _TEXTS,
        "devices": _TEXTS,
        "drivers?": _TEXTS,
    },
    "absent": _TEXTS,
    "absent_details?": _TEXTS,
    "failures": [str],
    "losses": [(float, None)],
    "inputs?": _TEXTS,
    "results": [_RESULT],
}
"""What must be there to show a report; "?" may be missing or null, "*" is any key. Sums are not read but made anew."""


def read_report(file: Path) -> dict[str, Any]:
    """The report in a file.

    Args:
        file: written by ``magma-conformance run --json``.

    Raises:
        ValueError: if it cannot be read or is no such report; the message names the file and what is wrong.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "report.json"
        ...     file.write_text("{}")
        ...     read_report(file)
        Traceback (most recent call last):
        ...
        ValueError: ...report.json: not a report: "suite" is not "magma-conformance"; ...
    """
    remedy = "; make one with: magma-conformance run --json FILE"
    try:
        with open_foreign(file, _MOST) as stream:
            report = json.loads(stream.read(_MOST), parse_constant=_no_constant)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}{remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}{remedy}") from error
    try:
        check_report(report)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return report


def check_report(report: Any) -> None:
    """See that a report has what the page shows, whichever version of the suite wrote it.

    Raises:
        ValueError: if it has not; the message says where and what, and what to do.
    """
    remedy = "make one with: magma-conformance run --json FILE"
    if not isinstance(report, Mapping) or report.get("suite") != "magma-conformance":
        raise ValueError(f'not a report: "suite" is not "magma-conformance"; {remedy}')
    version = report.get("suite_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"suite_version: {reprlib.repr(version)} is not a version; {remedy}")
    if version > SUITE_VERSION:
        raise ValueError(
            f"suite_version: {version} is newer than this suite's {SUITE_VERSION}; update magma-optim to read it"
        )
    try:
        _match(report, _REPORT, "")
    except ValueError as error:
        raise ValueError(f"not a report: {error}; {remedy}") from None


def _match(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: must be an object")
        for key, inner in shape.items():
            for name in value if key == "*" else [key.removesuffix("?")]:
                if key.endswith("?") and value.get(name) is None:
                    continue
                place = f"{where}.{shown(name)}".removeprefix(".")
                if name not in value:
                    raise ValueError(f"{place}: is missing")
                _match(value[name], inner, place)
    elif isinstance(shape, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: must be a list")
        for i, element in enumerate(value):
            _match(element, shape[0], f"{where}[{i}]")
    elif not any(_is(value, kind) for kind in (shape if isinstance(shape, tuple) else (shape,))):
        raise ValueError(f"{where}: {reprlib.repr(value)} is not what belongs there")


def _is(value: Any, kind: type | set[str] | None) -> bool:
    if isinstance(kind, set):
        return isinstance(value, str) and value in kind
    if kind is None or value is None or isinstance(value, bool):
        return kind is None and value is None
    if kind is float:
        return isinstance(value, int | float) and abs(value) < _LARGEST
    return isinstance(value, kind)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
