"""The expressions that the probe measures: one table, written once for every framework.

docs/numerics.md describes each hazard; docs/spec.md section 1 is the contract that it breaks.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from magma_conformance.probe.inputs import (
    cancelling,
    floats,
    full,
    halves,
    int32s,
    int64s,
    normal,
    rounded,
    scalar,
    subnormal,
)
from magma_conformance.probe.probe import Probe
from magma_core.numerics import integer_to_real


def _through_float64(function: Callable[..., Any], /) -> Callable[..., np.ndarray]:
    """One correctly rounded operation: with twice the precision plus two bits, double rounding is harmless."""
    return lambda *operands: function(*(x.astype(np.float64) for x in operands)).astype(np.float32)


def _nearest(n: np.ndarray, /) -> np.ndarray:
    """int64 to float32 via float64; beyond 2⁵³ all bits below 2⁹ become one sticky bit."""
    sticky = ((n >> 9) | ((n & 511) != 0)).astype(np.float64) * 512
    return np.where(np.abs(n) < 2**53, n.astype(np.float64), sticky).astype(np.float32)


def _three_pieces(n: np.ndarray, /) -> np.ndarray:
    """real(S) of spec 5.3: the pieces are exact, and the sum of the first two is rounded before the third is added."""
    magnitude = np.abs(n)
    high, middle, low = magnitude >> 38, (magnitude >> 14) & 0xFFFFFF, magnitude & 0x3FFF
    value = np.float32(2**38) * high.astype(np.float32) + np.float32(2**14) * middle.astype(np.float32)
    return (value + low.astype(np.float32)) * np.sign(n).astype(np.float32)


BETA = 0.9
WIDE = floats(-20, 20)
POSITIVE = floats(-20, 20, signs=False)
KEPT = ("kept", "flushed")

# fmt: off
_RAW: dict[str, tuple[Probe, ...]] = {
    "one operation": (
        Probe("add", "x + y", "rounding", (WIDE, WIDE), lambda do, x, y: x + y, _through_float64(operator.add)),
        Probe("subtract", "x − y", "rounding", (WIDE, WIDE), lambda do, x, y: x - y,
              _through_float64(operator.sub)),
        Probe("multiply", "x · y", "rounding", (WIDE, WIDE), lambda do, x, y: x * y,
              _through_float64(operator.mul)),
        Probe("divide", "x / y", "rounding", (WIDE, WIDE), lambda do, x, y: x / y,
              _through_float64(operator.truediv)),
        Probe("sqrt", "√x", "rounding", (POSITIVE,), lambda do, x: do.sqrt(x), _through_float64(np.sqrt)),
        Probe("divide_equal", "x / x, x = 3163.328613", "division that is not correctly rounded: 1 is expected",
              (full(3163.328613), full(3163.328613)), lambda do, x, y: x / y, lambda x, y: np.ones_like(x)),
    ),
    "contraction": (
        Probe("average", "m·0.9 + g·0.1", "contraction to fma", (normal, normal),
              lambda do, m, g: m * BETA + g * (1 - BETA)),
        Probe("two_products", "m·b + g·c", "contraction to fma", (normal, normal, normal, normal),
              lambda do, m, b, g, c: m * b + g * c),
        Probe("product_less", "a·b − c", "contraction to fma", (normal, normal, normal),
              lambda do, a, b, c: a * b - c),
        Probe("product_by_one", "a·b·1 + c", "contraction to fma, without the factor of 1", (normal, normal, normal),
              lambda do, a, b, c: a * b * 1.0 + c),
    ),
    "division rewritten": (
        Probe("reciprocal", "1 / x", "a reciprocal that is not correctly rounded", (WIDE,), lambda do, x: 1 / x),
        Probe("by_constant", "x / 3, 3 constant", "multiplication by 1/3", (WIDE,), lambda do, x: x / 3),
        Probe("by_scalar", "x / 3, 3 at run time", "multiplication by 1/3", (WIDE, scalar(3)),
              lambda do, x, three: x / three),
        Probe("by_root", "x / √y", "multiplication by rsqrt(y)", (WIDE, POSITIVE),
              lambda do, x, y: x / do.sqrt(y)),
        Probe("by_root_eps", "x / (√y + ε)", "multiplication by a reciprocal",
              (WIDE, POSITIVE),
              lambda do, x, y: x / (do.sqrt(y) + 1e-8)),
    ),
    "chains restructured": (
        Probe("product_chain", "(x · 0.9) · 0.7", "the constants are multiplied first", (WIDE,),
              lambda do, x: (x * BETA) * 0.7),
        Probe("sum_chain", "(x + 0.9) + 0.7", "the constants are added first", (normal,),
              lambda do, x: (x + BETA) + 0.7),
        Probe("quotient_chain", "a / (b / c)", "a·c / b", (WIDE, WIDE, WIDE), lambda do, a, b, c: a / (b / c)),
        Probe("roots", "√a · √b", "√(a·b)", (POSITIVE, POSITIVE), lambda do, a, b: do.sqrt(a) * do.sqrt(b)),
        Probe("root_squared", "√a · √a", "a", (POSITIVE,), lambda do, a: do.sqrt(a) * do.sqrt(a)),
        Probe("adam", "(m·c) / (√(v·d) + ε)", "scalars move to the other side",
              (normal, POSITIVE, scalar(1 / (1 - BETA**3)), scalar(1 / (1 - 0.999**3))),
              lambda do, m, v, c, d: (m * c) / (do.sqrt(v * d) + 1e-8)),
        Probe("adam_divided", "(m/c) / (√(v/d) + ε)", "scalars move to the other side",
              (normal, POSITIVE, scalar(1 - BETA**3), scalar(1 - 0.999**3)),
              lambda do, m, v, c, d: (m / c) / (do.sqrt(v / d) + 1e-8)),
    ),
    "functions with an fma inside": (
        Probe("torch_add", "torch.add(x, y, alpha)", "fma inside", (normal, normal),
              lambda do, x, y: do.framework.add(x, y, alpha=1 - BETA),
              lambda x, y: x + y * (1 - BETA), only="torch"),
        Probe("torch_addcmul", "torch.addcmul(x, y, z)", "fma inside", (normal, normal, normal),
              lambda do, x, y, z: do.framework.addcmul(x, y, z), lambda x, y, z: x + y * z, only="torch"),
        Probe("torch_lerp", "torch.lerp(x, y, 0.1)", "fma inside", (normal, normal),
              lambda do, x, y: do.framework.lerp(x, y, 1 - BETA),
              lambda x, y: x + (y - x) * (1 - BETA), only="torch"),
    ),
    "tiny values and zeros": (
        Probe("subnormal_operand", "2^-130 · 1", "operands below 2^-126 as zeros", (subnormal, full(1)),
              lambda do, x, one: x * one, lambda x, one: x, words=KEPT),
        Probe("subnormal_result", "2^-100 · 2^-30", "results below 2^-126 as zeros",
              (floats(-100, -99), floats(-30, -29)), lambda do, x, y: x * y, words=KEPT),
        Probe("subnormal_divided", "2^-130 / 1", "operands below 2^-126 as zeros", (subnormal, full(1)),
              lambda do, x, one: x / one, lambda x, one: x, words=KEPT),
        Probe("subnormal_root", "√2^-130", "operands below 2^-126 as zeros", (subnormal,), lambda do, x: do.sqrt(x),
              _through_float64(np.sqrt), words=KEPT),
        Probe("subnormal_compared", "2^-130 > 0", "comparison of zeros", (subnormal, full(0)),
              lambda do, x, zero: x > zero, lambda x, zero: np.ones(x.shape, bool), words=KEPT),
        Probe("zeros_added", "(−0) + (+0)", "+0 is expected", (full(-0.0), full(0)), lambda do, x, y: x + y,
              lambda x, y: np.zeros_like(x), words=("+0", "−0")),
        Probe("zero_constant", "x·0 + 0, x < 0", "+0 is expected", (POSITIVE,), lambda do, x: -x * 0 + 0,
              lambda x: np.zeros_like(x), words=("+0", "−0")),
        Probe("zero_run_time", "x·y + z, y = z = 0, x < 0", "+0 is expected", (POSITIVE, full(0), full(0)),
              lambda do, x, y, z: -x * y + z, lambda x, y, z: np.zeros_like(x), words=("+0", "−0")),
    ),
    "conversions": (
        Probe("int64_float32", "int64 → float32", "two roundings, or truncation", (int64s,),
              lambda do, n: do.cast(n, "float32"), _nearest),
        Probe("int32_float32", "int32 → float32", "truncation", (int32s,),
              lambda do, n: do.cast(n, "float32"), _nearest),
        Probe("float32_int32", "float32 → int32", "of whole numbers", (rounded,),
              lambda do, x: do.cast(x, "int32")),
        Probe("rint", "rint of ties", "ties away from zero", (halves,), lambda do, x: do.rint(x)),
        Probe("bfloat16", "float32 → bfloat16", "truncation", (WIDE,), lambda do, x: do.cast(x, "bfloat16")),
        Probe("float16", "float32 → float16", "truncation", (floats(-14, 15),),
              lambda do, x: do.cast(x, "float16")),
        Probe("float16_subnormal", "float32 → float16, subnormal", "results below 2^-14 as zeros",
              (floats(-24, -14),), lambda do, x: do.cast(x, "float16"), words=KEPT),
        Probe("bfloat16_twice", "float32 → bfloat16 → float32", "both conversions left out", (WIDE,),
              lambda do, x: do.cast(do.cast(x, "bfloat16"), "float32")),
        Probe("float16_twice", "float32 → float16 → float32", "both conversions left out", (floats(-14, 15),),
              lambda do, x: do.cast(do.cast(x, "float16"), "float32")),
    ),
    "sums": (
        Probe("sum_float32", "Σx, float32", "the order of summation", (cancelling,), lambda do, x: do.sum(x),
              words=("same", "other")),
        Probe("sum_int64", "Σn, int64", "wrapping or rounding", (int32s,),
              lambda do, n: do.sum(do.cast(n, "int64") * 2**14),
              lambda n: np.asarray(sum(n.tolist()) * 2**14), words=("exact", "wrong")),
    ),
}

# x / 3 is not fenced. A tensor is never divided by a scalar (spec 1.1): a framework may broadcast the scalar inside
# its division, where no fence can hide that it is one.
_FENCED = (
    "divide", "sqrt", "average", "two_products", "product_less", "product_by_one", "reciprocal", "by_root",
    "by_root_eps", "product_chain", "sum_chain", "quotient_chain", "roots", "root_squared", "adam", "zero_run_time",
)
# fmt: on


def _in_topics() -> Iterator[Probe]:
    for topic, probes in _RAW.items():
        yield from (replace(probe, topic=topic) for probe in probes)
    raw = {probe.id: probe for probes in _RAW.values() for probe in probes}
    for id in _FENCED:
        yield replace(raw[id], id=f"fenced_{id}", label=f"fenced {raw[id].label}", topic="fenced", fenced=True)
    yield Probe(
        "fenced_int64",
        "fenced real(S) of an int64",
        "contraction",
        (int64s,),
        lambda do, n: integer_to_real(n, xp=do.xp),
        _three_pieces,
        topic="fenced",
        fenced=True,
    )


PROBES = tuple(_in_topics())
"""All measured expressions: the frameworks' own, then some again with `Real`."""
