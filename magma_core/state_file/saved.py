"""The saved state of one parameter, and its validation."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from magma_core.arguments import check_integer, short
from magma_core.base_arguments import as_base
from magma_core.bases import state_fields, state_shapes
from magma_core.blocks import Blocks, cut
from magma_core.config import Base, Rule
from magma_core.numerics import binary32
from magma_core.state import POWERS, State
from magma_core.state_file.strict_json import is_shape


@dataclass(frozen=True, eq=False)
class Saved:
    """One parameter's entry in a file.

    Args:
        shape: the parameter's shape.
        block_axes: the axes that index its blocks, counted from 0, in their order; None if it is not masked.
        step: the number of completed steps, in [0, 2³²); 0 for the initial state.
        seed: the seed of its masks, in [0, 2⁶⁴).
        base: its base.
        rule: the requested rule; an unmasked parameter uses the dense rule with the same decay.
        state: float32 NumPy arrays in the shapes of `fields`; None for all other fields.
    """

    shape: tuple[int, ...]
    block_axes: tuple[int, ...] | None
    step: int
    seed: int
    base: Base
    rule: Rule
    state: State

    @property
    def own_rule(self) -> Rule:
        """The rule that the parameter uses (spec section 2)."""
        return self.rule if self.block_axes is not None else self.rule.unmasked

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the state's fields.

        Example:
            >>> from magma_core import SGD, magma
            >>> Saved((4, 3), (0,), 0, 0, SGD(), magma(), State()).fields
            {'mu': (4, 3), 'score': (4,)}
        """
        moments, has_score = _kept(self.base, self.rule, self.block_axes is not None)
        return state_shapes(moments, Blocks(self.shape, self.block_axes or ()), has_score=has_score)

    def started(self) -> "Saved":
        """The same parameter before its first step."""
        import numpy as np  # imported here and below, because the core imports nothing for files until asked

        cut(self.shape, self.block_axes or (), name="a parameter")
        start = {**dict.fromkeys(POWERS, 1.0), "score": binary32(self.rule.initial_score)}
        arrays = {field: np.full(shape, start.get(field, 0.0), np.float32) for field, shape in self.fields.items()}
        return replace(self, step=0, state=State(**arrays))


@lru_cache(maxsize=64)  # thousands of parameters share a few of these
def _kept(base: Base, rule: Rule, masked: bool) -> tuple[tuple[str, ...], bool]:
    """The stored moments, and whether there is a score."""
    own = Saved((), () if masked else None, 0, 0, base, rule, State()).own_rule
    return state_fields(base, own), own.uses_score


def normalized(name: str, saved: Saved) -> Saved:
    """A validated copy with axes counted from 0; the state is not checked."""
    try:
        name.encode()  # the input of SHA-256
    except UnicodeEncodeError:
        raise ValueError("its name is no text that UTF-8 can encode: rename it") from None
    check_integer("step", saved.step, 0, 2**32 - 1, "masks count in 32 bits")
    check_integer("seed", saved.seed, 0, 2**64 - 1, "take it modulo 2**64")
    if not is_shape([int(n) for n in saved.shape]):
        raise ValueError(
            f"shape must have extents that are not negative and an array that could be made, got {short(saved.shape)}"
        )
    axes = cut(saved.shape, saved.block_axes or (), name=name).axes
    shape = tuple(int(n) for n in saved.shape)
    axes_or_none = None if saved.block_axes is None else axes
    return replace(saved, shape=shape, block_axes=axes_or_none, step=int(saved.step), seed=int(saved.seed))


def validated(name: str, saved: Any, /) -> Saved:
    """``saved`` as stored in a file; ValueError or TypeError, naming any value that could not be read back."""
    try:
        return _validated(name, saved)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{short(name)} cannot be saved: {error}") from None


def _validated(name: str, saved: Any) -> Saved:
    import numpy as np

    if not isinstance(saved, Saved) or not isinstance(saved.state, State):
        raise TypeError(f"it must be a magma_core.Saved with a magma_core.State, got {short(saved)}")
    as_base(saved.base)
    if not isinstance(saved.rule, Rule):
        raise TypeError(f"rule must be a magma_core.Rule, got {saved.rule!r}")
    saved = normalized(name, saved)
    shapes = saved.fields
    for field, value in saved.state._asdict().items():
        if (value is None) != (field not in shapes):
            raise ValueError(f"{field} must be {'there' if value is None else 'None'} under this base and rule")
        if value is not None and (np.asarray(value).dtype, np.shape(value)) != (np.float32, shapes[field]):
            given = f"{np.asarray(value).dtype} of shape {np.shape(value)}"
            raise ValueError(f"{field} must be float32 of shape {shapes[field]}, got {given}")
    arrays = [x if x is None else np.asarray(x) for x in saved.state]
    check_range(saved.state)
    return replace(saved, state=State(*arrays))


def check_range(state: State) -> None:
    """Raise for values that no step produces: platforms would convert them to integers, hence masks, differently."""
    for field in (*POWERS, "score"):
        value = getattr(state, field)
        if value is not None and not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"{field} must lie in [0, 1]")
