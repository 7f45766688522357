"""A step in three in-place CUDA kernels; XLA's own programs read momentum and gradient twice.

    moments    computes moments, and sums on the grids of the largest magnitudes that any tile has seen so far
    recount    picks the right sums; counts a tile again if none of its grids is its block's
    move       writes the parameter of kept blocks; programs of other blocks return at once

The kernels compute the core's own functions, traced on a tile. The order in which tiles run changes which of them are
counted again, but no result: maxima and sums of integers do not depend on order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from magma_core import Base, Plan, State
from magma_core.alignment import alignment_sums
from magma_core.bases import advance_moments, advance_powers, direction_uses_gradient
from magma_core.blocks import Blocks, Shard
from magma_core.config import Decay
from magma_core.hyperparameters import BaseNumbers
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real, real
from magma_core.rule import Advanced, advance, write
from magma_jax.gpu.tiles import XP, Constants, Ref, Tiles, join, load, split, store, whole
from magma_jax.updates import new_parameter

_COARSER = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Each tile is summed on four pairs of grids, coarser by these powers of two than those of the largest values yet."""

_DROPPED = -1  # marks a dropped block; the bits of a scale are never negative


def advance_tiles(plan: Plan, grad: Array, state: State, *, xp: Namespace) -> Advanced:
    """`advance`, by kernels on CUDA."""
    tiles = _tiles(plan)
    if tiles is None:
        return advance(plan, grad, state, xp=xp)
    after, numbers = advance_powers(state, plan.numbers, xp=xp)
    constants, others = split(numbers)  # here: a fence made in one branch would be invisible to the others
    names = [name for name in ("mu", "nu") if getattr(state, name) is not None]
    shard = plan.shard or Shard((), (), largest=lambda x: x, total=lambda x: x)

    def by_kernels() -> Any:
        olds = {name: getattr(state, name) for name in names}
        news, peaks, sums = _moments(tiles, plan.base, constants, others, grad, olds)
        sums = shard.total(_recount(tiles, shard.largest(peaks), grad, news["mu"], sums))
        return [news[name] for name in names], sums.reshape(3, *plan.blocks.block_shape)

    def by_xla() -> Any:
        done = advance(plan, grad, state, xp=xp)
        return [getattr(done.state, name) for name in names], done.sums

    news, sums = lax.platform_dependent(cuda=by_kernels, default=by_xla)
    return Advanced(after._replace(**dict(zip(names, news, strict=True))), numbers, sums)


class Structure(NamedTuple):
    """The compile-time key of a kernel: a `magma_core.rule.Formula`."""

    base: Base
    decays: Decay | None


def write_tiles(
    plan: Plan, param: Array, grad: Array, state: State, numbers: BaseNumbers, scale: Real, keep: Array
) -> Array:
    """`new_parameter`, by a kernel on CUDA."""
    tiles = _tiles(plan)
    if tiles is None or param.dtype == jnp.float64:
        return new_parameter(plan, param, grad, state, numbers, scale, keep)
    constants, others = split(numbers)
    bits = lax.bitcast_convert_type(scale.array, jnp.int32)

    def by_kernel() -> Any:
        reads = {name: getattr(state, name) for name in ("mu", "nu") if getattr(state, name) is not None}
        if direction_uses_gradient(plan.base):
            reads["grad"] = grad
        verdicts = jnp.broadcast_to(jnp.where(keep, bits, np.int32(_DROPPED)).reshape(-1, 1), (tiles.blocks, 1))
        return _move(tiles, Structure(plan.base, plan.decays), constants, others, verdicts, param, reads)

    def by_xla() -> Any:
        return new_parameter(plan, param, grad, state, numbers, scale, keep)

    return lax.platform_dependent(cuda=by_kernel, default=by_xla)


def _tiles(plan: Plan) -> Tiles | None:
    """The tiling; None if kernels would not help."""
    rule = plan.rule
    return Tiles.of(plan.blocks) if rule.uses_score and rule.momentum == "after" else None


# Identical leaves are traced once.


@partial(jax.jit, static_argnums=(0, 1, 2))
def _moments(
    tiles: Tiles,
    base: Base,
    constants: Constants,
    others: list[jax.Array],
    grad: jax.Array,
    olds: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """New moments; `magma_core.alignment.largest` of blocks, (blocks, 2); sums of each tile, and the finest grids."""
    first = 1 + len(others)  # index of the first old moment among the inputs

    def moments(*refs: Ref) -> None:
        (grad, *given), before, (_, *after, peaks, sums) = refs[:first], refs[first:last], refs[last:]
        mask = tiles.mask()
        g = load(grad, mask)
        old = State(**{name: load(ref, mask) for name, ref in zip(olds, before, strict=True)})
        new = advance_moments(real(g, xp=XP).flush(), old, BaseNumbers(*join(constants, given)), base=base)
        for name, ref in zip(olds, after, strict=True):
            store(ref, getattr(new, name), mask)
        seen: list[jax.Array] = []

        def largest(own: jax.Array) -> jax.Array:
            seen.append(jnp.maximum(own, triton.atomic_max(peaks, np.int32(len(seen)), own)))
            return seen[-1]

        totals = [*_sums(tiles, new.mu, g, largest)]
        for steps in _COARSER[1:]:
            totals += _sums(tiles, new.mu, g, _given([x + (n << 23) for x, n in zip(seen, steps, strict=True)]))
        for i, x in enumerate([*totals, *map(_exponent, seen)]):
            sums[i] = x

    last = first + len(olds)
    peaks = tiles.per_block(jnp.zeros((tiles.blocks, 2), jnp.int32))
    sums = tiles.per_tile(jax.ShapeDtypeStruct((tiles.blocks * tiles.of_each, 16), jnp.int64))
    inputs = [tiles.elements(grad), *map(whole, others), *map(tiles.elements, olds.values()), peaks]
    outputs = [*(tiles.elements(jnp.float32) for _ in olds), peaks, sums]
    *news, found, counted = tiles.run(moments, inputs, outputs, {first + i: i for i in range(len(olds) + 1)})
    return {name: x.reshape(grad.shape) for name, x in zip(olds, news, strict=True)}, found, counted


@partial(jax.jit, static_argnums=0)
def _recount(tiles: Tiles, peaks: jax.Array, grad: jax.Array, mu: jax.Array, counted: jax.Array) -> jax.Array:
    """The sums of blocks, (3, blocks), from tile sums; ``peaks`` cover whole blocks."""

    def recount(peaks: Ref, grad: Ref, mu: Ref, counted: Ref, sums: Ref) -> None:
        right, mask = [peaks[0], peaks[1]], tiles.mask()
        x, y = (_exponent(peak) - counted[12 + i] for i, peak in enumerate(right))
        there = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)

        @pl.when(there)
        def _() -> None:
            for i in range(3):
                sums[i] = counted[(x * 2 + y) * 3 + i]

        @pl.when(jnp.logical_not(there))
        def _() -> None:
            for i, total in enumerate(_sums(tiles, load(mu, mask), load(grad, mask), _given(right))):
                sums[i] = total

    found = tiles.per_tile(jax.ShapeDtypeStruct((tiles.blocks * tiles.of_each, 4), jnp.int64))
    inputs = [tiles.per_block(peaks), tiles.elements(grad), tiles.elements(mu), tiles.per_tile(counted)]
    (sums,) = tiles.run(recount, inputs, [found], {})
    return sums.reshape(tiles.blocks, tiles.of_each, 4).sum(axis=1)[:, :3].T


@partial(jax.jit, static_argnums=(0, 1, 2))
def _move(
    tiles: Tiles,
    formula: Structure,
    constants: Constants,
    others: list[jax.Array],
    verdicts: jax.Array,
    param: jax.Array,
    reads: dict[str, jax.Array],
) -> jax.Array:
    """The new parameter; ``verdicts`` holds the bits of the scales of kept blocks."""

    def move(param: Ref, verdicts: Ref, *refs: Ref) -> None:
        given, seen, (out,) = refs[: len(others)], refs[len(others) : -1], refs[-1:]
        verdict, mask = verdicts[0], tiles.mask()
        keep = verdict != _DROPPED

        @pl.when(jnp.logical_or(keep, formula.decays == "dense"))
        def _() -> None:
            found = {name: load(ref, mask) for name, ref in zip(reads, seen, strict=True)}
            scale = Real(lax.bitcast_convert_type(verdict, jnp.float32), xp=XP)
            grad, numbers = found.pop("grad", None), BaseNumbers(*join(constants, given))
            dense = formula.decays == "dense"
            new = write(formula, load(param, mask), grad, State(**found), numbers, scale, keep if dense else None)
            store(out, new, mask)

    arguments = [tiles.per_block(verdicts), *map(whole, others), *map(tiles.elements, reads.values())]
    (new,) = tiles.run(move, [tiles.elements(param), *arguments], [tiles.elements(param.dtype)], {0: 0})
    return new.reshape(param.shape)


def _sums(tiles: Tiles, mu: jax.Array, g: jax.Array, largest: Callable[[jax.Array], jax.Array]) -> Sequence[jax.Array]:
    """`alignment_sums` of a tile as a part of its block; calls ``largest`` once per operand, in order."""
    shard = Shard((tiles.tile,), (0,), lambda own: largest(jnp.squeeze(own))[None], total=lambda part: part)
    return alignment_sums(real(mu, xp=XP), real(g, xp=XP), Blocks((tiles.tile,), ()), shard)


def _given(peaks: Sequence[jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A ``largest`` for `_sums` that returns known values."""
    left = iter(peaks)
    return lambda own: next(left)


def _exponent(peak: jax.Array) -> jax.Array:
    """The exponent, which determines the grid and whether the operand is finite."""
    return (peak >> 23).astype(jnp.int64)
