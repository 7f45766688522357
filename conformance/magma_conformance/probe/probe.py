"""One expression of the probe, and the operations that it uses."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from magma_numpy import namespace as numpy_namespace

from magma_conformance.probe.inputs import Input
from magma_core.namespace import Array, Namespace
from magma_core.numerics import Real


class Operations:
    """Operations without a Python operator, as a user of the framework writes them.

    ``framework`` is the module with the framework's own functions, ``xp`` the namespace of its backend.
    """

    def __init__(self, framework: Any, xp: Namespace, /) -> None:
        self.framework = framework
        self.xp = xp

    def sqrt(self, x: Any, /) -> Any:
        """The framework's own square root; for a `Real`, that of the namespace."""
        return x.sqrt() if isinstance(x, Real) else self.framework.sqrt(x)

    def rint(self, x: Array, /) -> Array:
        """The nearest integer."""
        return self.xp.round(x)

    def cast(self, x: Array, dtype: str, /) -> Array:
        """``x`` in the format named ``dtype``."""
        return self.xp.astype(x, getattr(self.xp, dtype))

    def sum(self, x: Array, /) -> Array:
        """The sum of all elements."""
        return self.xp.sum(x)


NUMPY = Operations(np, numpy_namespace)


@dataclass(frozen=True)
class Probe:
    """One expression and its hazard.

    Args:
        id: names the expression in reports and seeds its inputs.
        label: the expression, short enough for a table.
        meaning: the hazard, in one line.
        inputs: one array maker per operand. No two probes share inputs, so that no compiler finds a common
            subexpression.
        expression: maps `Operations` and the operands to the result, with Python's own operators.
        expected: maps the operands, as NumPy arrays, to the correct result; by default the expression in NumPy.
        only: the one framework that has the expression, else None.
        words: names for "no element differs" and "all differ", for hazards that are all or nothing.
        fenced: operands are `Real`, so that nothing may differ (spec 1.1).
        topic: its section of the table.
    """

    id: str
    label: str
    meaning: str
    inputs: tuple[Input, ...]
    expression: Callable[..., Any]
    expected: Callable[..., np.ndarray] | None = None
    only: str | None = None
    words: tuple[str, str] | None = None
    fenced: bool = False
    topic: str = ""

    def operands(self) -> list[np.ndarray]:
        """The inputs, the same on every call and every machine."""
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(self.id.encode())))
        return [make(generator) for make in self.inputs]

    def evaluate(self, operations: Operations, operands: list[Array], /) -> Array:
        """The expression on one framework's arrays."""
        xp = operations.xp
        if self.fenced:
            operands = [Real(x, xp=xp) if x.dtype == xp.float32 else x for x in operands]
        result = self.expression(operations, *operands)
        return result.array if isinstance(result, Real) else result

    def reference(self, operands: list[np.ndarray], /) -> np.ndarray:
        """The result that every mode should have. Fences play no part in it."""
        with np.errstate(all="ignore"):
            if self.expected is not None:
                return np.asarray(self.expected(*operands))
            return np.asarray(replace(self, fenced=False).evaluate(NUMPY, operands))
