"""A step as one primitive of JAX: on a CPU a custom call where there can be one, elsewhere XLA's own operations.

A primitive decides late. On which platform and how many devices a step runs is known when it is lowered, not when it is
traced; and XLA's operations are traced only where they are needed. Derivatives and `jax.vmap` take XLA's operations.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, get_abstract_mesh
from magma_native import CompilerMissing, find_compiler

from magma_core import Plan, State
from magma_core.config import LR_SCALE
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real
from magma_core.rule import advance as advance_parts
from magma_core.rule import write as write_parameter
from magma_core.state import POWERS, Report
from magma_core.step import Advance, Write
from magma_core.step import update_planned as update_by_xla
from magma_jax import namespace
from magma_jax.native.call import Call, calls, identity, report_shapes, target, update_by_calls

_XP = cast(Namespace, namespace)


class Ways(NamedTuple):
    """Functions of a step: those of `magma_core.rule`, or like them."""

    write: Write  # for XLA
    in_c: Write | None  # the same, of the core's functions alone; None for XLA everywhere
    advance: Advance = advance_parts  # for XLA
    required: bool = False  # warn if there is no compiler; one that fails is always warned of


def update_planned(
    plans: Sequence[Plan],
    params: Sequence[Any],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    step: Any,
    lr: Any,
    lr_scale: Any = LR_SCALE,
    ways: Ways,
    dtypes: Sequence[Any],
    reports: bool,
) -> tuple[list[Array], list[State], list[Report]]:
    """`magma_core.update_planned`, behind a barrier: XLA does not optimize across the step's inputs.

    Args:
        plans: as there, like the next six; all states have the same powers.
        params: parameters, or None where the step does without them.
        grads: gradients.
        states: states.
        step: t.
        lr: the learning rate.
        lr_scale: a factor of it for masked parameters.
        ways: what to return in place of parameters, and how.
        dtypes: those of what is returned in place of parameters.
        reports: whether reports are needed; else they are empty.
    """
    if not plans:
        return [], [], []
    _check_shared(plans, states)
    if isinstance(lr, int | float):
        lr = np.float32(lr)  # an input, so that eager steps of other rates are the same program
    arguments = list(plans), list(params), list(grads), list(states), step, lr, lr_scale
    leaves, tree = jax.tree.flatten(arguments)
    places: dict[int, int] = {}  # of arrays, by identity: what leaves share enters once
    arrays: list[Array] = []
    static: list[Any] = []
    for leaf in leaves:
        x = leaf.array if isinstance(leaf, Real) else leaf
        if not hasattr(x, "dtype"):
            static.append(leaf)
            continue
        if id(x) not in places:
            places[id(x)] = len(arrays)
            arrays.append(x)
        static.append(_Place(places[id(x)], isinstance(leaf, Real)))
    one = Step(tree, tuple(static), ways, tuple(map(jnp.dtype, dtypes)), reports)
    arrays = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in arrays]
    found = _step.bind(*arrays, step=one) if one.may_call(arrays) else one.by_xla(*arrays)
    return one.results(arrays, found)


def _check_shared(plans: Sequence[Plan], states: Sequence[State]) -> None:
    """Raise unless leaves share what is computed once: their rule, their decay rates, and their powers."""
    rates = {(identity(plan.numbers.beta1), identity(plan.numbers.beta2)) for plan in plans}
    powers = {tuple(map(id, (state.mu_power, state.nu_power))) for state in states}
    if len({plan.rule for plan in plans if plan.masked}) > 1 or len(rates) > 1 or len(powers) > 1:
        raise ValueError("plans must share one rule and one base, and states their powers: use a call for each")


@dataclass(frozen=True)
class _Place:
    """Where an array was among the arguments."""

    number: int
    real: bool


@dataclass(frozen=True)
class Step:
    """Everything about a step but its arrays; see `update_planned`."""

    tree: Any
    static: tuple[Any, ...]
    ways: Ways
    dtypes: tuple[Any, ...]
    reports: bool

    def arguments(self, arrays: Sequence[Any]) -> Any:
        """The positional arguments, step, lr and lr_scale."""

        def leaf(x: Any) -> Any:
            if not isinstance(x, _Place):
                return x
            return Real(arrays[x.number], xp=_XP) if x.real else arrays[x.number]

        return jax.tree.unflatten(self.tree, map(leaf, self.static))

    def may_call(self, arrays: Sequence[Any]) -> bool:
        """Whether custom calls could do it: for whole blocks on one device, and no float64."""
        plans, params, grads, *_ = self.arguments(arrays)
        mesh = get_abstract_mesh()
        formats = {x.dtype for x in (*params, *grads) if x is not None} | set(self.dtypes)
        return (
            self.ways.in_c is not None
            and all(plan.shard is None for plan in plans)
            and (mesh.size == 1 or all(kind == AxisType.Manual for kind in mesh.axis_types))
            and formats <= set(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))
        )

    def calls(self, avals: Sequence[Any]) -> list[tuple[Call, list[int]]]:
        """Its custom calls."""
        plans, params, grads, *_ = self.arguments(avals)
        assert self.ways.in_c is not None
        return calls(plans, params, self._entering(grads), self.ways.in_c)

    def _entering(self, grads: Sequence[Any]) -> Sequence[Any]:
        """The dtypes in which gradients enter calls: those of results that take their place."""
        return [x.dtype for x in grads] if self.ways.in_c is write_parameter else self.dtypes

    def can_call(self, avals: Sequence[Any]) -> bool:
        """Whether there is a compiler that makes its calls."""
        try:
            for call, _ in self.calls(avals):
                target(call)
        except CompilerMissing as error:
            if self.ways.required or _compiler_found():
                warnings.warn(f"the step is left to XLA, with the same results: {error}", stacklevel=2)
            return False
        return True

    def by_calls(self, *arrays: Array) -> list[Array]:
        """Results of custom calls."""
        plans, params, grads, states, step, lr, lr_scale = self.arguments(arrays)
        grads = [grad.astype(dtype) for grad, dtype in zip(grads, self._entering(grads), strict=True)]
        numbers = {"step": step, "lr": lr, "lr_scale": lr_scale}
        found = update_by_calls(self.calls(arrays), plans, params, grads, states, **numbers, reports=self.reports)
        return _flat(*found)

    def by_xla(self, *arrays: Array) -> list[Array]:
        """Results of XLA's operations."""
        # one by one: shard_map treats everything that passes together as varying if any of it varies
        plans, params, grads, states, step, lr, lr_scale = self.arguments([namespace.barrier(x) for x in arrays])
        written, states, reports = update_by_xla(
            plans,
            params,
            grads,
            states,
            step=step,
            lr=lr,
            lr_scale=lr_scale,
            xp=_XP,
            advance=self.ways.advance,
            write=self.ways.write,
        )
        written = [x.astype(dtype) for x, dtype in zip(written, self.dtypes, strict=True)]
        return _flat(written, states, reports if self.reports else [Report()] * len(reports))

    def outline(self, arrays: Sequence[Any]) -> Any:
        """The tree of results, each a `_Result`."""
        plans, params, grads, states, *_ = self.arguments(arrays)
        written, new, reports = [], [], []
        for plan, param, grad, state, dtype in zip(plans, params, grads, states, self.dtypes, strict=True):
            of = [x for x in (param, grad, *state) if x is not None]
            written.append(_Result(grad.shape, dtype, of))
            new.append(State(*(None if x is None else _Result(x.shape, x.dtype, of) for x in state)))
            shapes = report_shapes(plan) if self.reports else {}
            reports.append(Report(**{name: _Result(x.shape, x.dtype, of) for name, x in shapes.items()}))
        return _without_copies(written, new, reports)

    def results(self, arrays: Sequence[Any], found: Sequence[Array]) -> tuple[list[Array], list[State], list[Report]]:
        """What `update_planned` returns."""
        structure = jax.tree.structure(self.outline(arrays), is_leaf=lambda x: isinstance(x, _Result))
        written, powers, states, reports = jax.tree.unflatten(structure, found)
        return written, [state._replace(**powers) for state in states], reports


def _compiler_found() -> bool:
    try:
        return bool(find_compiler())
    except CompilerMissing:
        return False


class _Result(NamedTuple):
    """The outline of an array that is computed of others."""

    shape: tuple[int, ...]
    dtype: Any
    of: list[Any]

    def stand_in(self) -> Array:
        """An array like it, computed of all inputs so that JAX knows it to vary over a mesh as they do."""
        return jnp.broadcast_to(sum(jnp.sum(x.astype(jnp.float32)) for x in self.of), self.shape).astype(self.dtype)


def _without_copies(written: list[Any], states: list[State], reports: list[Report]) -> Any:
    """Results with the powers of all states once."""
    powers = {name: getattr(states[0], name) for name in POWERS}
    return written, powers, [state._replace(**dict.fromkeys(POWERS)) for state in states], reports


def _flat(written: list[Any], states: list[State], reports: list[Report]) -> list[Array]:
    return jax.tree.leaves(_without_copies(written, states, reports))


_step = Primitive("magma_step")
_step.multiple_results = True


@_step.def_abstract_eval
def _(*avals: Any, step: Step) -> list[Any]:
    def outlined(arrays: Sequence[Any]) -> list[_Result]:
        return jax.tree.leaves(step.outline(arrays), is_leaf=lambda x: isinstance(x, _Result))

    if not get_abstract_mesh().axis_types:
        return [jax.core.ShapedArray(x.shape, x.dtype) for x in outlined(avals)]
    with _XP.scope():
        return jax.make_jaxpr(lambda *arrays: [x.stand_in() for x in outlined(arrays)])(*avals).out_avals


@_step.def_impl
def _(*arrays: Any, step: Step) -> list[Array]:
    devices = {device for x in arrays for device in x.devices()}
    alone = len(devices) == 1 and all(device.platform == "cpu" for device in devices)
    if alone and not jax.config.jax_disable_jit and step.can_call(arrays):
        return _compiled(step)(*arrays)
    return step.by_xla(*arrays)


@functools.lru_cache(64)
def _compiled(step: Step) -> Callable[..., list[Array]]:
    return jax.jit(functools.partial(_step.bind, step=step))


def _lower(context: mlir.LoweringRuleContext, *operands: Any, step: Step) -> Any:
    """On a CPU."""
    module = context.module_context
    context_of = module.axis_context  # in shard_map one with axes, where each device has a program of its own
    alone = getattr(context_of, "num_devices", 0) == 1 or bool(getattr(context_of, "manual_axes", ()))
    can = alone and not module.lowering_parameters.for_export and step.can_call(context.avals_in)
    function = step.by_calls if can else step.by_xla
    return mlir.lower_fun(function, multiple_results=True)(context, *operands)


def _lower_elsewhere(context: mlir.LoweringRuleContext, *operands: Any, step: Step) -> Any:
    return mlir.lower_fun(step.by_xla, multiple_results=True)(context, *operands)


def _differentiate(primals: Any, tangents: Any, *, step: Step) -> Any:
    return jax.jvp(step.by_xla, primals, tuple(ad.instantiate_zeros(x) for x in tangents))


def _batch(arrays: Any, axes: Any, *, step: Step) -> Any:
    found = jax.vmap(step.by_xla, in_axes=tuple(axes))(*arrays)
    return found, [0] * len(found)


mlir.register_lowering(_step, _lower, platform="cpu")
mlir.register_lowering(_step, _lower_elsewhere)
ad.primitive_jvps[_step] = _differentiate
batching.primitive_batchers[_step] = _batch
