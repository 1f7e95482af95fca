"""Any ``distributed.Client``; the only file that touches one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from distributed import Client, get_client
from distributed.deploy import Cluster

from flowgrad.errors import ClusterError

from ..blocks import pick
from ..daskgraph import to_dask
from ..tasks import Data, Record, Ref, Task
from .base import Executor, Handle, Worker

# Larger values do not travel inside the graph, through the scheduler, but are placed on workers directly.
EMBED_BYTES = 1 << 20


class DistributedExecutor(Executor):
    """Runs tasks through a client; keys are dask futures.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Client):
        self.client = client
        self.name = f"distributed ({client.scheduler.address})" if client.scheduler else "distributed"

    @property
    def threads(self) -> int:  # type: ignore[override]
        """Threads of the smallest worker."""
        return min(self.client.nthreads().values(), default=1)

    def workers(self) -> list[Worker]:
        """Return the workers by address."""
        return [Worker(address, threads) for address, threads in sorted(self.client.nthreads().items())]

    def put(self, data: dict[str, Any], replicate: bool = False) -> list[Handle]:
        """Scatter the values to workers; with `replicate`, to all of them."""
        futures = self.client.scatter(data, broadcast=replicate, hash=False)
        return [Handle(key, futures[key]) for key in data]

    def submit(self, records: dict[str, Record], keys: Sequence[str], blas_threads: int = 1) -> list[Handle]:
        """Send the graph to the scheduler and return at once; the environment of workers sets their BLAS threads."""
        large = {
            key: r.value
            for key, r in records.items()
            if isinstance(r, Data) and getattr(r.value, "nbytes", 0) > EMBED_BYTES
        }
        placed = self.put(large) if large else []
        graph = to_dask({key: r for key, r in records.items() if key not in large})
        futures = self.client.get(graph, list(keys), sync=False)
        # The scheduler keeps what its tasks wait for; the placed values may go when the tasks are done.
        return [Handle(key, (future, placed)) for key, future in zip(keys, futures)]

    def result(self, handles: Sequence[Handle]) -> list[Any]:
        """Gather the values."""
        return list(self.client.gather([_future(h) for h in handles]))

    def release(self, handles: Iterable[Handle]) -> None:
        """Drop the futures."""
        for h in handles:
            h.future = None

    def task_seconds(self) -> float:
        """Time a chain of tasks."""
        n, name = 20, uuid.uuid4().hex
        chain: dict[str, Record] = {f"hop-{name}-0": Data([0])}
        for k in range(1, n + 1):
            chain[f"hop-{name}-{k}"] = Task(pick, ([Ref(f"hop-{name}-{k - 1}")], 0))
        start = time.perf_counter()
        self.result(self.submit(chain, [f"hop-{name}-{n}"]))
        return (time.perf_counter() - start) / n


def _future(handle: Handle) -> Any:
    return handle.future[0] if isinstance(handle.future, tuple) else handle.future


def connect(where: Any, timeout: float = 10.0) -> DistributedExecutor | None:
    """Return an executor for a client, a cluster or an address; None: the current client if there is one.

    Raises
    ------
    ClusterError
        If nothing answers at the address within `timeout` seconds.
    """
    if where is None:
        try:
            return DistributedExecutor(get_client())
        except ValueError:
            return None
    if isinstance(where, Client):
        return DistributedExecutor(where)
    if isinstance(where, Cluster):
        return DistributedExecutor(Client(where, set_as_default=False))
    if not isinstance(where, str):
        raise ClusterError(f"unknown engine {where!r}: give 'sync', 'threads', an address, a Client or a cluster")
    try:
        return DistributedExecutor(Client(where, timeout=timeout, set_as_default=False))
    except Exception as error:  # whatever listens there may answer anything
        raise ClusterError(
            f"no dask scheduler answers at {where} within {timeout:g} s: start one with `dask scheduler`, "
            f"check the address, or leave it out to run here ({type(error).__name__})"
        ) from error
