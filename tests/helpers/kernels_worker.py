"""Compares kernels with eager steps, on a device or in Triton's interpreter, in tiles so small that blocks have many.

    python kernels_worker.py NAME [--device cuda]

runs one function below, or all; an AssertionError says where the two differ.
"""

import argparse
import itertools
import math
import os

PARSER = argparse.ArgumentParser()
PARSER.add_argument("name")
PARSER.add_argument("--device", default="cpu")
ASKED = PARSER.parse_args()
if ASKED.device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from magma_torch import Magma, MaskedOptimizer  # noqa: E402
from magma_torch.gpu import kernels, tables  # noqa: E402

from magma_core import Rule, score_survival  # noqa: E402

DEVICE = torch.device(ASKED.device)
tables.AT_ONCE[DEVICE.type] = 64


class Pair:
    """The same parameters under eager steps and under kernels."""

    def __init__(self, shapes, dtype=torch.float32, kind=Magma, **options):
        generator = torch.Generator().manual_seed(1)
        values = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        self.sides = []
        for compile in (False, True):
            params = [(name, torch.nn.Parameter(value.to(DEVICE, copy=True))) for name, value in values.items()]
            self.sides.append((params, kind(params, **{"lr": 0.01, "weight_decay": 0.1, **options}, compile=compile)))

    @property
    def launcher(self):
        """Of the side with kernels."""
        (launcher,) = self.sides[1][1]._engine.launchers
        return launcher

    def step(self, grads, offset=0):
        """With copies of these gradients, so many elements after an address for vectors; every bit is compared."""
        for params, optimizer in self.sides:
            for name, param in params:
                param.grad = None if grads.get(name) is None else place(grads[name], offset)
            optimizer.step()
        self.compare()

    def compare(self):
        """All bits of parameters, state and report."""
        (eager, one), (kernels, other) = self.sides
        for (name, a), (_, b) in zip(eager, kernels, strict=True):
            same(a, b, name)
            assert one.state[a].keys() == other.state[b].keys()
            for field in one.state[a]:
                same(one.state[a][field], other.state[b][field], f"{name}.{field}")
        seen, found = one.alignment(), other.alignment()
        assert seen.keys() == found.keys()
        for name in seen:
            for field, x, y in zip(seen[name]._fields, seen[name], found[name], strict=True):
                same(x, y, f"{name}.{field}")


def place(x, offset):
    """A copy on the device."""
    if not offset:
        return x.to(DEVICE, copy=True)
    return torch.empty(x.numel() + offset, dtype=x.dtype, device=DEVICE)[offset:].view(x.shape).copy_(x)


def same(a, b, where):
    """Every bit, and NaN where there is NaN."""
    assert (a is None) == (b is None), where
    if a is not None:
        a, b = a.detach().cpu(), b.detach().cpu()
        assert a.dtype == b.dtype, where
        assert a.shape == b.shape, where
        if a.is_floating_point():
            number = ~(a.isnan() & b.isnan())
            bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
            a, b = a.contiguous().view(bits) * number, b.contiguous().view(bits) * number
        assert torch.equal(a, b), where


def random(shapes, step, dtype=torch.float32):
    """Gradients of many magnitudes."""
    rng = np.random.default_rng(step)
    return {
        name: torch.tensor(np.ldexp(rng.standard_normal(shape), rng.integers(-9, 2, shape))).to(dtype)
        for name, shape in shapes.items()
    }


def guesses():
    """Of a block of many tiles, elements are read twice only where a grid has changed by more than `REACH`."""
    pair = Pair({"w": (10, 20)})
    base = torch.randn(10, 20, generator=torch.Generator().manual_seed(2))
    ((_, param),), optimizer = pair.sides[1]
    last, expected, changes = None, 0, []
    for power in (0, 0, 0, 1, 0, -1, 1, 0, 7, 7, 7, -40, -40):
        pair.step({"w": base * 2.0**power})
        now = [math.frexp(float(x.abs().max()))[1] for x in (optimizer.state[param]["mu"], param.grad)]
        change = max(abs(a - b) for a, b in zip(now, last or (-200, -200), strict=True))
        expected += 200 * (change > kernels.REACH)
        assert int(pair.launcher.read_again) == expected, (power, now, last)
        last, changes = now, [*changes, change]
    assert {change > kernels.REACH for change in changes[1:]} == {True, False}
    assert kernels.REACH in changes


def tiny():
    """Guesses where magnitudes are below what grids go down to, and where blocks are not finite."""
    pair = Pair({"w": (10, 20)})
    base = torch.randn(10, 20, generator=torch.Generator().manual_seed(2))
    for power in (-98, -99, -101, -97, -120, -96, 100, 120, 127):
        pair.step({"w": base * 2.0**power})
    for bad in (torch.inf, torch.nan, -torch.inf, 1.0):
        grad = base.clone()
        grad[3, 3] = bad
        pair.step({"w": grad})
        pair.step({"w": base})


def formats():
    """Formats, shapes and rules, in tiles of a few rows and of parts of a row, aligned and not."""
    shapes = {"a": (2, 3, 16), "b": (7,), "c": (), "d": (0, 3), "e": (130,)}
    rules = Rule(), Rule(momentum="before", decay="dense"), Rule(survival="score", weight="one")
    dtypes = itertools.cycle((torch.float32, torch.bfloat16, torch.float16, torch.float32))
    for base in ("sgd", "rmsprop", "adam", "adamw", "laprop"):
        for rule, dtype in zip(rules, dtypes, strict=False):
            decay = None if base == "adam" else 0.1
            pair = Pair(shapes, dtype, MaskedOptimizer, base=base, rule=rule, weight_decay=decay)
            for step in range(2):
                pair.step(random(shapes, step, dtype))


def blocks():
    """Blocks along every set of axes, which do or do not lie one after the other."""
    for axes in ((), (0,), (1,), (2,), (0, 2), (2, 0), (1, 0), (0, 1, 2), (2, 1, 0)):
        for rule in (Rule(), score_survival(), Rule(weight="inverse_p")):
            shapes = {"w": (4, 5, 6)}
            pair = Pair(shapes, kind=MaskedOptimizer, rule=rule, block_axes=axes)
            for step in range(3):
                pair.step(random(shapes, step))


def life():
    """What happens to an optimizer: gradients that come and go or lie elsewhere, other numbers, saving and loading."""
    shapes = {"a": (6, 48), "b": (50,), "c": (33, 3)}
    pair = Pair(shapes)
    for step in range(12):
        grads = random(shapes, step)
        if step in (2, 3, 7):
            grads["b"] = None
        if step in (4, 5):
            grads["a"] = grads["a"].t().contiguous().t()
        for _, optimizer in pair.sides:
            group = optimizer.param_groups[0]
            group["lr"] = torch.tensor(0.02, dtype=torch.float64) if step == 8 else 0.01 * (1 + step)
            group["weight_decay"] = 0.0 if step == 9 else 0.1
            group["betas"] = (0.5, 0.9) if step > 9 else group["betas"]
            if step == 10:
                optimizer.load_state_dict(optimizer.state_dict())
        pair.step(grads, offset=step == 6)


EVERYTHING = (life, blocks, guesses, tiny, formats)

if __name__ == "__main__":
    chosen = [function for function in EVERYTHING if ASKED.name in ("all", function.__name__)]
    assert chosen, f"NAME must be all or one of {', '.join(function.__name__ for function in EVERYTHING)}"
    for function in chosen:
        with np.errstate(all="ignore"):
            function()
        print(f"{function.__name__}: equal", flush=True)
