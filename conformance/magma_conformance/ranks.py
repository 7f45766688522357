"""A group of processes on this machine that run a function together, with torch's collectives over loopback."""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_TIMEOUT = 120.0  # seconds for one call


class Ranks:
    """Processes that wait for calls. They end with this process, or when one of them fails.

    Args:
        count: how many.
        function: what each calls; it can be pickled, and so can its arguments and results.
    """

    def __init__(self, count: int, function: Callable[..., Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="magma-ranks-")
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(count):
            mine, theirs = context.Pipe()
            arguments = rank, count, Path(self._folder.name) / "rendezvous", function, theirs
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def call(self, *arguments: Any) -> list[Any]:
        """The results of all ranks; RuntimeError with the traceback of the first that failed."""
        for pipe in self._pipes:
            pipe.send(arguments)
        results: dict[Any, Any] = {}
        deadline = time.monotonic() + _TIMEOUT
        while len(results) < len(self._pipes):
            # whichever answers: the others may be waiting for one that has failed
            waiting = [pipe for pipe in self._pipes if pipe not in results]
            ready: Any = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise RuntimeError(f"{len(waiting)} of {len(self._pipes)} ranks did not answer in {_TIMEOUT:.0f} s")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    failed, results[pipe] = pipe.recv()
                except EOFError:
                    failed, results[pipe] = True, "the process is gone"
                if failed:
                    self.close()
                    raise RuntimeError(f"rank {rank}: {results[pipe]}")
        return [results[pipe] for pipe in self._pipes]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._folder.cleanup()


def _serve(rank: int, count: int, rendezvous: Path, function: Callable[..., Any], pipe: Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(str(rendezvous), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=_TIMEOUT))
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((False, function(*arguments)))
        except Exception:  # the other ranks may be waiting in a collective: the caller ends them all
            pipe.send((True, traceback.format_exc()))
    dist.destroy_process_group()
