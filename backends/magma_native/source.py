"""The C source of a step, and how its structures lie in memory."""

from importlib.resources import files

import numpy as np

from magma_core.hyperparameters import BaseNumbers
from magma_native import loops
from magma_native.loops import CORRECTIONS, SETTINGS, Formula
from magma_native.namespace import C_TYPES

_POINTERS = {
    "theta": "param *",
    "grad": "gradient *",
    "mu": "moment *",
    "nu": "float *",
    "mu_power": "float *",  # of shape (), like the next
    "nu_power": "float *",
    "score": "float *",  # one for each block, like the next
    "cosine": "float *",  # may be absent, like the next four
    "scale": "float *",  # lr·w
    "keep": "uint8_t *",
    "sums": "int64_t *",  # three of them, ``stride`` apart
    "hints": "int32_t *",  # (blocks, 2): `largest` of both operands at the step before
    "settings": "const Settings *",
}

TENSOR = np.dtype(
    [(name, np.uint64) for name in _POINTERS]
    + [(name, np.int64) for name in ("rows", "columns", "stride", "key_high", "key_low")]
    + [(name, np.float32) for name in CORRECTIONS],
    align=True,
)
"""A parameter: addresses, 0 for what there is not; a row for each block; the key of its masks."""

GROUP = np.dtype([("step", np.int64), ("limit", np.int64), *((name, np.float32) for name in SETTINGS)], align=True)
"""The numbers of a step that parameters share."""

_SKELETON = files("magma_native").joinpath("skeleton.c")


def source(formula: Formula) -> str:
    """The program of a step.

    Example:
        >>> from magma_core import AdamW, magma
        >>> "sqrtf" in source(Formula(AdamW(), magma(), "masked", "float32", "float32", masked=True))
        True
    """
    measured = formula.masked and formula.rule.uses_score
    parts = {
        "MASKED": str(int(formula.masked)),
        "MEASURED": str(int(measured)),
        "BEFORE": str(int(measured and formula.rule.momentum == "before")),
        "WRITES_ALL": str(int(formula.writes_all)),
        "ADVANCES": str(int(bool(formula.moments) and not formula.moment)),
        "WRITES": str(int(formula.write is not None)),
        "MOMENT": C_TYPES[formula.moment or "float32"],
        "PARAM": C_TYPES[formula.param or formula.grad],
        "GRAD": C_TYPES[formula.grad],
        "SETTINGS": _fields(GROUP, {}),
        "TENSOR": _fields(TENSOR, _POINTERS),
        "ARRAYS": _arrays(formula),
        "NUMBERS": _numbers(),
        "GRID": loops.grid(),
        "NARROW": loops.narrow(),
        "CORRECT": loops.correct(formula) if formula.has_powers else "",
        "ADVANCE": loops.advance(formula) if formula.moments and not formula.moment else "",
        "MEASURE": loops.measure(formula) if measured else "",
        "PROJECT": loops.project(formula).replace("\n", " ") if measured else "",
        "WRITE": loops.write(formula) if formula.write else "",
        "DECIDE": loops.decide(formula) if formula.masked else "",
    }
    text = _SKELETON.read_text(encoding="utf-8")
    for mark, code in parts.items():
        text = text.replace(f"/*@{mark}@*/", code)
    return text


def _fields(layout: np.dtype, pointers: dict[str, str]) -> str:
    kinds = {np.dtype(np.int64): "int64_t ", np.dtype(np.float32): "float "}
    return " ".join(f"{pointers.get(name) or kinds[layout[name]]}{name};" for name in layout.names or ())


def _arrays(formula: Formula) -> str:
    """Where the elements of a loop are."""
    moments = {name: "moment" if name == "mu" else "float" for name in formula.moments}
    types = {"theta": "param", "grad": "gradient" if formula.place == "grad" else "const gradient", **moments}
    return " ".join(f"{kind} *restrict {name} = t->{name} + at;" for name, kind in types.items())


def _numbers() -> str:
    """The numbers of a step as variables."""
    homes = {name: "t" if name in CORRECTIONS else "s" for name in (*BaseNumbers._fields, *SETTINGS)}
    return " ".join(f"const float {name} = {home}->{name};" for name, home in homes.items())
