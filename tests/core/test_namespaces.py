"""Every namespace against the standard, for the core's uses: test_<function>_<subject>.

The expected bits come from array-api-strict. NumPy gives them where the standard has none: half precision, and correct
rounding, for which float64 is the oracle.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from magma_conformance.bits import assert_bits_equal

from magma_core import Namespace

BEYOND_THE_STANDARD = {"float16", "bfloat16", "bitcast", "fused", "device", "scope"}
DTYPES = {"float16", "bfloat16", "float32", "int32", "int64"}
MEMBERS = {name for name in (*vars(Namespace), *Namespace.__annotations__) if not name.startswith("_")}

# Zeros, infinities, NaN, ties of rounding, neighbours of 1, the largest float, and magnitudes whose products and
# quotients stay normal: what a backend does with subnormals is its own affair (spec 1.2).
REALS = np.array(
    [0.0, 0.5, 1.0, 1 + 2**-23, 1 - 2**-24, 1.5, 2.5, 3.0, 1e-7, 2**-60, 2**23 - 0.5, 2**23 + 1, 2.0**60, np.inf],
    np.float32,
)
REALS = np.concatenate([REALS, -REALS, np.float32([np.nan, 3.4028235e38])])
WORDS = np.array([0, 1, 2, 3, 5, 0xFF, 0x7FFF, 2**15, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 2**31 - 1], np.int32)
WORDS = np.concatenate([WORDS, -WORDS - 1])
LONGS = np.array([0, 1, 0x3FFF, 2**24 - 1, 2**31, 2**32 - 1, 2**32, 2**38 + 5, 2**53 + 1, 2**62], np.int64)
LONGS = np.concatenate([LONGS, -LONGS - 1])
BOOLS = np.array([False, True])

BROADCASTS = [
    ((3, 4), (3, 4)),
    ((3, 4), ()),
    ((), (3, 4)),
    ((), ()),
    ((3, 4), (4,)),
    ((3, 1), (1, 4)),
    ((2, 3, 4), (3, 1)),
    ((0, 4), (1, 4)),
    ((0,), ()),
]
SHAPES = [(), (1,), (5,), (0,), (2, 3), (3, 0), (2, 3, 4), (1, 3, 1, 2)]


@pytest.fixture(scope="session")
def agrees(backend: Any, standard: Any) -> Callable[..., None]:
    """``agrees(call, *arrays)``: call(xp, *arrays) has the dtype, shape and bits that the standard asks for."""

    def evaluate(one: Any, call: Callable[..., Any], arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        with one.xp.scope():
            return one.to_numpy(call(one.xp, *[one.from_numpy(x) for x in arrays]))

    def agrees(call: Callable[..., Any], *arrays: np.ndarray) -> None:
        expected = evaluate(standard, call, arrays)
        assert_bits_equal(evaluate(backend, call, arrays), expected, f"{backend.name} for {arrays!r}")

    return agrees


def pairs(x: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every entry of one against every entry of the other, by broadcasting."""
    return x[:, None], (x if y is None else y)[None, :]


def reals(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def integers(shape: tuple[int, ...], dtype: Any = np.int32) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(-(2**15), 2**15, size=shape).astype(dtype)


def apply(name: str) -> Callable[..., Any]:
    return lambda xp, *arrays: getattr(xp, name)(*arrays)


# The table itself


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_namespace_has_every_member(backend, name):
    assert hasattr(backend.xp, name), f"{backend.name} lacks {name}, which magma_core.namespace asks for"


def test_namespace_members_have_tests():
    """A function added to the Protocol without a test here would go unchecked on every backend."""
    tests = [name for name in dir(sys.modules[__name__]) if name.startswith("test_")]
    untested = [name for name in sorted(MEMBERS - DTYPES) if not any(t.startswith(f"test_{name}_") for t in tests)]
    assert not untested


def test_dtypes_are_what_arrays_have(backend):
    for kind in sorted(DTYPES - BEYOND_THE_STANDARD):
        assert backend.from_numpy(np.zeros(2, kind)).dtype == getattr(backend.xp, kind)
    for kind in backend.formats:
        assert backend.from_numpy(np.zeros(2, backend.numpy_dtype(kind))).dtype == getattr(backend.xp, kind)


# Creation


@pytest.mark.parametrize("value", [0.0, 0.1, 1.4426950408889634, 2.0**-100, 3.4028235e38, np.inf, np.nan])
def test_asarray_of_a_python_float(agrees, value):
    agrees(lambda xp: xp.asarray(value, dtype=xp.float32))


@pytest.mark.parametrize("make", ["asarray", "full"])
def test_asarray_and_full_tell_zeros_apart(backend, make):
    """A cache of constants that looks values up by equality gives −0 for +0, once a program has made a −0.

    In float64, for which nothing else looks here: such a cache would spoil the float32 zeros of other tests.
    """
    xp = backend.xp
    with xp.scope():
        float64 = backend.from_numpy(np.zeros((), np.float64)).dtype
        for value in (0.0, -0.0, 0.0, -0.0):
            x = xp.asarray(value, dtype=float64) if make == "asarray" else xp.full((), value, dtype=float64)
            assert_bits_equal(backend.to_numpy(x), np.asarray(value), f"{backend.name} {make}({value})")


@pytest.mark.parametrize("value", [0, 1, -1, 2**31, 2**32 - 1, 2**62])
def test_asarray_of_a_python_integer(agrees, value):
    agrees(lambda xp: xp.asarray(value, dtype=xp.int64))


@pytest.mark.parametrize("values", [[7], [0, 2**32 - 1, 5], []])
def test_asarray_of_a_list_of_words(agrees, values):
    agrees(lambda xp: xp.asarray(values, dtype=xp.int64))


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_arange_counts_from_zero(agrees, count):
    agrees(lambda xp: xp.arange(count, dtype=xp.int64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "value"), [("float32", 0.5), ("int64", 3), ("int64", 2**40)])
def test_full_has_value_shape_and_dtype(agrees, shape, kind, value):
    agrees(lambda xp: xp.full(shape, value, dtype=getattr(xp, kind)))


def test_device_is_what_creation_takes(backend):
    xp = backend.xp
    with xp.scope():
        device = xp.device(backend.from_numpy(reals((2, 3))))
        made = [
            xp.full((2,), 1.0, dtype=xp.float32, device=device),
            xp.asarray(1.0, dtype=xp.float32, device=device),
            xp.asarray([1, 2], dtype=xp.int64, device=device),
            xp.arange(3, dtype=xp.int64, device=device),
        ]
    assert all(xp.device(x) == device for x in made)


# Conversion


@pytest.mark.parametrize(
    ("values", "to"),
    [
        (np.float32([0, -0.0, 1, -2, 2**15, -(2**15), 2**24]), "int32"),
        (np.float32([0, 1, 2**24, 2**24 - 1, 2**31, -(2**40)]), "int64"),
        (WORDS, "int64"),
        (LONGS[abs(LONGS) < 2**31], "int32"),
        (LONGS[abs(LONGS) <= 2**24], "float32"),
        (integers((50,)), "float32"),
        (BOOLS, "int32"),
        (LONGS, "int64"),
        (REALS, "float32"),
        (np.float32(3), "int32"),
        (np.zeros((3, 0), np.int32), "int64"),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{x.dtype}{x.size}",
)
def test_astype_of_exact_values(agrees, values, to):
    agrees(lambda xp, x: xp.astype(x, getattr(xp, to)), values)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_astype_widens_every_half(backend, kind):
    if kind not in backend.formats:
        pytest.skip(f"{backend.name} has no {kind}: the standard has no half precision")
    values = np.arange(2**16, dtype=np.uint16).view(backend.numpy_dtype(kind))
    wide = values.astype(np.float32)
    normal = ~((wide != 0) & (abs(wide) < 2.0**-126))  # a bfloat16 may be a subnormal binary32: spec 1.2
    actual = backend.to_numpy(backend.xp.astype(backend.from_numpy(values[normal]), backend.xp.float32))
    assert_bits_equal(actual, wide[normal], backend.name)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_astype_narrows_to_nearest_even(backend, kind):
    """Halves, the points midway between them and the neighbours of those; also into binary16's subnormals."""
    if kind not in backend.formats:
        pytest.skip(f"{backend.name} has no {kind}: the standard has no half precision")
    dtype = backend.numpy_dtype(kind)
    halves = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    bits = halves.view(np.int32)
    step = 1 << (15 if kind == "bfloat16" else 12)
    values = np.concatenate([(bits + offset).view(np.float32) for offset in (0, 1, step - 1, step, step + 1)])
    values = values[(abs(values) >= 2.0**-100) | (values == 0)]
    values = np.concatenate([values, np.float32([np.inf, -np.inf, np.nan, 65519, 65520, 2.0**-25, 1.5 * 2**-25])])
    with np.errstate(over="ignore"):
        expected = values.astype(dtype)
    with backend.xp.scope():
        narrow = backend.xp.astype(backend.from_numpy(values), getattr(backend.xp, kind))
    actual = backend.to_numpy(narrow)
    assert_bits_equal(actual, expected, backend.name)


def test_bitcast_round_trip_keeps_every_pattern(backend):
    """Subnormals, −0 and the payload of NaNs included: masked blocks rest on it."""
    patterns = np.random.default_rng(0).integers(-(2**31), 2**31, 2**16).astype(np.int32)
    patterns = np.concatenate([patterns, WORDS, np.int32([-(2**31), 1, 0x7FC12345, -0x3EDCBB])])
    xp = backend.xp
    floats = xp.bitcast(backend.from_numpy(patterns), xp.float32)
    assert floats.dtype == xp.float32
    assert_bits_equal(backend.to_numpy(xp.bitcast(floats, xp.int32)), patterns, backend.name)


@pytest.mark.parametrize("shape", SHAPES)
def test_bitcast_reads_the_bits_of_floats(backend, shape):
    x = reals(shape)
    actual = backend.to_numpy(backend.xp.bitcast(backend.from_numpy(x), backend.xp.int32))
    assert_bits_equal(actual, x.view(np.int32), backend.name)


# Shape


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((), ()),
        ((1,), (0,)),
        ((3,), ()),
        ((1, 3), ()),
        ((1, 3), (0,)),
        ((1, 1), (1,)),
        ((2, 1, 3, 1), (1, 3)),
        ((1, 0), (0,)),
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, bool], ids=str)
def test_squeeze_drops_the_axes_named(agrees, shape, axis, dtype):
    """All that are named, and no other: no axes are not all axes."""
    agrees(lambda xp, x: xp.squeeze(x, axis=axis), integers(shape, dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_like_has_shape_and_dtype(agrees, shape):
    """+0 everywhere, whatever there was."""
    agrees(lambda xp, x: xp.zeros_like(x, dtype=xp.float32), reals(shape) - np.float32(np.inf))


@pytest.mark.parametrize("axes", [(), (0,), (1, 0), (0, 1), (2, 0, 1), (1, 2, 0), (3, 1, 0, 2)])
@pytest.mark.parametrize("dtype", [np.int64, bool, np.float32], ids=str)
def test_permute_dims_moves_axes(agrees, axes, dtype):
    shape = (2, 3, 4, 5)[: len(axes)]
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    agrees(lambda xp, x: xp.permute_dims(x, axes), x)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_stack_makes_a_new_axis(agrees, shape, axis):
    x = integers(shape, np.int64)
    agrees(lambda xp, *xs: xp.stack(list(xs), axis=axis), x, x + 1, x - 1)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_array_indexing(agrees, stop):
    """What the core asks of arrays themselves."""
    for i in range(3):
        agrees(lambda xp, x, i=i: x[i, ...], reals((3, stop)))
        agrees(lambda xp, x, i=i: x[i, ...], reals((3, 2, 2)))
        agrees(lambda xp, x, i=i: x[i, ...], reals((3,)))
        agrees(lambda xp, x, i=i: x[i], reals((3,)))
    agrees(lambda xp, x: x[..., None], reals((2, stop)))
    agrees(lambda xp, x: x[..., None], reals(()))
    agrees(lambda xp, x: x[()], reals(()))
    agrees(lambda xp, x: x[None, None], reals(()))
    agrees(lambda xp, x: x[None, :, None, :], reals((2, stop)))


# Selection


@pytest.mark.parametrize(
    ("condition", "first", "second"),
    [
        ((3, 4), (3, 4), (3, 4)),
        ((3, 4), (), (3, 4)),
        ((3, 4), (3, 4), ()),
        ((), (3, 4), (3, 4)),
        ((3, 1), (3, 4), (3, 4)),
        ((1, 4), (3, 4), (3, 4)),
        ((1, 1), (), (3, 4)),
        ((), (), ()),
        ((4,), (), (4,)),
        ((0, 4), (), (0, 4)),
    ],
)
def test_where_broadcasts_all_three(agrees, condition, first, second):
    agrees(
        lambda xp, c, x, y: xp.where(c, x, y),
        reals(condition) < 0,
        np.full(first, -0.0, np.float32),
        reals(second),
    )


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_where_keeps_the_bits_of_what_it_selects(backend, kind):
    """Also of subnormals and −0: a masked block is written by it. NaNs may lose their payload (spec 1.5)."""
    if kind not in backend.formats:
        pytest.skip(f"{backend.name} has no {kind}: the standard has no half precision")
    dtype = backend.numpy_dtype(kind)
    unsigned = f"u{dtype.itemsize}"
    patterns = np.random.default_rng(1).integers(0, 2 ** (8 * dtype.itemsize), (2, 2**12)).astype(unsigned)
    patterns[:, :4] = [0, 1, 1 << (8 * dtype.itemsize - 1), (1 << (8 * dtype.itemsize)) - 1]
    condition = np.random.default_rng(2).random(2**12) < 0.5
    arrays = [backend.from_numpy(row.view(dtype)) for row in patterns]
    actual = backend.to_numpy(backend.xp.where(backend.from_numpy(condition), *arrays))
    with np.errstate(invalid="ignore"):  # signalling NaNs among the patterns
        assert_bits_equal(actual, np.where(condition, *patterns).view(dtype), backend.name)


# Reductions

REDUCED = st.sampled_from([((5,), 1), ((2, 3), 2), ((3, 1, 2), 3), ((2, 3, 4), 3)]).flatmap(
    lambda case: st.tuples(
        st.just(case[0]),
        st.none()
        | st.integers(-case[1], case[1] - 1)
        | st.sets(st.integers(0, case[1] - 1), min_size=1).flatmap(
            lambda axes: st.permutations(sorted(axes)).map(tuple)
        ),
    )
)


@settings(max_examples=25)
@given(case=REDUCED, keepdims=st.booleans(), negative=st.booleans())
def test_max_over_axes(agrees, case, keepdims, negative):
    shape, axis = case
    if negative and isinstance(axis, tuple):
        axis = tuple(a - len(shape) for a in axis)
    x = np.random.default_rng(3).choice(WORDS, size=shape)
    agrees(lambda xp, x: xp.max(x, axis=axis, keepdims=keepdims), x)


def test_max_of_other_axes_of_empty_blocks(agrees):
    """A tensor of no blocks: there is nothing to reduce, and a shape to get right."""
    agrees(lambda xp, x: xp.max(x, axis=(1,), keepdims=True), np.zeros((0, 3), np.int32))


@settings(max_examples=25)
@given(case=REDUCED, negative=st.booleans())
def test_sum_over_axes(agrees, case, negative):
    shape, axis = case
    if negative and isinstance(axis, tuple):
        axis = tuple(a - len(shape) for a in axis)
    x = np.random.default_rng(4).integers(-(2**30), 2**30, size=shape).astype(np.int32)
    agrees(lambda xp, x: xp.sum(x, axis=axis, dtype=xp.int64), x)


def test_sum_accumulates_in_its_dtype(backend):
    """Past the range of the terms' own dtype, and past the integers of float64."""
    x = np.full((2, 2**12), 2**30, np.int32)
    x[0, 0] = -1
    with backend.xp.scope():
        total = backend.xp.sum(backend.from_numpy(x), axis=(1,), dtype=backend.xp.int64)
    assert backend.to_numpy(total).tolist() == [2**30 * (2**12 - 1) - 1, 2**42]
    large = np.array([2**62, -(2**61), 1, 2**53], np.int64)
    with backend.xp.scope():
        total = backend.xp.sum(backend.from_numpy(large), axis=0, dtype=backend.xp.int64)
    assert int(total) == sum(large.tolist())


def test_sum_of_nothing_is_zero(agrees):
    agrees(lambda xp, x: xp.sum(x, axis=(1,), dtype=xp.int64), np.zeros((3, 0), np.int32))
    agrees(lambda xp, x: xp.sum(x, axis=(0,), dtype=xp.int64), np.zeros((3, 0), np.int32))


def test_integer_sums_are_those_of_python(backend):
    """A backend's own way to the three sums, where it has one, and the core's otherwise."""
    from magma_core.alignment import plain_integer_sums

    xp = backend.xp
    x, y = (np.random.default_rng(i).integers(-(2**15), 2**15 + 1, (2, 3, 50)).astype(np.float32) for i in (0, 1))
    x[0], y[0] = 2**15, -(2**15)
    for axis in [(), (2,), (0, 2), (0, 1, 2), (1,)]:
        with xp.scope():
            arrays = backend.from_numpy(x), backend.from_numpy(y)
            faster = getattr(xp, "integer_sums", None)
            sums = faster(*arrays, axis=axis) if faster else plain_integer_sums(*arrays, axis=axis, xp=xp)
        m, n = (side.astype(int).astype(object) for side in (x, y))
        products = [m * n, m**2, n**2]
        for actual, product in zip(sums, products, strict=True):
            expected = np.sum(product, axis=axis) if axis else product
            assert_bits_equal(backend.to_numpy(actual), np.asarray(expected).astype(np.int64), f"axis {axis}")


# Arithmetic


def test_add_special_values_and_broadcasting(agrees):
    agrees(apply("add"), *pairs(REALS))
    for first, second in BROADCASTS:
        agrees(apply("add"), reals(first), reals(second))


def test_add_integers_and_scalars(agrees):
    agrees(apply("add"), *pairs(LONGS[abs(LONGS) < 2**60]))
    agrees(lambda xp, x: xp.add(x, 127), integers((3, 4)))
    agrees(lambda xp, x: xp.add(x, 5), LONGS[LONGS < 2**60])
    agrees(lambda xp, x: xp.add(x, 127), np.int32(-126))


def test_subtract_special_values_and_broadcasting(agrees):
    agrees(apply("subtract"), *pairs(REALS))
    for first, second in BROADCASTS:
        agrees(apply("subtract"), reals(first), reals(second))


def test_add_to_an_integer_scalar(agrees):
    """The scalar first, and small enough for an int32, to which the array must not be held."""
    agrees(lambda xp, x: xp.add(0x37B95727, x), LONGS[abs(LONGS) < 2**60])
    agrees(lambda xp, x: xp.add(127, x), integers((3, 4)))


def test_subtract_from_an_integer_scalar(agrees):
    """The core writes ``xp.subtract(15 + 126, biased)``, the scalar first."""
    agrees(lambda xp, x: xp.subtract(141, x), integers((3, 4)))
    agrees(lambda xp, x: xp.subtract(141, x), LONGS[abs(LONGS) < 2**60])
    agrees(lambda xp, x: xp.subtract(141, x), np.int32(27))
    agrees(lambda xp, x: xp.subtract(x, 3), integers((3, 4)))


def test_multiply_special_values_and_broadcasting(agrees):
    agrees(apply("multiply"), *pairs(REALS))
    for first, second in BROADCASTS:
        agrees(apply("multiply"), reals(first), reals(second))


def test_multiply_integers(agrees):
    """Up to the products of the core, 2³⁰."""
    edges = np.int32([-(2**15), -1, 0, 1, 255, 2**15])
    agrees(apply("multiply"), *pairs(edges))
    agrees(apply("multiply"), integers((3, 4)), integers((3, 4)))


def test_divide_special_values_and_broadcasting(agrees):
    """Only the numerator broadcasts: XLA divides by one value for many by multiplying with its reciprocal."""
    agrees(apply("divide"), *np.broadcast_arrays(*pairs(REALS[abs(REALS) < 2**100])))
    agrees(apply("divide"), *np.broadcast_arrays(*pairs(np.float32([0.0, -0.0, 1, np.inf, -np.inf, np.nan]))))
    for first, second in BROADCASTS:
        if second == np.broadcast_shapes(first, second):
            agrees(apply("divide"), reals(first), reals(second))


def test_sqrt_special_values(agrees):
    agrees(apply("sqrt"), REALS)
    for shape in SHAPES:
        agrees(apply("sqrt"), abs(reals(shape)))


def test_abs_special_values(agrees):
    agrees(apply("abs"), REALS)
    agrees(apply("abs"), LONGS[LONGS > -(2**63)])
    agrees(apply("abs"), np.float32(-0.0))


def test_negative_special_values(agrees):
    agrees(apply("negative"), REALS)
    agrees(apply("negative"), np.float32(0.0))


def test_round_half_to_even(agrees):
    ties = np.arange(-8, 9, dtype=np.float32) / 2
    agrees(apply("round"), ties)
    agrees(apply("round"), REALS)
    agrees(apply("round"), np.nextafter(ties, np.float32(np.inf)))
    agrees(apply("round"), np.nextafter(ties, np.float32(-np.inf))[ties != 0])
    agrees(apply("round"), np.float32([2**15 - 0.5, 2**22 + 0.5, 2**23 - 0.5, -(2**22) - 1.5]))


def test_clip_from_below_only(agrees):
    agrees(lambda xp, x: xp.clip(x, min=27), np.int32([0, 26, 27, 28, 254, -5]))
    agrees(lambda xp, x: xp.clip(x, min=27), np.int32(3))
    agrees(lambda xp, x: xp.clip(x, min=27), np.zeros((0, 2), np.int32))


BINARY64 = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}


@pytest.mark.parametrize("operation", [*BINARY64, "sqrt"])
def test_arithmetic_is_correctly_rounded(backend, operation):
    """2¹⁶ pairs in the normal range, N1.

    float64 has 53 ≥ 2·24 + 2 bits, so its result rounded again to float32 is the correctly rounded one.
    """
    rng = np.random.default_rng(5)
    x, y = (np.ldexp(rng.uniform(1, 2, 2**16), rng.integers(-30, 31, 2**16)).astype(np.float32) for _ in "xy")
    y *= rng.choice(np.float32([-1, 1]), y.size)
    wide = x.astype(np.float64), y.astype(np.float64)
    expected = np.sqrt(wide[0]) if operation == "sqrt" else BINARY64[operation](*wide)
    arrays = [backend.from_numpy(a) for a in ((x,) if operation == "sqrt" else (x, y))]
    actual = backend.to_numpy(getattr(backend.xp, operation)(*arrays))
    assert_bits_equal(actual, expected.astype(np.float32), f"{backend.name} {operation}")


# Comparison and logic


def test_equal_integers_and_scalars(agrees):
    agrees(apply("equal"), *pairs(WORDS))
    agrees(lambda xp, x: xp.equal(x, 5), WORDS)
    agrees(lambda xp, x: xp.equal(x, 5), np.int32(5))


def test_equal_with_nan_and_zeros(agrees):
    agrees(apply("equal"), *pairs(REALS))


def test_less_with_nan_and_zeros(agrees):
    """Nothing is less than NaN, NaN is less than nothing, and −0 is not less than +0."""
    agrees(apply("less"), *pairs(REALS))
    for first, second in BROADCASTS:
        agrees(apply("less"), reals(first), reals(second))


def test_logical_not_of_masks(agrees):
    agrees(lambda xp, x: xp.logical_not(x), np.array([True, False, True]))


def test_less_integers_and_scalars(agrees):
    agrees(apply("less"), *pairs(LONGS))
    agrees(lambda xp, x: xp.less(x, 0x7F800000), WORDS)
    agrees(lambda xp, x: xp.less(x, 2**24), LONGS)
    agrees(lambda xp, x: xp.less(x, 0), LONGS)


# Integers


@pytest.mark.parametrize("scalar", [0xFF, 7, 0x7FFFFFFF])
def test_bitwise_and_int32(agrees, scalar):
    agrees(lambda xp, x: xp.bitwise_and(x, scalar), WORDS)
    agrees(apply("bitwise_and"), *pairs(WORDS))


@pytest.mark.parametrize("scalar", [0xFFFFFFFF, 0xFFFFFF, 0x3FFF])
def test_bitwise_and_int64(agrees, scalar):
    """Also of negative numbers: a seed in an array may be one."""
    agrees(lambda xp, x: xp.bitwise_and(x, scalar), LONGS)
    agrees(lambda xp, x: xp.bitwise_and(x, scalar), np.int64(-1))


def test_bitwise_or_joins_words(agrees):
    agrees(apply("bitwise_or"), *pairs(LONGS))


def test_bitwise_xor_words(agrees):
    agrees(apply("bitwise_xor"), *pairs(WORDS))
    agrees(apply("bitwise_xor"), *pairs(LONGS))
    agrees(lambda xp, x: xp.bitwise_xor(x, 0x1BD11BDA), LONGS)
    agrees(lambda xp, x: xp.bitwise_xor(0x1BD11BDA, x), LONGS)


def test_bitwise_left_shift_words(agrees):
    for distance in (13, 15, 26, 6, 17, 29, 16, 24):
        agrees(lambda xp, x, d=distance: xp.bitwise_left_shift(x, d), LONGS[(LONGS >= 0) & (LONGS < 2**32)])
    agrees(lambda xp, x: xp.bitwise_left_shift(x, 23), np.arange(1, 255, dtype=np.int32))
    agrees(lambda xp, x: xp.bitwise_left_shift(x, 23), np.int32(127))


def test_bitwise_right_shift_floors(agrees):
    for distance in (8, 14, 32, 38, 3):
        agrees(lambda xp, x, d=distance: xp.bitwise_right_shift(x, d), LONGS)
    agrees(lambda xp, x: xp.bitwise_right_shift(x, 23), WORDS)
    agrees(lambda xp, x: xp.bitwise_right_shift(x, 32), np.int64(-(2**40)))


@settings(max_examples=25)
@given(value=st.integers(-(2**63), 2**63 - 1), distance=st.integers(0, 63))
def test_bitwise_right_shift_is_floor_division(backend, value, distance):
    with backend.xp.scope():
        shifted = backend.xp.bitwise_right_shift(backend.from_numpy(np.array([value], np.int64)), distance)
    assert int(shifted[0]) == value // 2**distance


# Beyond the standard


def test_fused_says_whether_a_compiler_looks(backend):
    assert backend.xp.fused(backend.from_numpy(reals((2,)))) is False


@pytest.mark.parametrize("backend", ["jax"], indirect=True)
def test_fused_under_jit(backend):
    import jax

    seen = []
    jax.jit(lambda x: seen.append(backend.xp.fused(x)) or x)(backend.from_numpy(reals((2,))))
    assert seen == [True]


@pytest.mark.parametrize("backend", ["tensorflow"], indirect=True)
@pytest.mark.parametrize("compiled", [False, True])
def test_fused_in_a_graph(backend, compiled):
    import tensorflow as tf

    seen = []

    @tf.function(autograph=False, jit_compile=compiled)
    def look(x):
        seen.append(backend.xp.fused(x))
        return x

    look(backend.from_numpy(reals((2,))))
    assert seen == [True]


def test_scope_nests_and_ends(backend):
    """A scope leaves the framework as it found it, also by way of an exception."""
    wide = np.array([2**40], np.int64)

    def setting():
        if backend.name == "jax":
            import jax

            return jax.config.jax_enable_x64
        if backend.name == "torch":
            import torch

            return torch.is_grad_enabled()
        return np.geterr()

    def enter_and_fail():
        with backend.xp.scope():
            with backend.xp.scope():
                pass
            assert backend.to_numpy(backend.from_numpy(wide))[0] == 2**40
            raise KeyError

    before = setting()
    with pytest.raises(KeyError):
        enter_and_fail()
    assert setting() == before


def test_scope_keeps_infinities_quiet(backend):
    """Warnings are errors here, and in many users' programs."""
    xp = backend.xp
    with xp.scope():
        one, zero, large = (backend.from_numpy(np.float32([x])) for x in (1, 0, 3e38))
        xp.divide(one, zero)
        xp.divide(zero, zero)
        xp.multiply(large, large)
        xp.sqrt(xp.negative(one))
