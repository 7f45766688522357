"""One optax transformation for every base and rule: a state in the tree's shape, and three things to ask of a step."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax

from magma_core import Plan, Report, State, state_fields
from magma_core.bases import initial_moment
from magma_core.namespace import Namespace
from magma_core.numerics import binary32
from magma_core.rule import Outcome, direct, displace, step_planned, write
from magma_core.state import Alignment
from magma_jax import namespace
from magma_jax.names import is_none, leaf_names
from magma_jax.options import Hyperparameter, Options

_XP = cast(Namespace, namespace)
_POWERS = ("mu_power", "nu_power")

Schedule: TypeAlias = Callable[[Any], Any]


class MagmaState(NamedTuple):
    """The state of a transformation; trees have the structure of the parameters, all floats are float32.

    A tree, or a leaf of it, is None where base and rule have no use for it.
    """

    count: jax.Array  # (), int32: steps done
    mu: Any  # leaves of the parameters' shapes: first moments μ
    nu: Any  # likewise: second moments ν
    mu_power: jax.Array | None  # (): β₁ᵗ as a running product
    nu_power: jax.Array | None  # (): β₂ᵗ as a running product
    score: Any  # leaves of block shape: s


class MagmaTransformation(optax.GradientTransformationExtraArgs):
    """An `optax.GradientTransformationExtraArgs` with two functions more.

    Attributes:
        init: as in optax.
        update: as in optax; extra arguments are taken and not looked at.
        step: ``(params, grads, state) -> (params, state)``: the parameters themselves instead of updates to add, so
            that the contract holds to the last bit for every format and every rule. Without a learning rate, as if
            it were 1.
        alignment: ``(grads, state, params) -> {name: Alignment}``: what `update` or `step` sees and decides if it is
            given the same arguments; in one jitted function with it, at no cost.
    """

    step: Callable[..., tuple[Any, MagmaState]]
    alignment: Callable[..., dict[str, Alignment]]


def transformation(
    options: Options, learning_rate: Hyperparameter | Schedule | None, *, float32_updates: bool = False
) -> MagmaTransformation:
    """The transformation; without a learning rate its updates are directions, to be scaled and negated by others."""

    def rate(state: MagmaState) -> Any:
        if learning_rate is None:
            return 1.0
        return learning_rate(state.count) if callable(learning_rate) else learning_rate

    def init(params: Any) -> MagmaState:
        return _initial_state(options, params)

    def update(grads: Any, state: MagmaState, params: Any = None, **extra: Any) -> tuple[Any, MagmaState]:
        del extra
        if params is None and learning_rate is not None:
            raise ValueError("update needs the parameters: call update(grads, state, params)")
        leaves = _Leaves(options, grads, params)
        outcome: Outcome = direct if learning_rate is None else _displace
        updates, state, _ = leaves.advance(outcome, state, rate(state))
        dtypes = {i: jnp.float32 if float32_updates else leaves.dtype(i) for i in leaves.taking_part}
        return leaves.tree([u if u is None else u.astype(dtypes[i]) for i, u in enumerate(updates)]), state

    def step(params: Any, grads: Any, state: MagmaState, **extra: Any) -> tuple[Any, MagmaState]:
        del extra
        leaves = _Leaves(options, grads, params)
        new, state, _ = leaves.advance(_write, state, rate(state))
        return leaves.tree([old if x is None else x for x, old in zip(new, leaves.params, strict=True)]), state

    def alignment(grads: Any, state: MagmaState, params: Any = None) -> dict[str, Alignment]:
        leaves = _Leaves(options, grads, params)
        _, new, reports = leaves.advance(direct, state, rate(state))
        scores = leaves.flatten(new.score)
        return {
            leaves.names[i]: Alignment(report.cosine, scores[i], report.keep, report.sums)
            for i, report in enumerate(reports)
            if report is not None and report.keep is not None
        }

    made = MagmaTransformation(init, update)
    made.step, made.alignment = step, alignment
    return made


class _Leaves:
    """The leaves of a tree of gradients, None among them, with the parameters that they belong to."""

    def __init__(self, options: Options, grads: Any, params: Any) -> None:
        leaves, self._structure = jax.tree.flatten(grads, is_leaf=is_none)
        self.grads: list[Any] = [None if x is None else jnp.asarray(x) for x in leaves]
        self.params = self.flatten(params)
        self.names = leaf_names(grads, options.name)
        self.taking_part = [i for i, grad in enumerate(self.grads) if grad is not None]
        for i in self.taking_part:
            self._check(i)
        own = [self.grads[i] if params is None else self.params[i] for i in self.taking_part]
        self._plans = options.plan([_narrow(x) for x in own], [self.names[i] for i in self.taking_part])

    def _check(self, i: int) -> None:
        param, grad = self.params[i], self.grads[i]
        if param is not None and jnp.shape(param) != grad.shape:
            raise ValueError(
                f"gradient of {self.names[i]!r} must have the parameter's shape {jnp.shape(param)}, got {grad.shape}"
            )

    def flatten(self, tree: Any) -> list[Any]:
        """What another tree has at the places of the leaves; None for no tree."""
        return [None] * len(self.grads) if tree is None else list(self._structure.flatten_up_to(tree))

    def tree(self, leaves: list[Any]) -> Any:
        """The reverse."""
        return self._structure.unflatten(leaves)

    def dtype(self, i: int) -> Any:
        return (self.grads if self.params[i] is None else self.params)[i].dtype

    def advance(
        self, outcome: Outcome, state: MagmaState, rate: Any
    ) -> tuple[list[Any], MagmaState, list[Report | None]]:
        """One step: outcomes and reports of all leaves, None where there is no gradient, and the new state."""
        trees = {field: self.flatten(getattr(state, field)) for field in ("mu", "nu", "score")}
        powers = {field: getattr(state, field) for field in _POWERS}
        count = optax.safe_increment(state.count)
        outcomes: list[Any] = [None] * len(self.grads)
        reports: list[Report | None] = [None] * len(self.grads)
        done = step_planned(
            outcome,
            self._plans,
            [self.params[i] for i in self.taking_part],
            [_narrow(self.grads[i]) for i in self.taking_part],
            [State(**powers, **{field: leaves[i] for field, leaves in trees.items()}) for i in self.taking_part],
            step=count,
            lr=rate,
            xp=_XP,
        )
        for i, result, new, report in zip(self.taking_part, *done, strict=True):
            outcomes[i], reports[i] = result, report
            for field, leaves in trees.items():
                leaves[i] = getattr(new, field)
            powers = {field: getattr(new, field) for field in _POWERS}
        kept = {field: None if getattr(state, field) is None else self.tree(trees[field]) for field in trees}
        return outcomes, MagmaState(count, **powers, **kept), reports


def _initial_state(options: Options, params: Any) -> MagmaState:
    """Before the first step; leaves that are not floats take no part."""
    found, structure = jax.tree.flatten(params, is_leaf=is_none)
    names = leaf_names(params, options.name)
    floats = [i for i, x in enumerate(found) if x is not None and jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    leaves = {i: jnp.zeros_like(found[i]) for i in floats}
    plans = options.plan([_narrow(leaves[i]) for i in floats], [names[i] for i in floats])
    trees: dict[str, list[Any]] = {field: [None] * len(names) for field in ("mu", "nu", "score")}
    for i, plan in zip(floats, plans, strict=True):
        for field in state_fields(plan.base, plan.rule):
            if field in trees:
                trees[field][i] = initial_moment(field, leaves[i], xp=_XP)
        if plan.rule.uses_score:
            trees["score"][i] = _initial_score(options, plan, leaves[i])
    fields = state_fields(options.base, options.rule)
    there = {*fields, "score"} if options.rule.uses_score else {*fields}
    return MagmaState(
        jnp.zeros((), jnp.int32),
        **{field: jnp.ones((), jnp.float32) if field in there else None for field in _POWERS},
        **{field: structure.unflatten(trees[field]) if field in there else None for field in trees},
    )


def _initial_score(options: Options, plan: Plan, leaf: jax.Array) -> jax.Array:
    """s₀ in block shape, spread over devices as the scores of a step are: by a reduction over the same axes."""
    zeros = jnp.sum(jnp.zeros_like(leaf, dtype=jnp.float32), axis=plan.blocks.inner_axes)
    value = options.rule_arrays.get("initial_score", binary32(options.rule.initial_score))
    return plan.blocks.order(zeros, xp=_XP) + jnp.asarray(value, jnp.float32)


def _write(param: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    if param.dtype == jnp.float64:
        return param + displace(_narrow(param), *arguments, **options)
    return write(param, *arguments, **options)


def _displace(param: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    return displace(_narrow(param), *arguments, **options)


def _narrow(x: Any) -> Any:
    """binary64 is outside the contract: it is rounded to binary32, and only the parameter itself stays as it is."""
    return x if x is None or x.dtype != jnp.float64 else x.astype(jnp.float32)
