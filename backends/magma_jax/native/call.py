"""The custom call of a step: its library, its operands and its results."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from magma_native import CompilerMissing
from magma_native.library import load
from magma_native.loops import SETTINGS, Formula
from magma_native.source import source

from magma_core import Plan, State
from magma_core.hyperparameters import masked_rate
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real, binary32, real
from magma_core.state import POWERS, Report
from magma_core.step import Write
from magma_jax import namespace

_XP = cast(Namespace, namespace)
LEAVES = 32
"""The most in a call: XLA's time for a call grows with the square of its operands."""

_CALL = files("magma_jax").joinpath("native/call.c")


@dataclass(frozen=True)
class Call:
    """The custom call for leaves of one formula."""

    formula: Formula

    @property
    def reads(self) -> tuple[str, ...]:
        """The arrays of a leaf that it is given."""
        theta = () if self.formula.param is None else ("theta",)
        return (*theta, "grad", *self.formula.moments, *(("score",) if self._measures else ()))

    @property
    def writes(self) -> tuple[str, ...]:
        """The arrays of a leaf that it returns, in the memory of what it was given by these names."""
        return tuple(name for name in self.reads if name in {self.formula.place, *self.formula.moments, "score"})

    @property
    def reports(self) -> tuple[str, ...]:
        """The new arrays of a leaf that it can return besides."""
        return ("sums", "cosine", "keep") if self._measures else ("keep",) if self.formula.masked else ()

    @property
    def powers(self) -> tuple[str, ...]:
        """The running products, which leaves share."""
        return POWERS if self.formula.has_powers else ()

    @property
    def _measures(self) -> bool:
        return self.formula.masked and self.formula.rule.uses_score

    def source(self) -> str:
        """The program: the step, and the call of it."""
        parts = {
            "POWERS": str(len(self.powers)),
            "GIVEN_COUNT": str(len(self.reads)),
            "GIVEN": ", ".join(f"offsetof(Tensor, {name})" for name in self.reads),
            "RETURNED": ", ".join(f"offsetof(Tensor, {name})" for name in (*self.writes, *self.reports)),
            "FIRST": SETTINGS[0],
            "NUMBERS_SIZE": str(4 * len(SETTINGS)),
        }
        text = _CALL.read_text(encoding="utf-8")
        for mark, code in parts.items():
            text = text.replace(f"/*@{mark}@*/", code)
        return f"// jaxlib {jaxlib.__version__}\n#define OWN_THREADS\n{source(self.formula)}\n{text}"

    def run(
        self, plans: Sequence[Plan], leaves: Sequence[dict[str, Array]], step: Any, rate: Real, *, reports: bool
    ) -> None:
        """Replace the arrays of leaves, which are in `_rows`, by those after the step, and add reports."""
        operands = [_numbers(plans[0], rate), _integers(step, plans[0].rule_numbers.limit), _layout(plans)]
        operands += [leaves[0][name] for name in self.powers]
        results = [jax.ShapeDtypeStruct((), jnp.float32) for _ in self.powers]
        aliases = {}
        for plan, arrays in zip(plans, leaves, strict=True):
            for name in self.writes:
                aliases[len(operands) + self.reads.index(name)] = len(results)
                results.append(jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype))
            operands += [arrays[name] for name in self.reads]
            if reports:
                shapes = report_shapes(plan)
                results += [shapes[name] for name in self.reports]
        found = iter(jax.ffi.ffi_call(target(self), results, input_output_aliases=aliases)(*operands))
        powers = {name: next(found) for name in self.powers}
        for arrays in leaves:
            arrays |= powers | {name: next(found) for name in (*self.writes, *(self.reports if reports else ()))}


def report_shapes(plan: Plan) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a `magma_core.Report`."""
    shape, found = plan.blocks.block_shape, {}
    if plan.masked:
        found["keep"] = jax.ShapeDtypeStruct(shape, jnp.bool)
    if plan.rule.uses_score:
        found["sums"] = jax.ShapeDtypeStruct((3, *shape), np.dtype(np.int64))
        found["cosine"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return found


def target(call: Call) -> str:
    """The name of a call for XLA; it is compiled, or taken from the cache.

    Raises:
        magma_native.CompilerMissing: if there is no C compiler that can make it, or XLA refuses it.
    """
    found = _target(call)
    if isinstance(found, CompilerMissing):
        raise found
    return found


@functools.cache
def _target(call: Call) -> str | CompilerMissing:
    """The name, or why there is none: a compiler that fails is not asked at every step."""
    text = call.source()
    name = f"magma_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    try:
        made = load(text, headers=jax.ffi.include_dir())
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(made.magma_call), platform="cpu")
    except CompilerMissing as error:
        return error
    except Exception as error:  # jaxlib's own, for another version of its interface
        return CompilerMissing(f"XLA does not take a step in C: {error}")
    return name


def calls(
    plans: Sequence[Plan], params: Sequence[Any], dtypes: Sequence[Any], write: Write
) -> list[tuple[Call, list[int]]]:
    """The calls that a step needs, and the leaves of each by number; gradients are of ``dtypes``."""
    found: dict[Any, tuple[Call, list[int]]] = {}
    for i, (plan, param, dtype) in enumerate(zip(plans, params, dtypes, strict=True)):
        own = None if param is None else jnp.dtype(param.dtype).name
        formula = Formula.of(plan.base, plan.rule, plan.decays, own, jnp.dtype(dtype).name, plan.masked, None, write)
        numbers = map(identity, (*plan.numbers, *plan.rule_numbers))
        found.setdefault((formula, *numbers), (Call(formula), []))[1].append(i)
    return list(found.values())


def identity(number: Any) -> Any:
    """The number, or of an array which one it is: equal arrays that are not one only make for more calls."""
    array = getattr(number, "array", number)
    return id(array) if hasattr(array, "dtype") else number


def update_by_calls(
    wanted: Sequence[tuple[Call, list[int]]],
    plans: Sequence[Plan],
    params: Sequence[Any],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    step: Any,
    lr: Any,
    lr_scale: Any,
    reports: bool,
) -> tuple[list[Array], list[State], list[Report]]:
    """`magma_core.update_planned`, for whole blocks on one CPU; ``wanted`` are its `calls`."""
    with _XP.scope():
        rate = real(lr, xp=_XP).flush()
        masked = masked_rate(rate, lr_scale)
        leaves = [
            _rows(plan, theta=param, grad=grad, **state._asdict())
            for plan, param, grad, state in zip(plans, params, grads, states, strict=True)
        ]
        for call, members in wanted:
            own = masked if call.formula.masked else rate
            for first in range(0, len(members), LEAVES):
                few = members[first : first + LEAVES]
                call.run([plans[i] for i in few], [leaves[i] for i in few], step, own, reports=reports)
        places = {i: call.formula.place for call, members in wanted for i in members}
        whole = [_whole(*one) for one in zip(plans, leaves, strict=True)]
        new = [State(**{name: x for name, x in arrays.items() if name in State._fields}) for arrays in whole]
        observed = [Report(*map(arrays.get, Report._fields)) for arrays in whole]
        return [arrays[places[i]] for i, arrays in enumerate(whole)], new, observed


def _rows(plan: Plan, **arrays: Any) -> dict[str, Array]:
    """Arrays that are there, those of the parameter's shape with a row for each block."""
    order = (*plan.blocks.axes, *plan.blocks.inner_axes)
    shaped = [name for name in _SHAPED if arrays[name] is not None]
    return {name: x for name, x in arrays.items() if x is not None} | {
        name: _XP.permute_dims(arrays[name], order) for name in shaped
    }


def _whole(plan: Plan, arrays: dict[str, Array]) -> dict[str, Array]:
    back = np.argsort((*plan.blocks.axes, *plan.blocks.inner_axes)).tolist()
    return arrays | {name: _XP.permute_dims(arrays[name], tuple(back)) for name in _SHAPED if name in arrays}


_SHAPED = ("theta", "grad", "mu", "nu")
"""The arrays of the parameter's shape."""


def _numbers(plan: Plan, rate: Real) -> Array:
    """The numbers of `magma_native.loops.SETTINGS`."""
    given: dict[str, Any] = plan.numbers._asdict() | plan.rule_numbers._asdict() | {"rate": rate}
    values = [given[name] for name in SETTINGS]
    return jnp.stack([x.array if isinstance(x, Real) else jnp.float32(binary32(x)) for x in values])


def _layout(plans: Sequence[Plan]) -> Array:
    """Rows, columns and key of each leaf: (leaves, 4)."""
    return jnp.stack([_integers(plan.blocks.count, plan.blocks.block_size, *plan.key) for plan in plans])


def _integers(*values: Any) -> Array:
    if any(isinstance(x, jax.Array) for x in values):
        return jnp.stack([jnp.asarray(x, jnp.int64) for x in values])
    return np.array(values, np.int64)
