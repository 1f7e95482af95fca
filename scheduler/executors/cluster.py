"""What makes small tasks wait less, and many of them take no memory; set only on clusters that flowgrad itself starts.

As it comes, dask collects messages for 2 to 10 ms before it sends them, and gives workers few tasks ahead. A training step is
a chain of small tasks, so each link would wait. Here messages go out at once.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

from dask.utils import key_split
from distributed import SchedulerPlugin, WorkerPlugin
from tornado.ioloop import PeriodicCallback

# Key of the scheduler's metadata that tells a cluster of our own.
MARK = "flowgrad-own-cluster"


# Seconds after which names of tasks are forgotten.
FORGET_SECONDS = 10


def forget_names(server: Any) -> None:
    """Let a scheduler or worker forget the names of tasks now and then: dask keeps the last 100,000, 35 MB, in each process."""
    callback = PeriodicCallback(key_split.cache_clear, FORGET_SECONDS * 1e3)
    server.periodic_callbacks["flowgrad-forget-names"] = callback
    callback.start()


class PromptScheduler(SchedulerPlugin):
    """Lets the scheduler send every message at once."""

    name = "flowgrad-prompt-scheduler"

    async def start(self, scheduler: Any) -> None:
        """Reach the connections that are there."""
        for comm in (*scheduler.stream_comms.values(), *scheduler.client_comms.values()):
            comm.interval = 0
        forget_names(scheduler)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Reach the connection of a new worker."""
        if worker in scheduler.stream_comms:
            scheduler.stream_comms[worker].interval = 0

    def add_client(self, scheduler: Any, client: str) -> None:
        """Reach the connection of a new client."""
        if client in scheduler.client_comms:
            scheduler.client_comms[client].interval = 0


class PromptWorker(WorkerPlugin):
    """Lets a worker send every message at once."""

    name = "flowgrad-prompt-worker"

    def setup(self, worker: Any) -> None:
        """Reach the connection to the scheduler."""
        worker.batched_stream.interval = 0
        forget_names(worker)


def settings() -> dict[str, Any]:
    """Return dask's settings for a cluster of our own; they are read when it starts."""
    found: dict[str, Any] = {
        "distributed.scheduler.worker-saturation": math.inf,
        # Of the last 1,000 messages on each connection dask keeps copies, graphs and all.
        "distributed.admin.low-level-log-length": 50,
        # It drops copies of values that several workers need; tasks here have their values where they run.
        "distributed.scheduler.active-memory-manager.start": False,
        # How often processes look at themselves, beside their work.
        "distributed.admin.tick.interval": "500ms",
        "distributed.admin.system-monitor.interval": "2s",
        "distributed.worker.profile.interval": "100ms",
        # Workers give freed memory back at once by default; then every temporary array of a step costs fresh pages.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 28,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 26,
    }
    if find_spec("uvloop") is not None:
        found["distributed.admin.event-loop"] = "uvloop"
    return found
