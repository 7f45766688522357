"""The public functions: an initial state, and a validated step. rule.py has the step itself."""

from collections.abc import Mapping, Sequence

from magma_core import bases
from magma_core.blocks import Axes
from magma_core.config import LR_SCALE, Base, Rule
from magma_core.namespace import Array, Namespace
from magma_core.numerics import binary32
from magma_core.plan import check_inputs, make_plan, plan_all
from magma_core.state import Report, State
from magma_core.step import update_planned


def init(
    param: Array, /, *, base: Base, rule: Rule, block_axes: Axes | None, name: str = "param", xp: Namespace
) -> State:
    """The state of one parameter before its first step.

    Args:
        param: the parameter, any shape; float32, bfloat16 or float16.
        base: the base optimizer.
        rule: the rule that keeps and weights blocks.
        block_axes: the axes that index blocks; None for a parameter that is not masked.
        name: the parameter's name, for messages.
        xp: the namespace of ``param``.

    Returns:
        Zero moments, running products 1, and the initial score.

    Raises:
        TypeError: for a parameter of unsupported dtype, or an invalid type of ``base``, ``rule`` or ``name``.
        ValueError: if ``block_axes`` does not match the parameter's shape.

    Example:
        >>> import numpy as np
        >>> from magma_core import AdamW, init, magma
        >>> from magma_numpy import namespace as xp
        >>> init(np.zeros((4, 3), np.float32), base=AdamW(), rule=magma(), block_axes=(0,), xp=xp).score
        array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    plan = make_plan(param, name=name, base=base, rule=rule, seed=0, block_axes=block_axes, xp=xp)
    fields = bases.state_fields(base, plan.rule)
    with xp.scope():
        state = State(**{field: bases.initial_moment(field, param, xp=xp) for field in fields})
        if plan.rule.uses_score:
            score = binary32(rule.initial_score)
            device = xp.device(param)
            state = state._replace(score=xp.full(plan.blocks.block_shape, score, dtype=xp.float32, device=device))
        return state


def update(
    param: Array,
    grad: Array,
    state: State,
    /,
    *,
    name: str,
    step: int | Array,
    lr: float | Array,
    lr_scale: float | Array = LR_SCALE,
    base: Base,
    rule: Rule,
    seed: int | Array,
    block_axes: Axes | None,
    xp: Namespace,
) -> tuple[Array, State, Report]:
    """One step for one parameter: `update_all` with lists of one, documented there.

    Example:
        >>> import numpy as np
        >>> from magma_core import SGD, init, magma, update
        >>> from magma_numpy import namespace as xp
        >>> param, grad = np.ones((2, 2), np.float32), np.full((2, 2), 0.5, np.float32)
        >>> options = dict(base=SGD(), rule=magma(), block_axes=(0,), xp=xp)
        >>> state = init(param, **options)
        >>> new, state, report = update(param, grad, state, name="w", step=1, lr=0.1, seed=1, **options)
        >>> report.keep
        array([ True, False])
        >>> new
        array([[0.9743877, 0.9743877],
               [1.       , 1.       ]], dtype=float32)
    """
    params, states, reports = update_all(
        [param],
        [grad],
        [state],
        names=[name],
        step=step,
        lr=lr,
        lr_scale=lr_scale,
        base=base,
        rule=rule,
        seed=seed,
        block_axes={name: block_axes},
        xp=xp,
    )
    return params[0], states[0], reports[0]


def update_all(
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[State],
    /,
    *,
    names: Sequence[str],
    step: int | Array,
    lr: float | Array,
    lr_scale: float | Array = LR_SCALE,
    base: Base,
    rule: Rule,
    seed: int | Array,
    block_axes: Mapping[str, Axes | None],
    xp: Namespace,
) -> tuple[list[Array], list[State], list[Report]]:
    """One step of ``rule`` over ``base`` for many parameters. Inputs are never modified.

    Args:
        params: parameters θ, any shapes; float32, bfloat16 or float16.
        grads: gradients g, each with the shape and dtype of its parameter.
        states: states from `init` or from the previous step.
        names: one unique name per parameter. Names key the masks: a parameter that keeps its name keeps its masks, at
            any position and beside any other parameters.
        step: t = 1, 2, … below 2³²; a Python int, or a 0-d integer array (its value is not checked, so the caller must
            keep it in range).
        lr: the learning rate, ≥ 0; a Python float, or a 0-d float32 array (not checked either).
        lr_scale: learning-rate factor for masked parameters only, ≥ 2⁻¹⁰⁰; same types as ``lr``.
        base: the base optimizer.
        rule: the rule that keeps and weights blocks.
        seed: a Python int in [0, 2⁶⁴), or a 0-d integer array.
        block_axes: for each name, the axes that index its blocks: ``()`` the whole tensor, ``(0,)`` one block per row,
            all axes single elements; None for a parameter that is not masked (plain ``base``, weight 1).
        xp: the namespace of the arrays.

    Returns:
        New parameters (same shapes and dtypes), new states, and a report for each parameter.

    Raises:
        TypeError: for arrays of unsupported dtype and arguments of the wrong type.
        ValueError: for mismatched shapes or dtypes, duplicate names, axes out of range, a block of more than 2³²
            elements, and values out of range.
    """
    plans = plan_all(params, names=names, base=base, rule=rule, seed=seed, block_axes=block_axes, xp=xp)
    check_inputs(plans, params, grads, states, step=step, lr=lr, lr_scale=lr_scale, xp=xp)
    return update_planned(plans, params, grads, states, step=step, lr=lr, lr_scale=lr_scale, xp=xp)
