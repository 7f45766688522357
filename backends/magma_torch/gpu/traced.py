"""The core's functions as Triton builtins: a call at compile time writes their arithmetic into the kernel.

`magma_core` defines the rule; this file computes nothing. Kernels pass the loaded values and the address of the
tensor's numbers.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import triton.language as tl

import magma_core
from magma_core import Base, Rule, State, alignment, bases, rule
from magma_core.config import Decay
from magma_core.hyperparameters import BaseNumbers, RuleNumbers
from magma_core.keep import BlockWords
from magma_core.namespace import Namespace
from magma_core.numerics import Real
from magma_core.stacks import Stack
from magma_torch.gpu.namespace import GridNamespace, KernelNamespace

NUMBERS = (*BaseNumbers._fields[:-1], *RuleNumbers._fields, "rate")
"""The float32 numbers of a tensor at one step, in memory order; the limit is an integer up to 2²⁴."""


@dataclass(frozen=True)
class Program:
    """The compile-time key of a kernel's arithmetic; Triton distinguishes kernels by its ``repr``.

    Args:
        base: only its type counts, not its numbers.
        decays: how weight decay is applied, None if there is none.
        rule: only its kind counts, not its numbers.
        sources: a digest of the traced code, which Triton's disk cache ignores.
    """

    base: Base
    decays: Decay | None
    rule: Rule
    sources: str


@functools.cache
def sources() -> str:
    """A digest of all code that may be traced into a kernel."""
    digest = hashlib.sha256()
    for folder in (Path(magma_core.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


F = TypeVar("F", bound=Callable[..., Any])


def builtin(function: F) -> F:
    """Make ``function`` callable from kernels at compile time; Triton's interpreter calls it like any other."""
    cast(Any, function).__triton_builtin__ = True
    return function


@builtin
def correct(mu_power: Any, nu_power: Any, numbers: Any, _semantic: Any = None) -> Any:
    """β₁ᵗ, β₂ᵗ and the bias corrections (spec 4.3); ``numbers`` are the tensors'."""
    xp = _namespace(_semantic)
    state = State(mu_power=mu_power, nu_power=nu_power)
    state, at_step = bases.advance_powers(state, _numbers(numbers, xp), xp=xp)
    return state.mu_power, state.nu_power, cast(Real, at_step.correction1).array, cast(Real, at_step.correction2).array


@builtin
def flushed(x: Any, _semantic: Any = None) -> Any:
    """A gradient or a rate as float32, flushed."""
    return _real(x, _namespace(_semantic)).flush().array


@builtin
def moments(g: Any, mu: Any, nu: Any, numbers: Any, program: Any, _semantic: Any = None) -> Any:
    """μ and ν after a flushed gradient (spec section 4); None for moments that the base lacks."""
    xp, mu, nu = _namespace(_semantic), _plain(mu), _plain(nu)
    new = bases.advance_moments(Real(g, xp=xp), State(mu, nu), _numbers(numbers, xp), base=_plain(program).base)
    return tuple(tl.constexpr(None) if x is None else x for x in (new.mu, new.nu))


@builtin
def magnitude(x: Any, _semantic: Any = None) -> Any:
    """The magnitude that `magma_core.alignment.largest` maximizes."""
    return alignment.largest((Real(x, xp=_namespace(_semantic)),), ())[0]


@builtin
def on_grid(x: Any, peak: Any, coarser: Any, _semantic: Any = None) -> Any:
    """An int32 on the grid of a block whose `largest` is ``peak``, or ``coarser`` powers of two coarser (spec 5.1).

    Undefined if that is not the block's grid.
    """
    xp = cast(Namespace, GridNamespace(_semantic))
    scale = alignment.grid(peak, xp=xp) * 2.0 ** -_plain(coarser)
    return xp.astype(alignment.on_grid(Real(x, xp=xp), scale).array, xp.int32)


@builtin
def distance(peak: Any, other: Any, _semantic: Any = None) -> Any:
    """The number of powers of two by which the grid of ``peak`` is coarser than that of ``other``, an int32."""
    xp = _namespace(_semantic)
    bits, others = (alignment.grid(x, xp=xp).bits() for x in (peak, other))
    return xp.bitwise_right_shift(xp.subtract(others, bits), 23)


@builtin
def decide(
    sums: Any, peaks: Any, score: Any, high: Any, low: Any, index: Any, step: Any, numbers: Any, program: Any,
    _semantic: Any = None,
) -> Any:  # fmt: skip
    """Decide a vector of blocks: reported sums, keep, scale, cosine and score (spec 5.3 to 7).

    Without scores, only keep and scale.
    """
    xp, kind = _namespace(_semantic), _plain(program).rule
    rate = Real(_load(numbers, "rate", xp), xp=xp)
    total = before = None
    if kind.uses_score:
        finite = [alignment.finite(peak, xp=xp) for peak in peaks]
        total, before = Stack(alignment.finite_sums(list(sums), *finite, xp=xp)), score
    words = BlockWords(high, low, index)
    decision = rule.decide(kind, _rule_numbers(numbers, xp), words, total, before, step, rate)
    keep, scale, cosine, after = decision
    return (keep, scale.array) if total is None else (*total, keep, scale.array, cosine, after)


@builtin
def move(
    theta: Any, grad: Any, mu: Any, nu: Any, scale: Any, numbers: Any, program: Any, keep: Any, _semantic: Any = None
) -> Any:
    """θ after the step (spec sections 4 and 8); ``keep`` is None if every block is kept."""
    xp, kind = _namespace(_semantic), _plain(program)
    return rule.write(
        kind,
        theta,
        _plain(grad),
        State(_plain(mu), _plain(nu)),
        _numbers(numbers, xp),
        Real(scale, xp=xp),
        _plain(keep),
    )


def _namespace(semantic: Any) -> Namespace:
    return cast(Namespace, KernelNamespace(semantic))


def _plain(x: Any) -> Any:
    """A compile-time value without Triton's wrapper."""
    return x.value if isinstance(x, tl.constexpr) else x


def _real(x: Any, xp: Namespace) -> Real:
    return Real(x if x.dtype == xp.float32 else xp.astype(x, xp.float32), xp=xp)


def _load(numbers: Any, name: str, xp: Any) -> Any:
    return tl.load(numbers.__add__(NUMBERS.index(name), **xp.given), **xp.given)


def _numbers(pointer: Any, xp: Namespace) -> BaseNumbers:
    return BaseNumbers(*(Real(_load(pointer, name, xp), xp=xp) for name in BaseNumbers._fields))


def _rule_numbers(pointer: Any, xp: Namespace) -> RuleNumbers:
    limit, *others = (_load(pointer, name, xp) for name in RuleNumbers._fields)
    return RuleNumbers(xp.astype(limit, xp.int64), *(Real(x, xp=xp) for x in others))
