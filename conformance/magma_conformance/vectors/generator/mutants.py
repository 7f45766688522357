"""Wrong variants of the oracle's functions, for `hazards` to plant. Each has a single fault."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeAlias

from magma_conformance.vectors import oracle

Patch: TypeAlias = Mapping[str, Callable[..., Any]]
"""Functions of the oracle, by name."""

_add, _sub, _mul, _div, _sqrt = oracle.add, oracle.sub, oracle.mul, oracle.div, oracle.sqrt
_flush, _rounded, _const, _step, _blocks = oracle.flush, oracle.rounded, oracle.const, oracle.step, oracle.blocks
_settings, _coin, _score, _cosine = oracle.settings, oracle.coin, oracle.score, oracle.cosine
_quantised, _threefry = oracle.quantised, oracle.threefry
_sigmoid, _score_threshold = oracle.sigmoid, oracle.score_threshold


# ---- Products that remember their factors


class _Product(float):
    a: float
    b: float


def _remember(x: float, y: float) -> float:
    product = _Product(_mul(x, y))
    product.a, product.b = float(x), float(y)
    return product


def _fma(a: float, b: float, c: float) -> float:
    """a·b + c, rounded once."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)) or 0 in (a, b):
        return _add(_mul(a, b), c)
    return _nearest(Fraction(a) * Fraction(b) + Fraction(c))


def _nearest(x: Fraction) -> float:
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    try:
        return _rounded(float(round(x / unit) * unit))
    except OverflowError:
        return math.copysign(math.inf, x)


def _contracted(first: bool) -> Patch:
    """Fused multiply-adds; if both operands are products, fuses the first or the second."""

    def add(x: float, y: float) -> float:
        for one, other in ((x, y), (y, x)) if first else ((y, x), (x, y)):
            if isinstance(one, _Product):
                return _fma(one.a, one.b, float(other))
        return _add(x, y)

    def sub(x: float, y: float) -> float:
        if isinstance(y, _Product) and not (first and isinstance(x, _Product)):
            return _fma(-y.a, y.b, float(x))
        return _fma(x.a, x.b, -float(y)) if isinstance(x, _Product) else _sub(x, y)

    return {"mul": _remember, "add": add, "sub": sub, "flush": lambda x: float(_flush(x))}


class _Bare(_Product):
    """A product after a multiplication by 1 that a compiler removed; nothing keeps it apart any more."""


def _remember_ones(x: float, y: float) -> float:
    for one, other in ((x, y), (y, x)):
        if one == 1.0 and isinstance(other, _Product):
            bare = _Bare(other)
            bare.a, bare.b = other.a, other.b
            return bare
    return _remember(x, y)


def _add_bare(x: float, y: float) -> float:
    for one, other in ((x, y), (y, x)):
        if isinstance(one, _Bare):
            return _fma(one.a, one.b, float(other))
    return _add(x, y)


def _sub_bare(x: float, y: float) -> float:
    if isinstance(x, _Bare):
        return _fma(x.a, x.b, -float(y))
    return _fma(-y.a, y.b, float(x)) if isinstance(y, _Bare) else _sub(x, y)


def _reassociated(x: float, y: float) -> float:
    if isinstance(y, _Product):
        return _remember(_mul(float(x), y.a), y.b)
    return _remember(x.a, _mul(x.b, float(y))) if isinstance(x, _Product) else _remember(x, y)


# ---- Rounding


def _away(x: float) -> int:
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def _narrowed_away(x: float, format: str = "float32") -> float:
    """Ties away from zero when a 16-bit format is written."""
    right = _rounded(x, format)
    if format == "float32" or not math.isfinite(x) or abs(right) >= abs(x):
        return right
    bits, smallest, _ = oracle.PRECISION[format]
    unit = 2.0 ** (max(math.frexp(x)[1], smallest + 1) - bits)
    return _rounded(x + math.copysign(unit, x) / 2, format) if abs(x) - abs(right) == unit / 2 else right


class _Single(float):
    """A hyper-parameter rounded to binary32 before 1 − β or 1/τ is computed."""

    def __rsub__(self, other: float) -> float:
        return _sub(float(other), _rounded(float(self)))

    def __rtruediv__(self, other: float) -> float:
        return _div(float(other), _rounded(float(self)))


def _single_settings(*arguments: Any) -> Any:
    base, rule, *rest = _settings(*arguments)
    return (*({key: _Single(x) if type(x) is float else x for key, x in part.items()} for part in (base, rule)), *rest)


# ---- Bases


def _step_with_powers(theta: Any, g: Any, state: Any, **options: Any) -> Any:
    """β^t by a library's pow, in binary64."""
    t, betas = options["t"], {"p1": options["base"].get("beta1"), "p2": options["base"].get("beta2")}
    if "p1" in state:
        state = state | {key: _rounded(beta ** (t - 1)) for key, beta in betas.items()}
    theta, new, report = _step(theta, g, state, **options)
    return theta, new | {key: _rounded(beta**t) for key, beta in betas.items() if key in new}, report


# ---- Tiny values


def _step_without_subnormals(theta: Any, g: Any, state: Any, **options: Any) -> Any:
    smallest = 2.0 ** oracle.PRECISION[options.get("format", "float32")][1]
    theta, g = ([x if not abs(x) < smallest else math.copysign(0.0, x) for x in part] for part in (theta, g))
    return _step(theta, g, state, **options)


def _step_that_touches(theta: Any, g: Any, state: Any, **options: Any) -> Any:
    """Blocks that are not kept go through the arithmetic too."""
    new, state, report = _step(theta, g, state, **options)
    if options["block_axes"] is not None:
        for keep, block in zip(report["keep"], _blocks(options["shape"], options["block_axes"]), strict=True):
            for i in block:
                new[i] = new[i] if keep else _rounded(_flush(new[i]), options.get("format", "float32"))
    return new, state, report


# ---- Alignment


def _float_sums(m: Any, g: Any) -> tuple[int, ...]:
    xs, ys = oracle.quantised(m), oracle.quantised(g)
    totals = []
    for pair in ((xs, ys), (xs, xs), (ys, ys)):
        total = 0.0
        for u, v in zip(*pair, strict=True):
            total = _add(total, float(u * v))
        totals.append(int(total))
    return tuple(totals)


def _joined(xy: int, xx: int, yy: int) -> float:
    if xx == 0 or yy == 0:
        return 0.0
    return min(max(_div(oracle.real(xy), _sqrt(_mul(oracle.real(xx), oracle.real(yy)))), -1.0), 1.0)


def _unclamped(xy: int, xx: int, yy: int) -> float:
    if xx == 0 or yy == 0:
        return 0.0
    return _div(oracle.real(xy), _mul(_sqrt(oracle.real(xx)), _sqrt(oracle.real(yy))))


def _library_sigmoid(c: float, tau: float) -> float:
    z = _mul(c, _const(1 / tau))
    return _rounded(1 / (1 + math.exp(-z))) if z > -700 else 0.0


# ---- Coins


def _latin(seed: int, name: str, t: int, b: int) -> int:
    return _coin(seed, name.encode("latin-1", "replace").decode("utf-8", "replace"), t, b)


def _saturating(k0: int, k1: int, x0: int, x1: int) -> tuple[int, int]:
    """The first additions, of the key to the counter, without wrapping."""
    return _threefry(k0, k1, min(x0, oracle.MASK - k0), min(x1, oracle.MASK - k1))


CONTRACTION = [_contracted(True), _contracted(False)]
UNIT_FACTOR: Patch = {
    "mul": _remember_ones,
    "add": _add_bare,
    "sub": _sub_bare,
    "flush": lambda x: float(_flush(x)),
}
REASSOCIATION: Patch = {"mul": _reassociated, "flush": lambda x: float(_flush(x))}
RECIPROCAL: Patch = {"div": lambda x, y: _mul(x, _div(1.0, y))}
ROOT: Patch = {"sqrt": lambda x: _mul(x, _div(1.0, _sqrt(x))) if 0 < x < math.inf else _sqrt(x)}
EXCESS_PRECISION: Patch = {
    "rounded": lambda x, format="float32": x if format == "float32" else _rounded(x, format),
    "flush": lambda x: _flush(_rounded(x)),
    "const": lambda x: _flush(_rounded(float(x))),
}
COMPLEMENT: Patch = {
    "settings": _single_settings,
    "score": lambda s, c, tau, a: _score(s, c, _Single(tau), _Single(a)),
}
POWER: Patch = {"step": _step_with_powers}
FLUSH: Patch = {"flush": lambda x: x}
SIGNED_ZERO: Patch = {"flush": lambda x: math.copysign(0.0, x) if abs(x) < 2.0**-100 else x}
SUBNORMAL: Patch = {"step": _step_without_subnormals}
DROPPED_BITS: Patch = {"step": _step_that_touches}
ROUNDING_TIE: Patch = {"rint": _away, "threshold": lambda p: _away(p * 2.0**24)}
NARROWING_TIE: Patch = {"rounded": _narrowed_away}
SUM_ORDER: Patch = {"sums": _float_sums}
INTEGER_CONVERSION: Patch = {"real": lambda s: _nearest(Fraction(s))}
NON_FINITE: Patch = {"quantised": lambda x: _quantised([v if math.isfinite(v) else 0.0 for v in x])}
ZERO_NORM: Patch = {  # and the rest lets the NaN through
    "cosine": lambda xy, xx, yy: math.nan if 0 in (xx, yy) else _cosine(xy, xx, yy),
    "sigmoid": lambda c, tau: c if math.isnan(c) else _sigmoid(c, tau),
    "score_threshold": lambda s: 0 if math.isnan(s) else _score_threshold(s),
}
CLAMP: Patch = {"cosine": _unclamped}
JOINED_ROOTS: Patch = {"cosine": _joined}
EXPONENTIAL: Patch = {"sigmoid": _library_sigmoid}
THRESHOLD_TIE: Patch = {"kept": lambda u, limit: u >> 8 <= limit}
THRESHOLD_ROUNDING: Patch = {"threshold": lambda p: int(p * 2.0**24), "score_threshold": lambda s: int(s * 2.0**24)}
WIDE_COUNTER: Patch = {"coin": lambda seed, name, t, b: _coin(seed, name, t & 0x7FFFFFFF, b & 0x7FFFFFFF)}
COUNTER_WRAP: Patch = {"threefry": _saturating}
WIDE_SEED: Patch = {"coin": lambda seed, name, t, b: _coin(seed & 0xFFFFFFFF, name, t, b)}
UTF8: Patch = {"coin": _latin}
BLOCK_ORDER: Patch = {"blocks": lambda shape, axes: _blocks(shape, sorted(axes))}
