"""Reads and validates a report file of this suite version or an older one."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from magma_conformance.versions import SUITE_VERSION
from magma_conformance.wire.untrusted import open_foreign, shown

_MOST = 2**28  # bytes of a report; a report of all modes has half a million


def read_report(file: Path) -> dict[str, Any]:
    """Read and validate a report file.

    Args:
        file: written by ``magma-conformance run --json``.

    Raises:
        ValueError: if it cannot be read or is not a report; the message names the file and the fault.

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
    """Validate a report against report.schema.json, which also describes what older versions wrote.

    Raises:
        ValueError: if it is invalid; the message says where, why, and the remedy.
    """
    remedy = "make one with: magma-conformance run --json FILE"
    if not isinstance(report, Mapping) or report.get("suite") != "magma-conformance":
        raise ValueError(f'not a report: "suite" is not "magma-conformance"; {remedy}')
    version = report.get("suite_version")
    if isinstance(version, int) and version > SUITE_VERSION:
        raise ValueError(
            f"suite_version: {version} is newer than this suite's {SUITE_VERSION}; update magma-optim to read it"
        )
    error = best_match(_validator().iter_errors(report))
    if error is not None:
        place = error.json_path.removeprefix("$").removeprefix(".")
        raise ValueError(": ".join(filter(None, ["not a report", shown(place), f"{shown(error.message)}; {remedy}"])))


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(files(__package__).joinpath("report.schema.json").read_text("utf-8")))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
