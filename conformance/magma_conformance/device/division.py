"""Division and square root on a device: how far off the native ones are, and that ours are correctly rounded.

`magma_jax.gpu.rounding` corrects native results that are off by up to three units in the last place, and no more.
tests/jax/test_rounding.py proves the correction on the CPU, from starts that are made wrong.
"""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from magma_conformance.bits import bits_of, first_difference
from magma_conformance.device.finding import Finding
from magma_conformance.device.operands import PAIRS, binades, right_quotients, right_roots
from magma_conformance.implementations.modes import BACKENDS, Mode

ROUNDS = 4
"""Draws of each kind of pairs, two million each."""

CORRECTED = 3
"""Error of a start that the correction handles, in units in the last place."""


def check(device: str, rounds: int = ROUNDS) -> Finding:
    """Passes if every quotient and root is correctly rounded, in each framework that has the device."""
    finding = Finding()
    for backend, opened in (("jax", _jax), ("torch", _torch)):
        try:
            mode = BACKENDS[backend][1](device)[0]
        except (ImportError, LookupError) as error:
            finding.lines.append(f"{backend}: {error}")
            continue
        divide, root, raw = opened(mode)
        finding.facts[backend] = {}
        if raw is not None:
            _premise(finding, backend, *raw)
        _roots(finding, backend, root)
        _quotients(finding, backend, divide, rounds)
    return finding


Function = Callable[..., np.ndarray]


def _jax(mode: Mode) -> tuple[Function, Function, tuple[Function, Function]]:
    jax = import_module("jax")
    divide, sqrt = jax.jit(mode.xp.divide), jax.jit(mode.xp.sqrt)
    raw = jax.jit(jax.lax.div), jax.jit(jax.lax.sqrt)
    return _here(mode, divide), _here(mode, sqrt), (_here(mode, raw[0]), _here(mode, raw[1]))


def _torch(mode: Mode) -> tuple[Function, Function, None]:
    return _here(mode, mode.xp.divide), _here(mode, mode.xp.sqrt), None


def _here(mode: Mode, function: Any) -> Function:
    return lambda *operands: mode.get(function(*map(mode.put, operands)))


def _premise(finding: Finding, backend: str, divide: Function, root: Function) -> None:
    """Error of the device's own results in units in the last place, on significands: operands in [1, 4) and [1, 2)."""
    rng = np.random.default_rng(1)
    a = rng.integers(0x3F800000, 0x40800000, 2**22).astype(np.int32).view(np.float32)
    b = rng.integers(0x3F800000, 0x40000000, 2**22).astype(np.int32).view(np.float32)
    a = np.where(a < b, a * np.float32(2), np.where(a >= 2 * b, a * np.float32(0.5), a))  # the quotient is in [1, 2)
    x = binades()
    for what, found, right in (
        ("quotients", divide(a, b), right_quotients(a, b)),
        ("roots", root(x), right_roots(x)),
    ):
        units = bits_of(found).astype(np.int64) - bits_of(right)
        counts = {str(unit): count for unit, count in sorted(Counter(units.tolist()).items())}
        finding.facts[backend][f"{what} off by"] = counts
        finding.lines.append(f"{backend}'s own {what} are off by {counts}")
        finding.expect(bool((abs(units) <= CORRECTED).all()), f"{backend}'s own {what} are within {CORRECTED} units")


def _roots(finding: Finding, backend: str, root: Function) -> None:
    x = binades()
    difference = first_difference(root(x), right_roots(x))
    finding.expect(difference is None, f"{backend}: all {len(x):,} roots of two binades: {difference or '0 wrong'}")


def _quotients(finding: Finding, backend: str, divide: Function, rounds: int) -> None:
    for kind, draw in PAIRS.items():
        found, total = None, 0
        for seed in range(rounds):
            a, b = draw(np.random.default_rng(seed))
            found = found or first_difference(_flushed(divide(a, b)), _flushed(right_quotients(a, b)))
            total += len(a)
        finding.expect(found is None, f"{backend}: {total:,} quotients of {kind}: {found or '0 wrong'}")


def _flushed(x: np.ndarray) -> np.ndarray:
    """Results up to 2⁻¹²⁶ as signed zeros: a framework may keep or flush subnormals."""
    return np.where(abs(x) <= np.float32(2.0**-126), np.copysign(np.float32(0), x), x)
