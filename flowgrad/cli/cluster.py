"""A dask cluster for the length of a command: one of its own on this machine, or one that runs already."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT = 10.0  # seconds


def default_workers() -> int:
    """Return how many worker processes to start: two, or one where there is only one CPU."""
    from dask.system import CPU_COUNT

    return min(2, int(CPU_COUNT))


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
    import dask
    from distributed import Client, LocalCluster

    from ..scheduler.executors.cluster import MARK, PromptScheduler, PromptWorker, settings

    # The scheduler serves its health page in any case; without an address it would take port 8787 for it.
    address = f"{host}:8787" if dashboard else f"{host}:0"
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
        When no scheduler answers, it has no workers, or a worker cannot import flowgrad.
    """
    from ..scheduler.executors.distributed import reach

    timeout = TIMEOUT if timeout is None else timeout
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = reach(address, timeout)
    except Exception as error:  # whatever answers there may be no scheduler at all
        raise ClusterError(
            f"no scheduler at {address}: {_brief(error)}: "
            "check the address, or leave out --scheduler to start workers on this machine"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise ClusterError(
                f"the scheduler at {address} has no workers after {timeout:g} s: start one with `dask worker {address}`"
            ) from error
        try:
            client.run(_import_flowgrad)
        except Exception as error:
            raise ClusterError(
                f"a worker of {address} cannot import flowgrad: {_brief(error)}: install it there"
            ) from error
        with _quiet_when_interrupted():
            yield client


def dashboard_address(client: Client) -> str | None:
    """Return the address of the cluster's dashboard, None when it has none."""
    services = client.scheduler_info().get("services", {})
    return str(client.dashboard_link) if "dashboard" in services else None


def _import_flowgrad() -> None:
    import flowgrad  # noqa: F401


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
    from multiprocessing import resource_tracker

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
