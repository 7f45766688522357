"""The hazards that make implementations differ. Each is planted in the oracle, and a vector carries the flags of the
hazards that change its answer. So a flag is a measurement, and flags that failed vectors share say what to look for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from magma_conformance.vectors import oracle
from magma_conformance.vectors.generator import mutants
from magma_conformance.vectors.generator.answers import answer
from magma_conformance.vectors.generator.mutants import Patch


class Hazard(NamedTuple):
    """One wrong way to compute."""

    section: str  # of docs/spec.md, which defines the right way
    note: str  # what a port that fails these vectors did, and a possible cause
    patches: Sequence[Patch]  # alternatives


def flags(kind: str, inputs: Mapping[str, Any], right: Mapping[str, Any], /) -> list[str]:
    """The hazards that change the answer to this question."""
    found = []
    for flag, hazard in HAZARDS.items():
        for patch in hazard.patches:
            with planted(patch):
                try:
                    wrong = answer(kind, inputs) != right
                except (OverflowError, ValueError):  # a NaN where an integer is needed, say
                    wrong = True
            if wrong:
                found.append(flag)
                break
    return found


@contextmanager
def planted(patch: Patch) -> Iterator[None]:
    """Replace functions of the oracle."""
    former = {name: getattr(oracle, name) for name in patch}
    try:
        for name, function in patch.items():
            setattr(oracle, name, function)
        yield
    finally:
        for name, function in former.items():
            setattr(oracle, name, function)


HAZARDS: dict[str, Hazard] = {
    "Contraction": Hazard(
        "1.1",
        "A product and the sum that uses it were fused into one multiply-add, rounded once instead of twice. "
        "Compilers do it unasked (GCC without -std=c…, Clang, XLA, Triton): -ffp-contract=off, or a fence.",
        mutants.CONTRACTION,
    ),
    "UnitFactor": Hazard(
        "1.1",
        "A multiplication by a number that is exactly 1, such as 1 − β₂ where β₂ ≤ 2^-25, was left out, and the "
        "product before it was fused with the sum after it. Fences around operations meet there: two must not cancel.",
        [mutants.UNIT_FACTOR],
    ),
    "Reassociation": Hazard(
        "1.1",
        "A chain of products was multiplied in another order, as in a·(b·c) for (a·b)·c. Simplifiers of "
        "graphs do it, and -ffast-math.",
        [mutants.REASSOCIATION],
    ),
    "Reciprocal": Hazard(
        "1.1",
        "x/y was computed as x·(1/y). Compilers do it where y is shared or constant, and GPUs have "
        "instructions for it.",
        [mutants.RECIPROCAL],
    ),
    "Root": Hazard(
        "1.1",
        "The square root was not correctly rounded: x·rsqrt(x), or a vector library.",
        [mutants.ROOT],
    ),
    "ExcessPrecision": Hazard(
        "1.1",
        "Intermediate results were kept in more than binary32: double variables, or FLT_EVAL_METHOD other than 0.",
        [mutants.EXCESS_PRECISION],
    ),
    "Complement": Hazard(
        "1.3",
        "1 − β, 1/τ or 1/p was computed in binary32 from a rounded β, τ or p instead of in binary64 first.",
        [mutants.COMPLEMENT],
    ),
    "Power": Hazard(
        "4.3",
        "β^t was computed by pow instead of as a running product of binary32.",
        [mutants.POWER],
    ),
    "Flush": Hazard(
        "1.2",
        "Values below 2^-100 were kept where the specification flushes them to +0.",
        [mutants.FLUSH],
    ),
    "SignedZero": Hazard(
        "1.2",
        "A zero has the wrong sign: flush gives +0, for −0 and for small negative numbers too.",
        [mutants.SIGNED_ZERO],
    ),
    "Subnormal": Hazard(
        "1.4, 8",
        "Subnormal numbers of the parameter's format were lost on entry, by hardware that flushes them or a "
        "wrong conversion from 16 bits.",
        [mutants.SUBNORMAL],
    ),
    "DroppedBits": Hazard(
        "8",
        "A block that is not kept was changed: its bits stay as they were, also those that flush would change.",
        [mutants.DROPPED_BITS],
    ),
    "RoundingTie": Hazard(
        "1.1, 7.3",
        "rint, or the rounding of p·2^24, took halves away from zero (C's round) instead of to even (C's rint).",
        [mutants.ROUNDING_TIE],
    ),
    "NarrowingTie": Hazard(
        "1.4",
        "A value halfway between two bfloat16 or binary16 numbers was not rounded to the even one.",
        [mutants.NARROWING_TIE],
    ),
    "SumOrder": Hazard(
        "5.2",
        "The sums were added up in floating point, whose result depends on the order, instead of in 64-bit integers.",
        [mutants.SUM_ORDER],
    ),
    "IntegerConversion": Hazard(
        "5.3",
        "A 64-bit integer was converted to binary32 by a single rounding instead of by the three pieces of real(S).",
        [mutants.INTEGER_CONVERSION],
    ),
    "NonFinite": Hazard(
        "5.1",
        "A block with an infinity or a NaN has X = 0 everywhere; here only the elements themselves were left out.",
        [mutants.NON_FINITE],
    ),
    "ZeroNorm": Hazard(
        "5.3",
        "The cosine of a block without a norm is 0; here it was 0/0.",
        [mutants.ZERO_NORM],
    ),
    "Clamp": Hazard(
        "5.3",
        "Rounding took the cosine beyond 1, and it was not clamped.",
        [mutants.CLAMP],
    ),
    "JoinedRoots": Hazard(
        "5.3",
        "One root of the product of both norms was taken instead of the product of two roots.",
        [mutants.JOINED_ROOTS],
    ),
    "Exponential": Hazard(
        "5.4",
        "The sigmoid was computed by a library's exp instead of the range reduction and the polynomial.",
        [mutants.EXPONENTIAL],
    ),
    "ThresholdTie": Hazard(
        "7.3",
        "A coin exactly on the threshold keeps nothing: (u div 2^8) < T, not ≤.",
        [mutants.THRESHOLD_TIE],
    ),
    "ThresholdRounding": Hazard(
        "7.3",
        "p·2^24 was truncated instead of rounded to nearest, ties to even.",
        [mutants.THRESHOLD_ROUNDING],
    ),
    "WideCounter": Hazard(
        "7.2",
        "The step or the block index lost its highest bit: both are unsigned words of 32 bits.",
        [mutants.WIDE_COUNTER],
    ),
    "CounterWrap": Hazard(
        "7.1",
        "An addition of the cipher saturated at 2^32 − 1 instead of wrapping around.",
        [mutants.COUNTER_WRAP],
    ),
    "WideSeed": Hazard(
        "7.2",
        "The upper half of the 64-bit seed was lost.",
        [mutants.WIDE_SEED],
    ),
    "Utf8": Hazard(
        "7.2",
        "The name was not hashed in UTF-8.",
        [mutants.UTF8],
    ),
    "BlockOrder": Hazard(
        "3",
        "Blocks were numbered by their axes in ascending order instead of in the order of the list.",
        [mutants.BLOCK_ORDER],
    ),
}
"""By the flags of the vectors."""
