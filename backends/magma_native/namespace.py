"""C expressions as arrays: the core's functions, called once with these, write the statements of a loop.

The C compiler may not contract (`magma_native.compiler.FLAGS`), so no operation needs a fence.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from magma_core.stacks import Stack, each

C_TYPES = {
    "float32": "float",
    "bfloat16": "uint16_t",
    "float16": "_Float16",
    "int32": "int32_t",
    "int64": "int64_t",
    "bool": "int32_t",  # as wide as a float, so that conditions and floats share vectors
}
"""How the core's dtypes are called in C; C has no bfloat16, only its bits."""


class Value(NamedTuple):
    """A variable or constant of a C program, of shape ()."""

    text: str
    dtype: str
    rounded: str = ""  # the variable that this one is the nearest integer to
    shape: tuple[int, ...] = ()


class CNamespace:
    """The functions of `magma_core.namespace.Namespace` that the core calls in a loop; `statements` grows with them."""

    float16, bfloat16, float32 = "float16", "bfloat16", "float32"
    int32, int64 = "int32", "int64"

    def __init__(self) -> None:
        self.statements: list[str] = []
        self._known: dict[tuple[str, str], Value] = {}

    def full(self, shape: Sequence[int], fill_value: float, *, dtype: str, device: Any = None) -> Value:
        """A constant; shapes are those of scalars."""
        return self.asarray(fill_value, dtype=dtype)

    def asarray(self, obj: float, /, *, dtype: str, device: Any = None) -> Value:
        """A number as a constant; C's hexadecimal floats are exact."""
        if dtype == "float32":
            return Value(f"{float(obj).hex()}f", dtype)
        return Value(f"INT64_C({int(obj)})" if dtype == "int64" else f"({int(obj)})", dtype)

    def stack(self, arrays: Sequence[Value], /, *, axis: int = 0) -> Stack:
        """Values side by side along a new first axis."""
        return Stack(arrays)

    def astype(self, x: Any, dtype: str, /) -> Any:
        """Converted to nearest even; floats that are integers to integers."""
        return each(lambda one: self._converted(one, dtype), x)

    def _converted(self, x: Value, dtype: str) -> Value:
        if x.dtype == dtype:
            return x
        if x.dtype == "bfloat16":
            return self.bitcast(self._assign("int32", f"(int32_t)((uint32_t){x.text} << 16)"), dtype)
        if dtype == "bfloat16":
            return self._assign(dtype, f"to_bfloat16({x.text})")
        if x.rounded and dtype == "int32":
            return self._assign(dtype, f"nearest({x.rounded})")
        return self._assign(dtype, f"({C_TYPES[dtype]}){x.text}")

    def bitcast(self, x: Any, dtype: str, /) -> Any:
        """The same bits read as ``dtype``."""
        reader = "to_bits" if dtype == "int32" else "from_bits"
        return each(lambda one: self._assign(dtype, f"{reader}({one.text})"), x)

    def add(self, x1: Any, x2: Any, /) -> Any:
        """One rounding, as for the next three."""
        return self._binary("+", x1, x2)

    def subtract(self, x1: Any, x2: Any, /) -> Any:
        """x1 − x2."""
        return self._binary("-", x1, x2)

    def multiply(self, x1: Any, x2: Any, /) -> Any:
        """x1 · x2."""
        return self._binary("*", x1, x2)

    def divide(self, x1: Any, x2: Any, /) -> Any:
        """x1 / x2."""
        return self._binary("/", x1, x2)

    def sqrt(self, x: Any, /) -> Any:
        """Correctly rounded, as IEEE 754 asks of hardware."""
        return each(lambda one: self._assign("float32", f"sqrtf({one.text})"), x)

    def abs(self, x: Any, /) -> Any:
        """The magnitude."""

        def magnitude(one: Value) -> Value:
            text = f"fabsf({one.text})" if one.dtype == "float32" else f"{one.text} < 0 ? -{one.text} : {one.text}"
            return self._assign(one.dtype, text)

        return each(magnitude, x)

    def negative(self, x: Any, /) -> Any:
        """The sign flipped, of zeros too."""
        return each(lambda one: self._assign(one.dtype, f"-{one.text}"), x)

    def round(self, x: Any, /) -> Any:
        """To the nearest integer, ties to even."""
        return each(lambda one: self._assign("float32", f"rintf({one.text})")._replace(rounded=one.text), x)

    def clip(self, x: Any, /, *, min: int) -> Any:
        """Integers, at least ``min``."""
        return self.where(self.less(x, min), min, x)

    def where(self, condition: Any, x1: Any, x2: Any, /) -> Any:
        """``x1`` where ``condition`` holds, else ``x2``."""

        def choose(condition: Value, a: Any, b: Any) -> Value:
            a, b = self._alike(a, b)
            return self._assign(a.dtype, f"{condition.text} ? {a.text} : {b.text}")

        return each(choose, condition, x1, x2)

    def equal(self, x1: Any, x2: Any, /) -> Any:
        """x1 = x2."""
        return self._binary("==", x1, x2, "bool")

    def less(self, x1: Any, x2: Any, /) -> Any:
        """x1 < x2."""
        return self._binary("<", x1, x2, "bool")

    def logical_not(self, x: Any, /) -> Any:
        """Of booleans."""
        return each(lambda one: self._assign("bool", f"!{one.text}"), x)

    def bitwise_and(self, x1: Any, x2: Any, /) -> Any:
        """Of integers, as for the next four."""
        return self._binary("&", x1, x2)

    def bitwise_or(self, x1: Any, x2: Any, /) -> Any:
        """x1 | x2."""
        return self._binary("|", x1, x2)

    def bitwise_xor(self, x1: Any, x2: Any, /) -> Any:
        """x1 ^ x2."""
        return self._binary("^", x1, x2)

    def bitwise_left_shift(self, x1: Any, x2: Any, /) -> Any:
        """x1 · 2^x2, for words that do not overflow."""
        return self._binary("<<", x1, x2)

    def bitwise_right_shift(self, x1: Any, x2: Any, /) -> Any:
        """Arithmetic, as GCC and Clang define it for signed integers."""
        return self._binary(">>", x1, x2)

    def fused(self, x: Any, /) -> bool:
        """Nothing is contracted or rewritten."""
        return False

    def device(self, x: Any, /) -> None:
        """There is only one."""

    def scope(self) -> AbstractContextManager[Any]:
        """Nothing to set."""
        return nullcontext()

    def _binary(self, sign: str, x1: Any, x2: Any, dtype: str = "") -> Any:
        def operate(a: Any, b: Any) -> Value:
            a, b = self._alike(a, b)
            return self._assign(dtype or a.dtype, f"{a.text} {sign} {b.text}")

        return each(operate, x1, x2)

    def _alike(self, a: Any, b: Any) -> tuple[Value, Value]:
        """Python numbers as constants of the other's dtype."""
        a, b = (x if isinstance(x, Value) else self.asarray(x, dtype=other.dtype) for x, other in ((a, b), (b, a)))
        if a.dtype != b.dtype:
            raise TypeError(f"operands must have one dtype, got {a.dtype} and {b.dtype}")
        return a, b

    def _assign(self, dtype: str, text: str) -> Value:
        """The variable that has this value; one is made where there is none yet."""
        if (dtype, text) not in self._known:
            name = f"v{len(self._known)}"
            self._known[dtype, text] = Value(name, dtype)
            self.statements.append(f"const {C_TYPES[dtype]} {name} = {text};")
        return self._known[dtype, text]
