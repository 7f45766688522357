"""The core's functions as C statements: each loop of `skeleton.c`, traced once for a kind of step.

Nothing of the rule is written here. A loop is a list of arrays that it reads, what the core makes of their elements,
and where this goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from magma_core import SGD, Base, Rule, State, alignment, bases
from magma_core import rule as algorithm
from magma_core.config import Decay
from magma_core.hyperparameters import BaseNumbers, RuleNumbers
from magma_core.keep import BlockWords
from magma_core.namespace import Namespace
from magma_core.numerics import Real
from magma_core.stacks import Stack
from magma_core.step import Write
from magma_native.namespace import C_TYPES, CNamespace, Value

CORRECTIONS = ("correction1", "correction2")
"""The numbers that belong to a tensor: its bias corrections."""

SETTINGS = (*(name for name in BaseNumbers._fields if name not in CORRECTIONS), *RuleNumbers._fields[1:])
"""The float32 numbers that tensors of one group share at one step, in their order in memory; ``rate`` is flushed."""


@dataclass(frozen=True)
class Formula:
    """What the arithmetic of a library depends on, apart from numbers.

    Args:
        base: its kind; the numbers in it are not used.
        rule: its kind; the numbers in it are not used.
        decays: how weight decay is applied, None if there is none.
        param: format of parameters: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None if the step does without them.
        grad: format of gradients.
        masked: whether blocks are decided on; else every element moves.
        moment: format of a first moment that is another optimizer's; None where it is ours.
        write: `magma_core.rule.write`, which writes parameters in place; a function like it, whose results take the
            place of gradients; or None if another optimizer writes.
    """

    base: Base
    rule: Rule
    decays: Decay | None
    param: str | None
    grad: str
    masked: bool
    moment: str | None = None
    write: Write | None = algorithm.write

    @classmethod
    def of(cls, base: Base, rule: Rule, *others: Any, **options: Any) -> "Formula":
        """The formula of a step: that of the class, without the numbers of ``base`` and ``rule``."""
        kind = SGD(nesterov=base.nesterov) if isinstance(base, SGD) else type(base)()
        rule = Rule(survival=rule.survival, weight=rule.weight, momentum=rule.momentum)
        return cls(kind, rule, *others, **options)

    @property
    def place(self) -> str:
        """The array that `write` writes."""
        return "theta" if self.write is algorithm.write else "grad"

    @property
    def writes_all(self) -> bool:
        """Whether dropped blocks are written, too."""
        return self.masked and (self.decays == "dense" or self.place == "grad")

    @property
    def moments(self) -> tuple[str, ...]:
        """The moments that have the parameter's shape."""
        if self.write is None:
            return ("mu",) if self.rule.uses_score else ()
        return tuple(name for name in ("mu", "nu") if name in bases.state_fields(self.base, self.rule))

    @property
    def has_powers(self) -> bool:
        """Whether there are running products."""
        return self.write is not None and "mu_power" in bases.state_fields(self.base, self.rule)


class Loop:
    """The body of a loop while it is written: loads, the statements of the core, stores."""

    def __init__(self, formula: Formula) -> None:
        self.formula, self.xp = formula, cast(Namespace, CNamespace())
        self._loads: dict[str, None] = {}

    def real(self, name: str) -> Real:
        """A float32 variable of the skeleton."""
        return Real(Value(name, "float32"), xp=self.xp)

    def element(self, array: str) -> Value:
        """The current element of an array."""
        formats = {"theta": self.formula.param, "grad": self.formula.grad, "mu": self.formula.moment}
        dtype = formats.get(array) or "float32"
        self._loads[array] = None
        return Value(f"{array}_i", dtype)

    def gradient(self) -> Real:
        """g as it enters the step."""
        grad = self.element("grad")
        return Real(self.xp.astype(grad, "float32"), xp=self.xp).flush()

    def state(self) -> State:
        """The moments."""
        return State(**{name: self.element(name) for name in self.formula.moments})

    def momentum(self) -> Real:
        """μ from memory; another optimizer's is converted to float32 and flushed."""
        mu = Real(self.xp.astype(self.element("mu"), "float32"), xp=self.xp)
        return mu.flush() if self.formula.moment else mu

    def numbers(self) -> BaseNumbers:
        """The numbers of the step."""
        return BaseNumbers(*(self.real(name) for name in BaseNumbers._fields))

    def text(self, stores: Mapping[str, Any], after: Sequence[str] = ()) -> str:
        """The loop's body."""
        types = {array: self.element(array).dtype for array in self._loads}
        loads = [f"const {C_TYPES[dtype]} {array}_i = {array}[i];" for array, dtype in types.items()]
        written = [f"{place} = {value.text};" for place, value in stores.items()]
        return "\n    ".join([*loads, *cast(Any, self.xp).statements, *written, *after])


def advance(formula: Formula) -> str:
    """Moments (spec section 4)."""
    loop = Loop(formula)
    g, state = loop.gradient(), loop.state()
    new = bases.advance_moments(g, state, loop.numbers(), base=formula.base)
    return loop.text({f"{name}[i]": getattr(new, name) for name in formula.moments})


def measure(formula: Formula) -> str:
    """Both operands of the alignment: the largest magnitude of each, and their integers on guessed grids (spec 5.1).

    Moments advance first where the rule looks at those after the step.
    """
    loop, stores = Loop(formula), {}
    g, mu = loop.gradient(), loop.momentum()
    if formula.rule.momentum == "after" and not formula.moment:
        new = bases.advance_moments(g, loop.state(), loop.numbers(), base=formula.base)
        stores = {f"{name}[i]": getattr(new, name) for name in formula.moments}
        mu = Real(new.mu, xp=loop.xp)
    operands = mu, g
    peaks = alignment.largest(operands, ())
    for place, operand, scale in zip("xy", operands, ("mu_scale", "grad_scale"), strict=True):
        stores[f"{place}[i]"] = loop.xp.astype(alignment.on_grid(operand, loop.real(scale)).array, "int32")
    larger = [f"{peak} = {v.text} > {peak} ? {v.text} : {peak};" for peak, v in zip(PEAKS, peaks, strict=True)]
    return loop.text(stores, larger)


PEAKS = ("mu_peak", "grad_peak")
"""The variables that hold the `largest` of both operands."""


def project(formula: Formula) -> str:
    """The integers again, on other grids, from the moments that `measure` left in memory."""
    loop = Loop(formula)
    operands = loop.momentum(), loop.gradient()
    stores = {}
    for place, operand, scale in zip("xy", operands, ("mu_scale", "grad_scale"), strict=True):
        stores[f"{place}[i]"] = loop.xp.astype(alignment.on_grid(operand, loop.real(scale)).array, "int32")
    return loop.text(stores)


def write(formula: Formula) -> str:
    """The result of ``formula.write``, such as θ after the step (spec sections 4 and 8)."""
    assert formula.write is not None
    loop = Loop(formula)
    theta = None if formula.param is None else loop.element("theta")
    grad = loop.element("grad") if theta is None or bases.direction_uses_gradient(formula.base) else None
    kept = Value("keep", "bool") if formula.writes_all else None
    new = formula.write(formula, theta, grad, loop.state(), loop.numbers(), loop.real("scale"), kept)
    own = formula.param if formula.place == "theta" else formula.grad
    return loop.text({f"{formula.place}[i]": loop.xp.astype(new, cast(Any, own))})


def correct(formula: Formula) -> str:
    """β₁ᵗ, β₂ᵗ and their bias corrections (spec 4.3)."""
    loop = Loop(formula)
    powers = {name: Value(f"*t->{name}", "float32") for name in ("mu_power", "nu_power")}
    state, at_step = bases.advance_powers(State(**powers), loop.numbers(), xp=loop.xp)
    stores = {f"t->{name}": cast(Real, getattr(at_step, name)).array for name in CORRECTIONS}
    return loop.text(stores | {f"*t->{name}": getattr(state, name) for name in powers})


def grid() -> str:
    """The scale of a block whose `largest` is ``peak``."""
    xp = CNamespace()
    scale = alignment.grid(cast(Any, Value("peak", "int32")), xp=cast(Namespace, xp)).array
    return "\n  ".join([*xp.statements, f"return {scale.text};"])


def narrow() -> str:
    """Whether the integers of a block whose `largest` is ``peak`` fit 16 bits: it is finite and X never 2¹⁵."""
    xp = CNamespace()
    space, peak = cast(Namespace, xp), cast(Any, Value("peak", "int32"))
    top = alignment.on_grid(Real(space.bitcast(peak, "float32"), xp=space), alignment.grid(peak, xp=space))
    fits, finite = space.less(top.array, 2.0**15), alignment.finite(peak, xp=space)
    return "\n  ".join([*xp.statements, f"return {fits.text} && {finite.text};"])


def decide(formula: Formula) -> str:
    """Sums as they are reported, score, coin and scale of one block (spec 5.3 to 7)."""
    loop, rule = Loop(formula), formula.rule
    numbers = RuleNumbers(Value("s->limit", "int64"), *(loop.real(name) for name in RuleNumbers._fields[1:]))
    words = BlockWords(*(Value(name, "int64") for name in ("t->key_high", "t->key_low", "block")))
    sums = before = None
    if rule.uses_score:
        finite = [alignment.finite(cast(Any, Value(peak, "int32")), xp=loop.xp) for peak in PEAKS]
        given = [cast(Any, Value(f"sums->{name}", "int64")) for name in SUMS]
        sums = Stack(alignment.finite_sums(given, *finite, xp=loop.xp))
        before = Value("t->score[block]", "float32")
    step = Value("s->step", "int64")
    found = algorithm.decide(rule, numbers, words, sums, before, step, loop.real("rate"))
    stores: dict[str, Any] = {"keep": found.keep, "*scale": found.scale.array}
    reports: dict[str, Any] = {"keep[block]": found.keep}
    if sums is not None:
        stores["t->score[block]"] = found.score
        reports |= {f"sums[{i} * t->stride + block]": cast(Any, total) for i, total in enumerate(tuple(sums))}
        reports["cosine[block]"] = found.cosine
    wanted = {f"if (t->{place.partition('[')[0]}) t->{place}": value for place, value in reports.items()}
    return loop.text(stores | wanted)


SUMS = ("xy", "xx", "yy")
"""The integer sums of a block, in the order of reports."""
