"""A random task, named by three numbers that give the same task on every machine.

Seed and number determine everything that a program is compiled for; the third number determines its inputs. So one
program serves many cases.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from magma_numpy import namespace as xp

from magma_conformance.cases.inputs import FORMATS
from magma_conformance.fuzz.draw_arrays import Shape, draw_array, draw_state
from magma_conformance.fuzz.draw_numbers import draw_number, draw_numbers
from magma_conformance.fuzz.stream import Stream
from magma_conformance.task import Record, Task
from magma_core import Axes, Rule, State, init
from magma_core.config import BASES
from magma_core.state import POWERS
from magma_core.state_file.config import base_from_plain, base_to_plain, rule_from_plain, rule_to_plain

_EXTENTS = [1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 31, 37, 64, 101, 127, 257, 521, 1009, 4099, 16411, 65537]
_SIZES = [1, 12, 64, 64, 300, 1000, 5000]  # and now and then `_LARGE`
_LARGE = 100_000
_SCRIPTS = [
    "abcxyz019._-",
    "/:[]{}* \\'\"",
    "\x00\t\n\x1b\x7f",
    "äßéñ",
    "λθΔμ",
    "жщя",
    "אבג",
    "عربي",
    "漢字かな",
    "한글",
    "😀🧲𝕏",
]
_LAST_STEP = 2**32 - 1


@dataclass(frozen=True)
class Parameter:
    """A parameter without values."""

    shape: Shape
    format: str
    axes: Axes | None


@dataclass(frozen=True)
class Configuration:
    """Everything that a program is compiled for.

    Attributes:
        key: its name.
        base: as `magma_core.state_file.config.base_to_plain` writes it.
        rule: as `magma_core.state_file.config.rule_to_plain` writes it.
        parameters: by name.
        seed: of the masks.
        steps: how many.
    """

    key: str
    base: dict[str, Any]
    rule: dict[str, Any]
    parameters: dict[str, Parameter]
    seed: int
    steps: int


def configuration(seed: int, number: int, /) -> Configuration:
    """The configuration with this number."""
    key = f"fuzz/{seed}/{number}"
    stream = Stream(key)
    single = stream.chance(2)
    base = base_to_plain(BASES[stream.one_of(sorted(BASES))]())
    if "nesterov" in base:
        base["nesterov"] = stream.chance(2)
    base = draw_numbers(base, stream, single=single)
    if "weight_decay" in base and stream.chance(3):
        base["weight_decay"] = 0.0  # another program: one without decay
    rule = rule_to_plain(
        Rule(
            survival=stream.one_of(["p", "p", "score"]),
            weight=stream.one_of(["inverse_p", "score", "score", "one"]),
            momentum=stream.one_of(["after", "after", "before"]),
            decay=stream.one_of(["masked", "dense"]),
        )
    )
    count, mixed = stream.one_of([1, 1, 2, 3]), stream.chance(4)
    format = stream.one_of([*FORMATS])
    names = _draw_names(stream, count)
    return Configuration(
        key=key,
        base=base,
        rule=draw_numbers(rule, stream, single=single),
        parameters={name: _draw_parameter(stream, stream.one_of([*FORMATS]) if mixed else format) for name in names},
        seed=stream.one_of([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, *[stream.below(2**64)] * 6]),
        steps=stream.between(2, 6),
    )


@dataclass(frozen=True)
class FuzzCase:
    """One random task.

    Args:
        seed: of the run.
        number: of the configuration.
        values: of the set of values.
        vary: whether hyper-parameters are among the values, as binary32.
    """

    seed: int
    number: int
    values: int
    vary: bool = False

    @property
    def id(self) -> str:
        """Its name."""
        return f"fuzz/{self.seed}/{self.number}/{self.values}" + "/numbers" * self.vary

    @property
    def column(self) -> str:
        """Its base."""
        return str(self._configuration.base["kind"])

    @cached_property
    def _configuration(self) -> Configuration:
        made, stream = configuration(self.seed, self.number), Stream(f"{self.id} numbers")
        if not self.vary:
            return made
        base, rule = (draw_numbers(fields, stream, single=True) for fields in (made.base, made.rule))
        return replace(made, key=self.id, base=base, rule=rule)

    def task(self) -> Task:
        """The task."""
        made, stream = self._configuration, Stream(self.id)
        params = {
            name: draw_array(stream, one.shape, one.format, calm=stream.chance(2))
            for name, one in made.parameters.items()
        }
        wild = stream.chance(2)  # otherwise most gradients are ordinary, so that moments stay finite
        gradients: list[dict[str, np.ndarray]] = []
        for _ in range(made.steps):
            before = gradients[-1] if gradients else params
            gradients.append({name: self._gradient(stream, x, before[name], wild) for name, x in params.items()})
        first_step, fresh = _draw_first_step(stream, made.steps)
        return Task(
            key=made.key,
            params=params,
            gradients=gradients,
            learning_rates=[draw_number("lr", stream, single=False) for _ in gradients],
            base=made.base,
            rule=made.rule,
            block_axes={name: one.axes for name, one in made.parameters.items()},
            seed=made.seed,
            first_step=first_step,
            state=None if first_step == 1 and fresh else self._state(stream, params, fresh),
        )

    def _gradient(self, stream: Stream, like: np.ndarray, before: np.ndarray, wild: bool) -> np.ndarray:
        """Sometimes the gradient before, or its negative: cosines of 1 and −1."""
        repeated = stream.below(12)
        if repeated < 2:
            return before.copy() if repeated else np.negative(before)
        return draw_array(stream, like.shape, str(like.dtype), calm=not wild and not stream.chance(6))

    def _state(self, stream: Stream, params: dict[str, np.ndarray], fresh: bool) -> Record:
        """The state before the first step: initial, or from the middle of a run."""
        made = self._configuration
        base, rule = base_from_plain(made.base), rule_from_plain(made.rule)
        record: Record = {}
        powers: Record = {}  # shared by all parameters
        for name, param in params.items():
            axes: Any = made.parameters[name].axes
            state: State = init(param, base=base, rule=rule, block_axes=axes, name=name, xp=xp)
            for field, x in state._asdict().items():
                if x is None:
                    continue
                if not fresh and field not in powers:
                    decay = made.base.get({"mu_power": "beta1", "nu_power": "beta2"}.get(field, ""), 0.0)
                    x = draw_state(stream, field, x, decay=decay)
                if field in POWERS:
                    x = powers.setdefault(field, x)
                record[f"{name}/{field}"] = x
        return record


def _draw_first_step(stream: Stream, steps: int) -> tuple[int, bool]:
    """The first step, and whether the state before it is the initial one."""
    fresh = stream.chance(2)
    if stream.chance(2):
        return 1, fresh
    last = stream.one_of([1000, 2**24 + 3, 2**31 - 1, 2**31 + 3, _LAST_STEP])
    return max(1, last - steps + 1 - stream.below(3)), fresh


def _draw_parameter(stream: Stream, format: str) -> Parameter:
    size = _LARGE if stream.chance(100) else stream.one_of(_SIZES)
    shape: list[int] = []
    for _ in range(stream.one_of([0, 1, 1, 2, 2, 2, 3, 4])):
        shape.append(stream.one_of([extent for extent in _EXTENTS if extent <= size]))
        size //= shape[-1]
        if stream.chance(40):
            shape[-1] = 0
    axes: Axes | None = None
    if not stream.chance(6):
        order = sorted(range(len(shape)), key=lambda _: stream.below(2**32))
        axes = tuple(order[: stream.below(len(shape) + 1)])
        if math.prod(shape[axis] for axis in axes) > 2000 and not stream.chance(8):
            axes = ()
    return Parameter(tuple(shape), format, axes)


def _draw_names(stream: Stream, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        length = stream.one_of([0, 1, 2, 5, 12, 40]) if not stream.chance(40) else 3000
        name = "".join(stream.one_of(stream.one_of(_SCRIPTS)) for _ in range(length))
        if name not in names:
            names.append(name)
    return names
