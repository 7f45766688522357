"""The benchmark's arrays: draws them on a device, waits for them, and measures the bandwidth of a copy."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from magma_conformance.bench.workload import Workload
from magma_conformance.implementations.modes import Mode

PARAM_SCALE, GRADIENT_SCALE = 0.02, 1e-3
_COPIED = {True: 2**25, False: 2**28}  # float32 elements, by whether on the CPU: larger than any cache


def draw(mode: Mode, workload: Workload, scale: float, seed: int) -> list[Any]:
    """Normal values for every tensor, drawn on the device where the framework can."""
    normal = _normal(mode, scale, seed)
    return [normal(tensor.shape) for tensor in workload.tensors]


class Gradients:
    """Gradients that change at every step, as real ones do. Constant gradients would give constant scores.

    Args:
        mode: the device.
        workload: the parameters.
    """

    def __init__(self, mode: Mode, workload: Workload) -> None:
        self._mode, self._workload, self._seeds = mode, workload, itertools.count(1)
        self.arrays = draw(mode, workload, GRADIENT_SCALE, 0)

    def renew(self) -> None:
        """Draw new gradients. torch keeps its buffers, as a captured graph requires."""
        seed = next(self._seeds)
        if self._mode.backend == "torch":
            generator = _torch_generator(self._mode, seed)
            for array in self.arrays:
                array.normal_(0.0, GRADIENT_SCALE, generator=generator)
        else:
            normal = _normal(self._mode, GRADIENT_SCALE, seed)
            for i, tensor in enumerate(self._workload.tensors):
                self.arrays[i] = normal(tensor.shape)
        wait(self._mode, self.arrays)


def _normal(mode: Mode, scale: float, seed: int) -> Callable[[tuple[int, ...]], Any]:
    """Draws one array after another."""
    if mode.backend == "torch":
        torch, generator = mode.framework, _torch_generator(mode, seed)
        return lambda shape: torch.randn(shape, generator=generator, device=generator.device).mul_(scale)
    if mode.backend == "jax":
        numbers = itertools.count()
        # one program per shape; the key's bits determine the values, its device the place
        return lambda shape: _jax_normal()(mode.put(np.asarray([seed, next(numbers)], np.uint32)), scale, shape)
    rng = np.random.default_rng(seed)
    return lambda shape: mode.put(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))


def _torch_generator(mode: Mode, seed: int) -> Any:
    return mode.framework.Generator(mode.put(np.zeros(())).device).manual_seed(seed)


@cache
def _jax_normal() -> Any:
    jax = import_module("jax")

    def normal(words: Any, scale: float, shape: tuple[int, ...]) -> Any:
        return jax.random.normal(jax.random.wrap_key_data(words, impl="threefry2x32"), shape) * np.float32(scale)

    return jax.jit(normal, static_argnums=(1, 2))


def wait(mode: Mode, arrays: Any) -> None:
    """Block until the device has finished all queued work, including ``arrays``."""
    if mode.backend == "jax":
        import_module("jax").block_until_ready(arrays)
    elif mode.backend == "torch" and mode.hardware:
        mode.framework.cuda.synchronize()
    elif mode.backend == "tensorflow":
        mode.get(next(_leaves(arrays)))  # the device works in order: this copy comes after everything before it


def _leaves(arrays: Any) -> Iterator[Any]:
    for x in reversed(arrays):
        yield from _leaves(x) if isinstance(x, Sequence) else [x] if x is not None else []


def free() -> None:
    """Free the last contender's memory, including what torch caches."""
    import_module("gc").collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def copy_bandwidth(mode: Mode, repeats: int = 11, elements: int | None = None) -> float | None:
    """Bytes per second that a plain copy reads and writes: the median, or None for frameworks without a copy here.

    Args:
        mode: the device.
        repeats: timed copies.
        elements: float32 numbers to copy; None for more than any cache holds.
    """
    source = np.zeros(elements or _COPIED[not mode.hardware], np.float32)
    size = 2 * source.nbytes
    if mode.backend == "torch":
        copy = _torch_copy(mode, source)
    elif mode.backend == "jax":
        copy = _jax_copy(mode, source)
    else:
        return None
    seconds = []
    for _ in range(repeats + 2):
        started = perf_counter()
        wait(mode, copy())
        seconds.append(perf_counter() - started)
    return size / median(seconds[2:])


def _torch_copy(mode: Mode, source: np.ndarray) -> Callable[[], Any]:
    here, there = mode.put(source), mode.put(source)
    return lambda: there.copy_(here)


def _jax_copy(mode: Mode, source: np.ndarray) -> Callable[[], Any]:
    """Copies into existing memory: fresh pages cost more than the copy."""
    here, there = mode.put(source), mode.put(source.copy())
    program = import_module("jax").jit(lambda x, _: mode.framework.copy(x), donate_argnums=1, keep_unused=True)

    def copy() -> Any:
        nonlocal there
        there = program(here, there)
        return there

    return copy
