"""The modes: each framework, eager and compiled, on one device."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias, cast

import ml_dtypes
import numpy as np

from magma_core.namespace import Array, Namespace

Program: TypeAlias = Callable[..., Any]  # arrays to a tuple of arrays


@dataclass(frozen=True)
class Mode:
    """One way of running a program.

    Args:
        backend: the framework.
        name: eager or the name of the compiler's entry point.
        version: of the framework.
        hardware: the device's own name; empty for the CPU.
        framework: the module with the framework's own functions.
        xp: its namespace.
        put: NumPy array to the framework's array on the device.
        get: the reverse.
        compile: makes the program run in this mode.
        whole: programs take seconds to compile, so callers should merge many expressions into one.
    """

    backend: str
    name: str
    version: str
    hardware: str
    framework: Any
    xp: Namespace
    put: Callable[[np.ndarray], Array]
    get: Callable[[Array], np.ndarray] = np.asarray
    compile: Callable[[Program], Program] = lambda program: program
    whole: bool = False


def _numpy(device: str) -> Sequence[Mode]:
    from magma_numpy import namespace

    return [Mode("numpy", "eager", np.__version__, "", np, cast(Namespace, namespace), np.asarray)]


def _torch(device: str) -> Sequence[Mode]:
    from magma_torch import namespace

    torch = import_module("torch")
    try:
        hardware = torch.zeros((), device=device).device
        if hardware.type == "cuda":
            torch.cuda.set_device(hardware)  # graphs, synchronisation and counters use the current device
    except (RuntimeError, AssertionError) as error:  # not built for it, or no driver
        raise LookupError(f"torch has no device {device}: {error}") from error

    def get(x: Any) -> np.ndarray:
        x = x.detach().cpu()
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()

    def put(x: np.ndarray) -> Any:
        if x.dtype == ml_dtypes.bfloat16:
            return torch.asarray(x.view(np.int16).copy(), device=device).view(torch.bfloat16)
        return torch.asarray(x.copy(), device=device)

    def mode(name: str, compile: Callable[[Program], Program], whole: bool = False) -> Mode:
        return Mode(
            "torch",
            name,
            torch.__version__,
            "" if hardware.type == "cpu" else torch.get_device_module(hardware).get_device_name(hardware),
            torch,
            cast(Namespace, namespace),
            put,
            get,
            compile,
            whole,
        )

    return [
        mode("eager", lambda program: program),
        mode("compile", lambda program: torch.compile(program, fullgraph=True, dynamic=False), whole=True),
    ]


def _jax(device: str) -> Sequence[Mode]:
    from magma_jax import namespace

    jax = import_module("jax")
    kind, _, number = device.partition(":")
    try:
        target = jax.devices(kind)[int(number or 0)]
    except (RuntimeError, IndexError) as error:
        raise LookupError(f"jax has no device {device}: {error}") from error

    def scan(program: Program) -> Program:
        """The program as the body of a loop, which is compiled on its own. A single iteration would be unrolled."""

        def looped(*arrays: Array) -> Any:
            turns = [jax.numpy.stack([x, x]) for x in arrays]
            return [y[-1] for y in jax.lax.scan(lambda carry, x: (carry, program(*x)), 0, turns)[1]]

        return jax.jit(looped)

    def mode(name: str, compile: Callable[[Program], Program], whole: bool = False) -> Mode:
        return Mode(
            "jax",
            name,
            jax.__version__,
            "" if kind == "cpu" else target.device_kind,
            jax.numpy,
            cast(Namespace, namespace),
            lambda x: jax.device_put(x, target),
            compile=compile,
            whole=whole,
        )

    return [mode("eager", lambda program: program), mode("jit", jax.jit), mode("scan", scan, whole=True)]


def _tensorflow(device: str) -> Sequence[Mode]:
    with suppress(ImportError):
        import_module("torch")  # one process can hold both only if torch is imported first
    from magma_tensorflow import namespace

    tf = import_module("tensorflow")
    kind, _, number = device.partition(":")
    kind = "GPU" if kind == "cuda" else kind.upper()
    found = tf.config.list_physical_devices(kind)
    if int(number or 0) >= len(found):
        raise LookupError(f"tensorflow has no device {device}")
    target = f"/{kind}:{int(number or 0)}"
    details = tf.config.experimental.get_device_details(found[int(number or 0)])

    def here(function: Callable[..., Any]) -> Callable[..., Any]:
        def placed(*arguments: Any) -> Any:
            with tf.device(target):
                return function(*arguments)

        return placed

    def mode(name: str, compile: Callable[[Program], Program]) -> Mode:
        return Mode(
            "tensorflow",
            name,
            tf.__version__,
            details.get("device_name", ""),
            tf,
            cast(Namespace, namespace),
            here(tf.constant),
            lambda x: x.numpy(),
            lambda program: here(compile(program)),
        )

    def function(program: Program, *, xla: bool) -> Program:
        """Traced for the given arrays: calling a tf.function for every program would warn about retracing."""
        traced = tf.function(program, autograph=False, jit_compile=xla)
        return lambda *arrays: traced.get_concrete_function(*arrays)(*arrays)

    return [
        mode("eager", lambda program: program),
        mode("graph", partial(function, xla=False)),
        mode("xla", partial(function, xla=True)),
    ]


def _strict(device: str) -> Sequence[Mode]:
    from magma_conformance.implementations import strict

    framework = import_module("array_api_strict")
    return [Mode("strict", "eager", framework.__version__, "", framework, cast(Namespace, strict), framework.asarray)]


BACKENDS: dict[str, tuple[tuple[str, ...], Callable[[str], Sequence[Mode]]]] = {
    "numpy": (("eager",), _numpy),
    "strict": (("eager",), _strict),
    "torch": (("eager", "compile"), _torch),
    "jax": (("eager", "jit", "scan"), _jax),
    "tensorflow": (("eager", "graph", "xla"), _tensorflow),
}
"""Backends in the order of the table: the names of their modes, and a function that opens them on a device.

Opening raises ImportError if the framework is not installed, LookupError if it has no such device.
"""
