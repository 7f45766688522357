"""The kernels of a step. Each runs over all tensors of one kind, tile by tile; a tile lies in one tensor.

A tensor is read as a matrix with one row per block. `TENSOR` locates the matrix, `STRETCH` the tiles of a program.
Atomic operations combine the maxima and integer sums of blocks; their order does not affect the result.

A block's sums depend on its largest values, so a block of many tiles would have to be read twice. Instead, the kernel
sums on several grids at once, those around the previous step's grid (`REACH`). It reads the block again only if the
right grid is not among them. A wrong guess costs time, never bits.
"""

from typing import Any

import triton
import triton.language as tl

from magma_torch.gpu import traced

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
"""Compile options: with contraction, a product and a sum would round once (docs/numerics.md, F1)."""

TENSOR = (
    "theta", "mu", "nu", "step", "mu_power", "nu_power", "score", "settings",  # addresses; 0 for a missing one
    "columns", "rows", "first_block", "first_long", "key_high", "key_low",
)  # fmt: skip
"""The int64 fields that describe a tensor. Its blocks are numbered from ``first_block``; blocks of many tiles also from
``first_long`` among their kind, otherwise that is -1.
"""

STRETCH = ("tensor", "row", "column")
"""The int64 fields of a stretch of tiles: its tensor, and its first row and column there."""

TILES = 8
"""The tiles of a stretch, at most, side by side: the work of one program.

A program waits for four dependent loads to find its place: as long as for one tile.
"""

REACH = 1
"""The powers of two by which a block's largest values may change, up or down, without a second read.

In a model of 1 M parameters, from step to step |μ| stayed within 1 in 99 % of all blocks and |g| in 92 %.
"""

TALLIES = 2 * (2 * REACH + 1) + (2 * REACH + 1) ** 2
"""The number of sums of a block of many tiles: ΣXX and ΣYY per grid, ΣXY per pair of grids."""

_THETA, _MU, _NU, _STEP, _MU_POWER, _NU_POWER, _SCORE, _SETTINGS, _COLUMNS, _ROWS, _FIRST, _LONG, _HIGH, _LOW = (
    tl.constexpr(i) for i in range(len(TENSOR))
)
_TENSOR, _STRETCH, _NUMBERS = (tl.constexpr(len(names)) for names in (TENSOR, STRETCH, traced.NUMBERS))
_TILES = tl.constexpr(TILES)
_CORRECTION1 = tl.constexpr(traced.NUMBERS.index("correction1"))
_CORRECTION2 = tl.constexpr(traced.NUMBERS.index("correction2"))
_RATE = tl.constexpr(traced.NUMBERS.index("rate"))
_REACH, _GRIDS = tl.constexpr(REACH), tl.constexpr(2 * REACH + 1)
_SETTINGS_SIZE = tl.constexpr(1 << (len(traced.NUMBERS) - 1).bit_length())


@triton.jit(do_not_specialize=["tensor_count"])  # one kernel for all their values
def begin(tensors, numbers, tensor_count, BLOCK: tl.constexpr, SOURCES: tl.constexpr):
    """Count the step of each tensor and compute its numbers: those of its group, and bias corrections."""
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = tensor < tensor_count
    entry = tensors + tl.where(there, tensor, 0).to(tl.int64) * _TENSOR
    step = tl.load(entry + _STEP).to(tl.pointer_type(tl.int64))
    tl.store(step, tl.load(step) + 1, mask=there)
    own = numbers + tensor.to(tl.int64)[:, None] * _NUMBERS
    field = tl.arange(0, _SETTINGS_SIZE)[None, :]
    settings = tl.load(entry + _SETTINGS).to(tl.pointer_type(tl.float32))
    values = tl.load(settings[:, None] + field, mask=field < _NUMBERS, other=0.0)
    values = tl.where(field == _RATE, traced.flushed(values), values)
    mu_power = tl.load(entry + _MU_POWER)
    nu_power = tl.load(entry + _NU_POWER)
    powered = there & (mu_power != 0)
    corrected = powered[:, None] & ((field == _CORRECTION1) | (field == _CORRECTION2))
    tl.store(own + field, values, mask=there[:, None] & (field < _NUMBERS) & (corrected == 0))
    mu_power = mu_power.to(tl.pointer_type(tl.float32))
    nu_power = nu_power.to(tl.pointer_type(tl.float32))
    mu_value, nu_value, first, second = traced.correct(
        tl.load(mu_power, mask=powered, other=0.0), tl.load(nu_power, mask=powered, other=0.0), settings
    )
    tl.store(mu_power, mu_value, mask=powered)
    tl.store(nu_power, nu_value, mask=powered)
    own = numbers + tensor.to(tl.int64) * _NUMBERS
    tl.store(own + _CORRECTION1, first, mask=powered)
    tl.store(own + _CORRECTION2, second, mask=powered)


@triton.jit(do_not_specialize=["block_count", "long_count"])  # one kernel for all their values
def advance(
    tensors, stretches, grads, numbers, peaks, sums, guesses, tallies, keep, scale, block_count, long_count,
    PROGRAM: tl.constexpr, MEASURED: tl.constexpr, WHOLE: tl.constexpr, MASKED: tl.constexpr, DENSE: tl.constexpr,
    PARAM: tl.constexpr, GRAD: tl.constexpr, HAS_MU: tl.constexpr, HAS_NU: tl.constexpr, USES_GRAD: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Moments; for measured blocks, also the largest values of both operands, and the sums.

    ``peaks`` is (2, block_count) int32. Blocks that lie in one tile (``WHOLE``) get ``sums``, (3, block_count) int64.
    Other blocks get ``tallies``, (TALLIES, long_count) int64, on grids around ``guesses``, (2, long_count) int32. If
    nothing is measured, the decisions are known already, and parameters move at once.
    """
    block_count = tl.cast(block_count, tl.int64)
    tensor, entry, rows, there, columns, first = _locate(tensors, stretches, COLUMNS, ROWS, ALIGNED)
    blocks = tl.load(entry + _FIRST) + rows
    own = numbers + tensor * _NUMBERS
    grad_address = tl.load(grads + tensor)
    for k in range(_TILES):
        column = first + k * COLUMNS
        if column < columns:
            offsets, mask = _elements(rows, there, columns, column, COLUMNS)
            grad = tl.load(_at(grad_address, offsets, GRAD, ALIGNED), mask=mask, other=0.0)
            mu = _moment(entry + _MU, offsets, mask, HAS_MU, ALIGNED)
            nu = _moment(entry + _NU, offsets, mask, HAS_NU, ALIGNED)
            g = traced.flushed(grad)
            seen = mu
            if WHOLE or MEASURED != "before":  # otherwise `measure` may need the old moments
                mu, nu = traced.moments(g, mu, nu, own, PROGRAM)
                _remember(entry, mu, nu, offsets, mask, HAS_MU, HAS_NU, ALIGNED)
            if MEASURED == "after":
                seen = mu
            if MEASURED != "":
                mu_peak = tl.max(traced.magnitude(seen), 1)
                g_peak = tl.max(traced.magnitude(g), 1)
                if WHOLE:
                    tl.store(peaks + blocks, mu_peak, mask=there)
                    tl.store(peaks + block_count + blocks, g_peak, mask=there)
                    x = traced.on_grid(seen, mu_peak[:, None], 0).to(tl.int64)
                    y = traced.on_grid(g, g_peak[:, None], 0).to(tl.int64)
                    tl.store(sums + blocks, tl.sum(x * y, 1), mask=there)
                    tl.store(sums + block_count + blocks, tl.sum(x * x, 1), mask=there)
                    tl.store(sums + 2 * block_count + blocks, tl.sum(y * y, 1), mask=there)
                else:
                    tl.atomic_max(peaks + blocks, mu_peak, mask=there, sem="relaxed")
                    tl.atomic_max(peaks + block_count + blocks, g_peak, mask=there, sem="relaxed")
                    _tally(seen, g, guesses, tallies, tl.load(entry + _LONG) + rows, there, long_count)
            else:
                if not USES_GRAD:
                    grad = None
                _move(
                    entry, own, grad, mu, nu, keep, scale, blocks, there, offsets, mask,
                    PROGRAM, MASKED, DENSE, PARAM, ALIGNED,
                )  # fmt: skip


@triton.jit
def _tally(mu, g, guesses, tallies, long, there, long_count):
    """Sums on all grids around the guessed ones."""
    mu_guess = tl.load(guesses + long, mask=there, other=0)[:, None]
    g_guess = tl.load(guesses + long_count + long, mask=there, other=0)[:, None]
    for i in tl.static_range(_GRIDS):
        x = traced.on_grid(mu, mu_guess, i - _REACH).to(tl.int64)
        y = traced.on_grid(g, g_guess, i - _REACH).to(tl.int64)
        tl.atomic_add(tallies + i * long_count + long, tl.sum(x * x, 1), mask=there, sem="relaxed")
        tl.atomic_add(tallies + (_GRIDS + i) * long_count + long, tl.sum(y * y, 1), mask=there, sem="relaxed")
        for j in tl.static_range(_GRIDS):
            z = traced.on_grid(g, g_guess, j - _REACH).to(tl.int64)
            pair = tallies + ((2 + i) * _GRIDS + j) * long_count
            tl.atomic_add(pair + long, tl.sum(x * z, 1), mask=there, sem="relaxed")


@triton.jit(do_not_specialize=["block_count", "long_count"])  # one kernel for all their values
def measure(
    tensors, stretches, grads, numbers, peaks, sums, guesses, read_again, block_count, long_count,
    PROGRAM: tl.constexpr, MEASURED: tl.constexpr, GRAD: tl.constexpr, HAS_MU: tl.constexpr, HAS_NU: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """``sums`` of blocks whose grids were not guessed; then the moments, if `advance` did not write them."""
    block_count = tl.cast(block_count, tl.int64)
    tensor, entry, rows, there, columns, first = _locate(tensors, stretches, COLUMNS, ROWS, ALIGNED)
    blocks = tl.load(entry + _FIRST) + rows
    long = tl.load(entry + _LONG) + rows
    mu_peak = tl.load(peaks + blocks, mask=there, other=0)
    g_peak = tl.load(peaks + block_count + blocks, mask=there, other=0)
    mu_off = tl.abs(traced.distance(mu_peak, tl.load(guesses + long, mask=there, other=0)))
    g_off = tl.abs(traced.distance(g_peak, tl.load(guesses + long_count + long, mask=there, other=0)))
    missed = there & ((mu_off > _REACH) | (g_off > _REACH))
    if (MEASURED == "before") or (tl.max(missed.to(tl.int32), 0) > 0):
        grad_address = tl.load(grads + tensor)
        for k in range(_TILES):
            column = first + k * COLUMNS
            if column < columns:
                offsets, mask = _elements(rows, there, columns, column, COLUMNS)
                grad = tl.load(_at(grad_address, offsets, GRAD, ALIGNED), mask=mask, other=0.0)
                mu = _moment(entry + _MU, offsets, mask, HAS_MU, ALIGNED)
                g = traced.flushed(grad)
                x = traced.on_grid(mu, mu_peak[:, None], 0).to(tl.int64)
                y = traced.on_grid(g, g_peak[:, None], 0).to(tl.int64)
                tl.atomic_add(sums + blocks, tl.sum(x * y, 1), mask=missed, sem="relaxed")
                tl.atomic_add(sums + block_count + blocks, tl.sum(x * x, 1), mask=missed, sem="relaxed")
                tl.atomic_add(sums + 2 * block_count + blocks, tl.sum(y * y, 1), mask=missed, sem="relaxed")
                tl.atomic_add(read_again, tl.sum(tl.sum((mask & missed[:, None]).to(tl.int64), 1), 0), sem="relaxed")
                if MEASURED == "before":
                    nu = _moment(entry + _NU, offsets, mask, HAS_NU, ALIGNED)
                    mu, nu = traced.moments(g, mu, nu, numbers + tensor * _NUMBERS, PROGRAM)
                    _remember(entry, mu, nu, offsets, mask, HAS_MU, HAS_NU, ALIGNED)


@triton.jit(do_not_specialize=["first", "last", "block_count", "long_count"])  # one kernel for all their values
def decide(
    tensors, owners, numbers, peaks, sums, guesses, tallies, keep, scale, cosine, first, last, block_count, long_count,
    PROGRAM: tl.constexpr, SCORED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decide the blocks from ``first`` to ``last``, see `magma_core.rule.decide`."""
    block_count = tl.cast(block_count, tl.int64)
    block = first + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = block < last
    block = tl.where(there, block, first)
    tensor = tl.load(owners + block).to(tl.int64)
    entry = tensors + tensor * _TENSOR
    index = block - tl.load(entry + _FIRST)
    step = tl.load(tl.load(entry + _STEP).to(tl.pointer_type(tl.int64)))
    high = tl.load(entry + _HIGH)
    low = tl.load(entry + _LOW)
    own = numbers + tensor * _NUMBERS
    if SCORED:
        mu_peak = tl.load(peaks + block)
        g_peak = tl.load(peaks + block_count + block)
        long = tl.load(entry + _LONG)
        many = there & (long >= 0)
        long = long + index
        i = traced.distance(mu_peak, tl.load(guesses + long, mask=many, other=0)) + _REACH
        j = traced.distance(g_peak, tl.load(guesses + long_count + long, mask=many, other=0)) + _REACH
        tl.store(guesses + long, mu_peak, mask=many)
        tl.store(guesses + long_count + long, g_peak, mask=many)
        hit = many & (i >= 0) & (i < _GRIDS) & (j >= 0) & (j < _GRIDS)
        pair = tallies + ((2 + i) * _GRIDS + j) * long_count
        xy = tl.where(hit, tl.load(pair + long, mask=hit, other=0), tl.load(sums + block))
        xx = tl.load(tallies + i * long_count + long, mask=hit, other=0)
        xx = tl.where(hit, xx, tl.load(sums + block_count + block))
        yy = tl.load(tallies + (_GRIDS + j) * long_count + long, mask=hit, other=0)
        yy = tl.where(hit, yy, tl.load(sums + 2 * block_count + block))
        score = tl.load(entry + _SCORE).to(tl.pointer_type(tl.float32)) + index
        xy, xx, yy, kept, scales, cosines, scores = traced.decide(
            (xy, xx, yy), (mu_peak, g_peak), tl.load(score), high, low, index, step, own, PROGRAM
        )
        tl.store(sums + block, xy, mask=there)
        tl.store(sums + block_count + block, xx, mask=there)
        tl.store(sums + 2 * block_count + block, yy, mask=there)
        tl.store(cosine + block, cosines, mask=there)
        tl.store(score, scores, mask=there)
    else:
        kept, scales = traced.decide(None, None, None, high, low, index, step, own, PROGRAM)
    tl.store(keep + block, kept.to(tl.int8), mask=there)
    tl.store(scale + block, scales, mask=there)


@triton.jit
def move(
    tensors, stretches, grads, numbers, keep, scale,
    PROGRAM: tl.constexpr, DENSE: tl.constexpr, PARAM: tl.constexpr, GRAD: tl.constexpr,
    HAS_MU: tl.constexpr, HAS_NU: tl.constexpr, USES_GRAD: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write the kept blocks; the others are not read."""
    tensor, entry, rows, there, columns, first = _locate(tensors, stretches, COLUMNS, ROWS, ALIGNED)
    blocks = tl.load(entry + _FIRST) + rows
    own = numbers + tensor * _NUMBERS
    if not DENSE:
        there = there & (tl.load(keep + blocks, mask=there, other=0) != 0)
    if tl.max(there.to(tl.int32), 0) > 0:
        for k in range(_TILES):
            column = first + k * COLUMNS
            if column < columns:
                offsets, mask = _elements(rows, there, columns, column, COLUMNS)
                grad = None
                if USES_GRAD:
                    grad = tl.load(_at(tl.load(grads + tensor), offsets, GRAD, ALIGNED), mask=mask, other=0.0)
                mu = _moment(entry + _MU, offsets, mask, HAS_MU, ALIGNED)
                nu = _moment(entry + _NU, offsets, mask, HAS_NU, ALIGNED)
                _move(
                    entry, own, grad, mu, nu, keep, scale, blocks, there, offsets, mask,
                    PROGRAM, True, DENSE, PARAM, ALIGNED,
                )  # fmt: skip


@triton.jit
def _move(
    entry, own, grad, mu, nu, keep, scale, blocks, there, offsets, mask,
    PROGRAM: tl.constexpr, MASKED: tl.constexpr, DENSE: tl.constexpr, PARAM: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write the parameter where it moves; under dense decay, everywhere."""
    kept = None
    if MASKED:
        scales = tl.load(scale + blocks, mask=there, other=0.0)[:, None]
        chosen = tl.load(keep + blocks, mask=there, other=0) != 0
        if DENSE:
            kept = chosen[:, None]
        else:
            mask = mask & chosen[:, None]
    else:
        scales = tl.load(own + _RATE)
    at = _at(tl.load(entry + _THETA), offsets, PARAM, ALIGNED)
    theta = tl.load(at, mask=mask, other=0.0)
    tl.store(at, traced.move(theta, grad, mu, nu, scales, own, PROGRAM, kept), mask=mask)


@triton.jit
def _locate(tensors, stretches, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr):
    """The stretch's tensor and its entry; the rows and which exist; all columns, and the first."""
    place = stretches + tl.program_id(0).to(tl.int64) * _STRETCH
    tensor = tl.load(place)
    entry = tensors + tensor * _TENSOR
    rows = tl.load(place + 1) + tl.arange(0, ROWS)
    columns = tl.load(entry + _COLUMNS)
    first = tl.load(place + 2)
    if ALIGNED:
        columns = tl.multiple_of(columns, 16)
        first = tl.multiple_of(first, 16)
    return tensor, entry, rows, rows < tl.load(entry + _ROWS), columns, first


@triton.jit
def _elements(rows, there, columns, column, COLUMNS: tl.constexpr):
    """The elements of the tile that begins at a column, and which of them exist."""
    across = column + tl.arange(0, COLUMNS)
    return rows[:, None] * columns + across[None, :], there[:, None] & (across < columns)[None, :]


@triton.jit
def _at(address, offsets, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """The addresses of elements of a matrix of format ``KIND`` that begins at ``address``."""
    start = address.to(tl.pointer_type(KIND))
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start + offsets


@triton.jit
def _moment(field, offsets, mask, THERE: tl.constexpr, ALIGNED: tl.constexpr):
    """Load elements of the moment whose address is in ``field``; None without that moment."""
    moment = None
    if THERE:
        moment = tl.load(_at(tl.load(field), offsets, tl.float32, ALIGNED), mask=mask, other=0.0)
    return moment


@triton.jit
def _remember(entry, mu, nu, offsets, mask, HAS_MU: tl.constexpr, HAS_NU: tl.constexpr, ALIGNED: tl.constexpr):
    """Write the existing moments."""
    if HAS_MU:
        tl.store(_at(tl.load(entry + _MU), offsets, tl.float32, ALIGNED), mu, mask=mask)
    if HAS_NU:
        tl.store(_at(tl.load(entry + _NU), offsets, tl.float32, ALIGNED), nu, mask=mask)
