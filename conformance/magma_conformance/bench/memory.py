"""Peak memory of a step, in bytes, beyond its inputs and its state."""

import itertools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from magma_conformance.implementations.modes import Mode


def of_step(mode: Mode, run: Callable[[], Any]) -> Callable[[], int | None]:
    """Peak bytes of torch's allocator during a step; None for other frameworks."""

    def extra_bytes() -> int | None:
        if mode.backend != "torch":
            return None
        return _on_cuda(run) if mode.hardware else peak_memory(run)

    return extra_bytes


def _on_cuda(run: Callable[[], Any]) -> int:
    cuda = import_module("torch").cuda
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    run()
    cuda.synchronize()
    return cuda.max_memory_allocated() - before


def peak_memory(run: Callable[[], Any]) -> int:
    """Peak bytes on the CPU, counting the memory that the step itself allocates."""
    profiler = import_module("torch.profiler")
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def of_program(jitted: Any, *arguments: Any) -> int | None:
    """XLA's planned temporary memory of a JAX program."""
    analysis = jitted.lower(*arguments).compile().memory_analysis()  # already compiled: this hits the cache
    return None if analysis is None else int(analysis.temp_size_in_bytes)
