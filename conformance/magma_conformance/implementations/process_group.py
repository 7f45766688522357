"""A group of local processes that run a function together, with torch's collectives over loopback."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from magma_conformance.processes.worker import STUCK, Lost, Worker, end_all, look_after

_EVER = timedelta(weeks=1)
"""Timeout of the collectives: ranks wait as long as the others work, and the caller notices when one dies."""

_HOST = "127.0.0.1"


class Ranks:
    """Processes that wait for calls. They end with this process, or when one of them fails.

    Args:
        count: how many.
        function: what each rank calls; function, arguments and results must pickle.
    """

    def __init__(self, count: int, function: Callable[..., Any]) -> None:
        self._function, self._joined = function, False
        environment = {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
        self._workers = [Worker(environment) for _ in range(count)]

    @property
    def alive(self) -> bool:
        """Whether all processes run."""
        return all(worker.alive for worker in self._workers)

    def call(self, *arguments: Any) -> list[Any]:
        """The results of all ranks; RuntimeError with the traceback of the first failure."""
        if not self._joined:
            self._join()
        for worker in self._workers:
            worker.begin(self._function, *arguments)
        return self._results()

    def close(self) -> None:
        """End the processes."""
        end_all(self._workers)

    def _join(self) -> None:
        count = len(self._workers)
        try:
            port = self._workers[0].call(_open_store, count)
        except Exception:
            self.close()
            raise
        for rank, worker in enumerate(self._workers):
            worker.begin(_join, rank, count, port)
        self._results()
        self._joined = True

    def _results(self) -> list[Any]:
        results: dict[Worker, Any] = {}
        while waiting := [worker for worker in self._workers if worker not in results]:
            # take the first answer: the others may be waiting for a rank that has failed
            for worker in look_after(waiting):
                try:
                    results[worker] = worker.result()
                except Exception as error:
                    self.close()
                    said = "".join(getattr(error, "__notes__", [])) or error
                    raise RuntimeError(f"rank {self._workers.index(worker)}: {said}") from error
            left = [worker for worker in waiting if worker not in results]
            if left and all(worker.stuck for worker in left):  # a rank that waits for another is idle too
                self.close()
                raise Lost(STUCK)
        return [results[worker] for worker in self._workers]


_store: dist.Store


def _open_store(count: int) -> int:
    """Open the rendezvous store in the first rank."""
    global _store
    store = dist.TCPStore(_HOST, 0, count, is_master=True, timeout=_EVER, wait_for_workers=False)
    _store = store
    return store.port


def _join(rank: int, count: int, port: int) -> None:
    torch.set_num_threads(1)
    store = _store if rank == 0 else dist.TCPStore(_HOST, port, count, is_master=False, timeout=_EVER)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=_EVER)
