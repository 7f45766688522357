"""Fences on a device: steps have NumPy's bits with them, and, as a control, differ without them.

tests/core/test_fences.py does the same on the CPU. A fence that this device does not need is a finding, and a failure
only if devices of this kind are known to need it.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from magma_conformance.cases import inputs
from magma_conformance.device.finding import Finding
from magma_conformance.implementations.adapters import ADAPTERS
from magma_conformance.runner.jobs import open_implementation, open_mode
from magma_conformance.runner.result import Mismatch, compare
from magma_conformance.task import Implementation, Task
from magma_core import AdamW, magma
from magma_core.numerics import Real
from magma_core.state_file.config import base_to_plain, rule_to_plain

KINDS = ("tiny", "normal", "wide", "threshold", "outlier")


class Control(NamedTuple):
    """A fence and its substitute."""

    what: str
    backend: str
    mode: str
    owner: Callable[[], Any]  # imported when needed
    attribute: str
    substitute: Callable[[], Any]
    needed: tuple[str, ...] = ()  # kinds of devices known to need it


def _unfenced(self: Real) -> Any:
    return self._value


CONTROLS = (
    Control(
        "contraction and algebra (F1)",
        "jax",
        "jit",
        lambda: Real,
        "fenced",
        lambda: _unfenced,
        ("cpu",),
    ),
    Control("contraction and algebra (F1)", "jax", "scan", lambda: Real, "fenced", lambda: _unfenced, ("cpu",)),
    Control("tiny values (F5)", "jax", "jit", lambda: Real, "flush", lambda: lambda self: self, ("cpu",)),
    Control(
        "correctly rounded division",
        "jax",
        "jit",
        lambda: import_module("magma_jax.gpu.rounding"),
        "quotient",
        lambda: import_module("jax").lax.div,
        ("cuda",),
    ),
    Control("contraction (F1)", "torch", "compile", lambda: Real, "fenced", lambda: _unfenced, ("cuda",)),
    Control(
        "contraction (F1)",
        "magma_torch",
        "triton",
        lambda: import_module("magma_torch.gpu.kernels"),
        "OPTIONS",
        lambda: {"enable_fp_fusion": True},
        ("cuda",),
    ),
)


def check(device: str, controls: tuple[Control, ...] = CONTROLS) -> Finding:
    """Passes if every fence works, and removing a needed one changes the bits."""
    finding, kind = Finding(facts={"controls": []}), device.partition(":")[0]
    for control in controls:
        label = f"{control.backend} {control.mode}, {control.what}"
        try:
            _open(control, device)
            owner = control.owner()
        except (ImportError, LookupError) as error:
            finding.lines.append(f"{label}: {error}")
            continue
        with_it = _mismatch(control, device)
        with patch.object(owner, control.attribute, control.substitute()):
            without_it = _mismatch(control, device)
        finding.facts["controls"].append(
            {
                "control": label,
                "with": str(with_it or "equal"),
                "without": str(without_it or "equal"),
            }
        )
        finding.expect(with_it is None, f"{label}: equal with it{'' if with_it is None else f': {with_it}'}")
        if kind in control.needed:
            differs = isinstance(without_it, Mismatch)  # an exception proves nothing
            finding.expect(differs, f"{label}: different without it: {without_it or 'it is not'}")
        else:
            finding.lines.append(f"{label}: without it {without_it or 'equal too: not needed here'}")
    return finding


def _open(control: Control, device: str) -> Implementation:
    """A new implementation each time, so that no program compiled with the fence serves without it."""
    if control.backend in ADAPTERS:
        if device == "cpu":
            raise LookupError("the process is another, and out of reach")
        return ADAPTERS[control.backend].open(control.mode, device)
    from magma_conformance.implementations.core import implementation

    return implementation(open_mode(control.backend, control.mode, device))


def _mismatch(control: Control, device: str) -> Mismatch | str | None:
    caches = import_module("jax").clear_caches if control.backend == "jax" else lambda: None
    caches()
    try:
        candidate = _open(control, device)
        if reason := candidate.refuses(_task()):
            return reason
        return compare(candidate.run(_task()), open_implementation("numpy", "eager", "cpu").run(_task()))
    except Exception as error:  # also an answer: with the fence it fails the check
        return f"{type(error).__name__}: {error}"
    finally:
        caches()


def _task() -> Task:
    rng, shape = np.random.default_rng(3), (48, 40)
    return Task(
        key="fences",
        params={"w": inputs.make("normal", shape, "float32", rng)},
        gradients=[{"w": inputs.make(kind, shape, "float32", rng)} for kind in KINDS],
        learning_rates=[0.02] * len(KINDS),
        base=base_to_plain(AdamW(beta1=0.7, weight_decay=0.1)),
        rule=rule_to_plain(magma()),
        block_axes={"w": (0,)},
        seed=5,
    )
