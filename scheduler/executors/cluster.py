"""A dask cluster for the length of a command: one of our own on this machine, or one that runs already.

What makes small tasks wait less, and many of them take no memory, is set only on clusters that flowgrad itself starts. As it
comes, dask collects messages for 2 to 10 ms before it sends them, and gives workers few tasks ahead. A training step is a chain
of small tasks, so each link would wait. Here messages go out at once.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

import dask
from dask.utils import key_split
from distributed import Client, LocalCluster, SchedulerPlugin, WorkerPlugin
from tornado.ioloop import PeriodicCallback

from flowgrad.errors import ClusterError

from .distributed import MARK, known_workers, reach
from .versions import check_versions, known_to_agree

# Seconds that a scheduler that runs already may take to answer, and to have a worker.
TIMEOUT = 10.0
# Where the dashboard is served, if nobody else has that port.
DASHBOARD_PORT = 8787
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
    config: dict[str, Any] = {
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
        config["distributed.admin.event-loop"] = "uvloop"
    return config


@contextmanager
def local_cluster(
    workers: int, threads: int, dashboard: bool = True, host: str = "127.0.0.1", **more: Any
) -> Iterator[Client]:
    """Start worker processes on this machine and close them at the end; messages between them go out at once.

    Parameters
    ----------
    workers, threads : int
        Worker processes, and threads in each.
    dashboard : bool
        Whether to serve dask's dashboard: on port 8787, or another one when that is taken.
    host : str
        Address of this machine under which scheduler, workers and dashboard are reached; by default only from this machine.
    **more
        Passed on to ``distributed.LocalCluster``.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ClusterError
        When the workers do not start.
    """
    # The scheduler serves its health page in any case; without an address it would take port 8787 for it.
    address = f"{host}:{DASHBOARD_PORT}" if dashboard else f"{host}:0"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        try:
            with dask.config.set(settings()), _signals_held_back() as came:
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=threads,
                    host=host,
                    dashboard_address=address,
                    scheduler_kwargs={"dashboard": dashboard},
                    silence_logs=logging.CRITICAL,
                    **more,
                )
        except (OSError, RuntimeError) as error:
            raise ClusterError(f"cannot start {workers} workers on this machine: {_brief(error)}") from error
    with cluster:
        for number in came[:1]:
            signal.raise_signal(number)
        with dask.config.set(settings()):
            client = Client(cluster, set_as_default=False, direct_to_workers=True)
        with client, _quiet_when_interrupted():
            client.register_plugin(PromptScheduler())
            client.register_plugin(PromptWorker())
            client.set_metadata(MARK, True)
            known_to_agree(client)
            yield client


@contextmanager
def existing_cluster(address: str, timeout: float | None = None) -> Iterator[Client]:
    """Connect to a scheduler that runs already; at the end only the connection is closed.

    Parameters
    ----------
    address : str
        For example ``tcp://10.0.0.1:8786``.
    timeout : float, optional
        Seconds to wait for the scheduler, and for its first worker; 10 when not given.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ClusterError
        When no scheduler answers, it has no workers, or these have another flowgrad or none.
    """
    timeout = TIMEOUT if timeout is None else timeout
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = reach(address, timeout)
    except Exception as error:  # whatever answers there may be no scheduler at all
        raise ClusterError(
            f"no scheduler at {address}: {_brief(error)}: "
            "check the address, or leave it out to start workers on this machine"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise ClusterError(
                f"the scheduler at {address} has no workers after {timeout:g} s: start one with `dask worker {address}`"
            ) from error
        check_versions(client, known_workers(client))
        with _quiet_when_interrupted():
            yield client


def dashboard_address(client: Client) -> str | None:
    """Return the address of the cluster's dashboard, None when it has none."""
    services = client.scheduler_info().get("services", {})
    return str(client.dashboard_link) if "dashboard" in services else None


@contextmanager
def _signals_held_back() -> Iterator[list[int]]:
    """Keep Ctrl-C from workers for good, and from this process until the cluster is there to be closed.

    A terminal sends SIGINT to the whole process group, and workers that die of it look like a crash. So it is
    blocked while they start: threads and processes inherit that. Yields the list of signals that came meanwhile;
    a second one is not held back.
    """
    came: list[int] = []
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield came
        return

    def remember(signum: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(signum)

    resource_tracker.ensure_running()  # starting it later would lift the block
    handlers = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield came
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would tell of every future given up
        raise


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
