"""Adjacent fences do not cancel (docs/numerics.md, F1), whatever a compiler removes between them.

One program per mode has all stacks. The former fence, an xor, runs too: its stacks cancel.
"""

from itertools import product

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_conformance.implementations.modes import Mode
from stacked_fences import IDENTITIES, MODES, SOURCES, XLA, A, B, C, cancelled, opened, xor_fence

from magma_core import numerics
from magma_core.namespace import Array
from magma_core.numerics import Real

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own, from Inductor's imports


@pytest.mark.parametrize("where", MODES, ids=" ".join)
def test_stacks_hold(where: tuple[str, str]) -> None:
    assert cancelled(opened(where), numerics.fence) == set()


@pytest.mark.parametrize("where", XLA, ids=" ".join)
def test_stacks_of_xors_cancel(where: tuple[str, str]) -> None:
    """Two of them with any identity between, and four, whether the zeros are made of own bits or of another's."""
    found = cancelled(opened(where), xor_fence)
    assert found >= set(product(IDENTITIES, (2, 4), ("own bits", "bits of another")))
    assert not found & set(product(IDENTITIES, (3,), SOURCES))


def product_by_1(m: Mode) -> np.ndarray:
    def program(*arrays: Array) -> tuple[Array]:
        a, b, c = (Real(x, xp=m.xp) for x in arrays)
        return ((a * b * 1.0 + c).array,)

    return m.get(m.compile(program)(*map(m.put, (A, B, C)))[0])


@pytest.mark.parametrize("where", MODES, ids=" ".join)
def test_product_by_1(where: tuple[str, str]) -> None:
    assert_bits_equal(product_by_1(opened(where)), A * B * np.float32(1) + C, "a·b·1 + c")


@pytest.mark.parametrize("where", XLA, ids=" ".join)
def test_product_by_1_behind_an_xor(monkeypatch: pytest.MonkeyPatch, where: tuple[str, str]) -> None:
    monkeypatch.setattr(numerics, "fence", xor_fence)
    assert (product_by_1(opened(where)).view(np.int32) != (A * B + C).view(np.int32)).sum() > len(A) // 10
