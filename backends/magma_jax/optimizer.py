"""One optax transformation for every base and rule: a state in the tree's shape; update, step and alignment."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from magma_core import Plan, Report, State, state_fields
from magma_core.arguments import check_flag
from magma_core.bases import initial_moment
from magma_core.namespace import Namespace
from magma_core.numerics import real
from magma_core.plan import check_state
from magma_core.rule import write as write_parameter
from magma_core.state import POWERS, Alignment
from magma_core.step import Write
from magma_jax import namespace
from magma_jax.decay_mask import decaying
from magma_jax.gpu.kernels import advance_tiles, write_tiles
from magma_jax.learning_rate import Schedule, rate_at
from magma_jax.names import is_none, leaf_names
from magma_jax.native.primitive import Ways, update_planned
from magma_jax.options import Hyperparameter, Options
from magma_jax.trees import entries, float_places, takes_arithmetic
from magma_jax.updates import direction, new_parameter, update_to_add

_XP = cast(Namespace, namespace)
_GRADIENTS = "the gradients (None for a leaf without one)"
_INIT = "the parameters, as init(params) makes it"


class MagmaState(NamedTuple):
    """The state of a transformation. Trees have the structure of the parameters; all floats are float32.

    A tree, or a leaf of it, is None if base and rule do not use it.
    """

    count: jax.Array  # (), int32: completed steps
    mu: Any  # leaves of the parameters' shapes: first moments μ
    nu: Any  # leaves of the parameters' shapes: second moments ν
    mu_power: jax.Array | None  # (): β₁ᵗ as a running product
    nu_power: jax.Array | None  # (): β₂ᵗ as a running product
    score: Any  # leaves of block shape: s


class MagmaTransformation(optax.GradientTransformationExtraArgs):
    """An `optax.GradientTransformationExtraArgs` with two more functions, and its options.

    Attributes:
        init: as in optax.
        update: as in optax; extra arguments are accepted and ignored.
        step: ``(params, grads, state) -> (params, state)``: returns parameters instead of updates to add, so the
            contract holds to the last bit for every format and every rule. Without a learning rate, uses 1.
        alignment: ``(grads, state, params) -> {name: Alignment}``: what `update` or `step` observes and decides given
            the same arguments. It recomputes them; if both run in one jitted function, XLA merges most of the work.
        options: the arguments, without the learning rate.
    """

    step: Callable[..., tuple[Any, MagmaState]]
    alignment: Callable[..., dict[str, Alignment]]
    options: Options


def transformation(
    options: Options,
    learning_rate: Hyperparameter | Schedule | None,
    *,
    float32_updates: bool = False,
    kernels: bool | None = None,
) -> MagmaTransformation:
    """The transformation; without a learning rate its updates are directions, for others to scale and negate.

    Args:
        options: base, rule and mask options.
        learning_rate: lr ≥ 0: a number, an array of shape (), or a schedule, called with the number of completed steps.
        float32_updates: return float32 updates whatever the parameters' format.
        kernels: None steps in C on a CPU where there is a compiler, and with XLA's operations elsewhere (docs/jax.md).
            True warns if there is no compiler, and on CUDA runs the kernels of `magma_jax.gpu` on large blocks, faster
            and in place: on one device, or on a device's part inside `jax.shard_map` with ``specs``; they are not
            differentiable. False leaves every step to XLA. Donate parameters and state in any case.
    """
    check_flag("float32_updates", float32_updates)
    if kernels is not None:
        check_flag("kernels", kernels)

    def ways(write: Write, on_cuda: Write, in_c: Write) -> Ways:
        if not kernels:
            return Ways(write, in_c if kernels is None else None)
        return Ways(on_cuda, in_c, advance_tiles, required=True)

    def rate(state: MagmaState) -> Any:
        return rate_at(learning_rate, state.count)

    def init(params: Any) -> MagmaState:
        state = initial_state(options, params)
        rate(state)  # checks a schedule's first value
        return state

    def update(grads: Any, state: MagmaState, params: Any = None, **extra: Any) -> tuple[Any, MagmaState]:
        del extra
        check_state_type(state, MagmaState, (grads, params), "update(grads, state, params)")
        leaves = Leaves(options, grads, params)
        if params is None and (learning_rate is not None or any(plan.decays for plan in leaves.plans)):
            why = "weight decay" if learning_rate is None else "the learning rate"
            raise ValueError(f"params must be given because of {why}: call update(grads, state, params)")
        write = direction if learning_rate is None else update_to_add
        dtypes = [jnp.float32 if float32_updates else x.dtype for x in leaves.own]
        updates, state, _ = leaves.step(state, rate(state), ways(write, write, write), dtypes)
        return leaves.put(leaves.no_updates(), updates), state

    def step(params: Any, grads: Any, state: MagmaState, **extra: Any) -> tuple[Any, MagmaState]:
        del extra
        if params is None:
            raise ValueError("params must be given: call step(params, grads, state)")
        check_state_type(state, MagmaState, (params, grads), "step(params, grads, state)")
        leaves = Leaves(options, grads, params)
        dtypes = [x.dtype for x in leaves.own]
        new, state, _ = leaves.step(state, rate(state), ways(new_parameter, write_tiles, write_parameter), dtypes)
        return leaves.put(params, new), state

    def alignment(grads: Any, state: MagmaState, params: Any = None) -> dict[str, Alignment]:
        check_state_type(state, MagmaState, (grads, params), "alignment(grads, state, params)")
        leaves = Leaves(options, grads, params)
        write = direction if params is None or learning_rate is None else update_to_add
        own, dtypes = Ways(write, None if kernels is False else write), [x.dtype for x in leaves.grads]
        _, new, reports = leaves.step(state, rate(state), own, dtypes, reports=True)
        return {
            plan.name: Alignment(report.cosine, score, report.keep, report.sums)
            for plan, report, score in zip(leaves.plans, reports, leaves.pick(new.score), strict=True)
            if plan.masked
        }

    made = MagmaTransformation(init, update)
    made.step, made.alignment, made.options = step, alignment, options
    return made


class Leaves:
    """The leaves of a gradient tree that take part: floats, not None. All lists have one entry per leaf.

    Attributes:
        grads: gradients.
        params: parameters; None without a tree of them.
        own: parameters if given, else gradients.
        plans: the plan of each leaf.
    """

    def __init__(self, options: Options, grads: Any, params: Any) -> None:
        self._all, self._structure = jax.tree.flatten(grads, is_leaf=is_none)
        self._like = grads
        own = self._all if params is None else entries(params, grads, label="params", of=_GRADIENTS)
        names = leaf_names(grads, options.name)
        self._places = float_places(own, self._all, names)
        self.grads: list[Any] = [jnp.asarray(x) for x in self.pick(grads)]
        self.params: list[Any] = [None if x is None else jnp.asarray(x) for x in self.pick(params)]
        self.own = self.grads if params is None else self.params
        for i, param, grad in zip(self._places, self.own, self.grads, strict=True):
            if param.shape != grad.shape:
                raise ValueError(
                    f"gradient of {names[i]!r} must have the parameter's shape {param.shape}, got {grad.shape}"
                )
            if param.dtype != grad.dtype:
                raise TypeError(
                    f"gradient of {names[i]!r} must have the parameter's dtype {param.dtype}, got {grad.dtype}: cast it"
                )
        self._factor = options.factor
        decays = self.pick(decaying(options.weight_decay_mask, grads if params is None else params))
        self.plans = options.plan([_narrow(x) for x in self.own], [names[i] for i in self._places], decays)

    def pick(self, tree: Any, label: str = "state") -> list[Any]:
        """The entries of another tree at these leaves; None for no tree."""
        if tree is None:
            return [None] * len(self._places)
        own = entries(tree, self._like, label=label, of=_INIT)
        return [own[i] for i in self._places]

    def put(self, tree: Any, new: Sequence[Any]) -> Any:
        """The tree with ``new`` entries at these leaves; no tree without entries."""
        if tree is None:
            return None
        leaves = self._structure.flatten_up_to(tree)
        for i, entry in zip(self._places, new, strict=True):
            leaves[i] = entry
        return self._structure.unflatten(leaves)

    def no_updates(self) -> Any:
        """Updates for leaves that take no part: zeros for integer gradients, None for all others."""
        zeros = [jnp.zeros(jnp.shape(x), jnp.int32) if takes_arithmetic(x) else None for x in self._all]
        return self._structure.unflatten(zeros)

    def step(
        self, state: MagmaState, rate: Any, ways: Ways, dtypes: Sequence[Any], *, reports: bool = False
    ) -> tuple[list[Any], MagmaState, list[Report]]:
        """One step: what ``ways`` write, of ``dtypes``; the new state; and reports, if asked for."""
        trees = {field: getattr(state, field) for field in ("mu", "nu", "score")}
        powers = {field: getattr(state, field) for field in POWERS}
        count = optax.safe_increment(state.count)
        picked = zip(*(self.pick(tree, f"state.{field}") for field, tree in trees.items()), strict=True)
        states = [State(**powers, **dict(zip(trees, own, strict=True))) for own in picked]
        for plan, own in zip(self.plans, states, strict=True):
            check_state(own, plan, _XP)
        written, states, found = update_planned(
            self.plans,
            self.params,
            [_narrow(x) for x in self.grads],
            states,
            step=count,
            lr=rate,
            lr_scale=self._factor,
            ways=ways,
            dtypes=dtypes,
            reports=reports,
        )
        if states:
            powers = {field: getattr(states[0], field) for field in POWERS}
        new = {field: self.put(tree, [getattr(one, field) for one in states]) for field, tree in trees.items()}
        return written, MagmaState(count, **powers, **new), found


def initial_state(options: Options, params: Any) -> MagmaState:
    """The state before the first step; leaves that are not floats take no part."""
    found, structure = jax.tree.flatten(params, is_leaf=is_none)
    names = leaf_names(params, options.name)
    floats = float_places(found, found, names)
    leaves = {i: found[i] if hasattr(found[i], "dtype") else jnp.asarray(found[i]) for i in floats}
    if floats and (decays := decaying(options.weight_decay_mask, params)) is not None:
        flags = jax.tree.leaves(decays, is_leaf=is_none)
        if not any(flags[i] for i in floats):
            warnings.warn("weight_decay_mask selects no leaf: no parameter decays", stacklevel=3)
    plans = options.plan([_narrow(jnp.zeros_like(leaves[i])) for i in floats], [names[i] for i in floats])
    _warn_of_one_vector(plans)
    trees: dict[str, list[Any]] = {field: [None] * len(names) for field in ("mu", "nu", "score")}
    for i, plan in zip(floats, plans, strict=True):
        for field in state_fields(plan.base, plan.rule):
            if field in trees:
                trees[field][i] = _moment(field, leaves[i])
        if plan.rule.uses_score:
            trees["score"][i] = _initial_score(options, plan, leaves[i])
    fields = state_fields(options.base, options.rule)
    there = {*fields, "score"} if options.rule.uses_score else {*fields}
    return MagmaState(
        jnp.zeros((), jnp.int32),
        **{field: jnp.ones((), jnp.float32) if field in there else None for field in POWERS},
        **{field: structure.unflatten(trees[field]) if field in there else None for field in trees},
    )


def _moment(field: str, leaf: Any) -> jax.Array:
    """Zeros, sharded like the leaf: under jit, only an operation ties the two shardings together."""
    zeros = initial_moment(field, jnp.zeros_like(leaf), xp=_XP)
    return jnp.where(leaf == 0, zeros, zeros) if isinstance(leaf, jax.core.Tracer) else zeros


def _initial_score(options: Options, plan: Plan, leaf: jax.Array) -> jax.Array:
    """s₀ in block shape, sharded like a step's scores: by a reduction over the same axes."""
    zeros = jnp.sum(_moment("score", leaf), axis=plan.blocks.inner_axes)
    if plan.shard is not None:
        zeros = plan.shard.total(zeros)
    value = real(options.rule_arrays.get("initial_score", options.rule.initial_score), xp=_XP).flush()
    return plan.blocks.order(zeros, xp=_XP) + value.array


def check_state_type(state: Any, kind: type, others: Sequence[Any], call: str) -> None:
    """Raise TypeError unless ``state`` is a ``kind``; ``others`` are the call's other arguments."""
    if isinstance(state, kind):
        return
    remedy = "make it with init(params)"
    if any(isinstance(other, kind) for other in others):
        remedy = f"the order is {call}"
    elif isinstance(state, dict | list | tuple):
        remedy = "restore into the result of init(params), which has its types; of a chain, give the member that is one"
    raise TypeError(f"state must be the {kind.__name__} that init made, got {type(state).__name__}: {remedy}")


def _warn_of_one_vector(plans: Sequence[Plan]) -> None:
    """A tree that is a vector: a step moves all of it or nothing, which is seldom meant."""
    if len(plans) == 1 and not plans[0].name and plans[0].masked and plans[0].blocks.inner_axes == (0,):
        warnings.warn(
            "params is one vector, and one block: a step moves the whole model or nothing. Do not put optax.flatten "
            "around this optimizer; for a vector of your own, block_axes=(0,) makes each element a block, and "
            '{"x": vector} gives it a name',
            stacklevel=4,
        )


def _narrow(x: Any) -> Any:
    """Round binary64, which is outside the contract, to binary32."""
    return x if x is None or x.dtype != jnp.float64 else x.astype(jnp.float32)
