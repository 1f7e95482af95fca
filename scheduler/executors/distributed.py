"""Any ``distributed.Client``; the only file that touches one."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import Context
from functools import cached_property
from typing import Any, cast
from weakref import WeakSet

import dask
import numpy as np
from distributed import Client, get_client, get_worker, rejoin, secede, span, utils
from distributed.core import error_message
from distributed.deploy import Cluster, SpecCluster
from distributed.protocol.pickle import loads
from distributed.scheduler import KilledWorker

from flowgrad.errors import ClusterError

from ..machine import after_fork, aligned, forked_lock, one_thread
from ..tasks import Data, Key, Record, Task, to_dask
from .base import Executor, Handle, Lost, TaskFailed, Worker
from .local import LocalExecutor
from .recovery import died_of
from .versions import Unread, check_versions, disagreement, unreadable

# Key of the scheduler's metadata that tells a cluster of our own.
MARK = "flowgrad-own-cluster"
# Larger values do not travel inside the graph, through the scheduler, but are placed on workers directly.
EMBED_BYTES = 1 << 20
# How long to wait for a worker when there is none: nannies bring theirs back within seconds.
WORKERS_SECONDS = 60.0
# A worker of a submission that has been gone for so long took something with it that nobody told of.
GONE_SECONDS = 5.0
POLL_SECONDS = 1.0
# How long a scheduler may be away whose connection broke, and how long one that is there may take to answer.
RECONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
# How old the list of workers may be when tasks are sent: who has joined since may have another flowgrad.
LIST_SECONDS = 1.0
# How long dask looks for a worker that was there just now, and tries to reach it, before values are placed elsewhere.
PLACE_SECONDS, CONNECT_SECONDS = 1.0, 3.0
# Clients that nobody gave us, by process and the scheduler's address, and who uses them. For each a thread looks now and then, and
# closes it: one that is collected while dask holds the lock of its event loops waits for that lock for ever, and what collections
# call comes before the set of users knows that one is gone, so that the last look of all could miss it.
_own_clients: dict[tuple[int, str], tuple[Client, WeakSet[DistributedExecutor]]] = {}
_owning = forked_lock(threading.RLock)


class DistributedExecutor(Executor):
    """Runs tasks through a client; keys are dask futures."""

    remote = True

    def __init__(self, client: Client):
        self.client, self._process, self._looked = client, os.getpid(), -math.inf
        self.name = _name(client)

    @property
    def address(self) -> str:
        """Of the scheduler.

        Raises
        ------
        ClusterError
            If no other process can reach it.
        """
        address = self.client.scheduler.address if self.client.scheduler else ""
        if not address or address.startswith("inproc"):
            raise ClusterError(
                f"an engine on {self.name} cannot be pickled: no other process can reach its scheduler; make the engine where it "
                f"is used, or start the cluster with processes=True"
            )
        return str(address)

    @cached_property
    def own(self) -> bool:  # type: ignore[override]
        """Whether flowgrad started this cluster, for itself alone."""
        return bool(self.client.get_metadata(MARK, default=False))

    @property
    def threads(self) -> int:  # type: ignore[override]
        """Threads of the smallest worker.

        More would wait for each other at every step while some other process has the processor: ten times slower rounds, where
        steps are short.
        """
        known = self._known() or {w.address: {"nthreads": w.threads} for w in self.workers()}
        return min(int(w["nthreads"]) for w in known.values())

    def workers(self, avoid: Collection[str] = ()) -> list[Worker]:
        """Return the workers that run, in the order of their names; wait for one if there is none.

        Raises
        ------
        ClusterError
            If the scheduler is gone, or no worker comes within a minute.
        """
        start, asked = time.monotonic(), None
        while True:
            workers = self._known()
            self._bring_back(len(workers))
            running = {a: w for a, w in workers.items() if w.get("status") == "running"} or workers
            kept = {a: w for a, w in running.items() if a not in avoid} or running
            if kept:
                ordered = sorted(kept.items(), key=lambda item: (str(item[1].get("name")), item[0]))
                return [
                    Worker(a, int(w["nthreads"]), int(w.get("memory_limit") or 0), str(w.get("name", "")))
                    for a, w in ordered
                ]
            if time.monotonic() - start > WORKERS_SECONDS:
                raise self._no_worker()
            # An adaptive cluster starts workers for tasks that wait, and for nothing else.
            asked = asked or self.client.submit(_nothing, key=f"worker-{uuid.uuid4().hex}", pure=False)
            time.sleep(0.1)

    def spare_first(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return workers in another order: those first that run nothing now, for others may train on the rest."""
        busy = answered(self.client, lambda: self.client.scheduler.processing(workers=None))
        return sorted(workers, key=lambda worker: bool(busy.get(worker.address)))

    def waiting(self) -> AbstractContextManager[None]:
        """Within a task, leave its thread to other tasks: those that are waited for may need it."""
        return own_thread_left()

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Return a block whose tasks are a span of dask's."""
        return span(name)

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise _of_another_process(self.name)
        _check_synchronous(self.client)
        if self.client.status in ("closing", "closed"):
            raise ClusterError(f"the client of {self.name} is closed: make an Engine with one that is not")

    def _check_ready(self) -> None:
        """Before tasks are sent, look who may run them, if the last look was some time ago."""
        self._check_open()
        if time.monotonic() - self._looked > LIST_SECONDS:
            self._known()

    def _known(self) -> dict[str, Any]:
        """Ask the scheduler for its workers, and those that are new for their flowgrad."""
        self._check_open()
        there = known_workers(self.client)
        check_versions(self.client, there)
        self._looked = time.monotonic()
        return there

    def _patiently(self, coroutine: Any) -> Any:
        """Run something on dask's event loop; give up when the scheduler does."""
        waiting = asyncio.run_coroutine_threadsafe(coroutine, self.client.loop.asyncio_loop)
        try:
            while True:
                try:
                    return waiting.result(POLL_SECONDS)
                except TimeoutError:
                    if waiting.done():
                        raise
                    self._known()
        finally:
            waiting.cancel()

    def _bring_back(self, count: int) -> None:
        """On a cluster of our own, start workers whose nanny gave up, as it does when they die while they start."""
        wanted = len(getattr(self.client.cluster, "worker_spec", ())) if self.own else 0
        if count < wanted:
            self.client.cluster.scale(wanted)

    def put(self, data: dict[Key, Any], worker: str | None = None) -> list[Handle]:
        """Scatter the values to one worker, or wherever there is room."""
        self._check_open()
        targets = None if worker is None else [worker]
        if not self._in_process():
            data = {key: aligned(value) for key, value in data.items()}
        try:
            # A worker that has just died is connected to again and again, for half a minute as dask comes.
            with dask.config.set({"distributed.comm.timeouts.connect": CONNECT_SECONDS}):
                futures = Context().run(self._patiently, self._scatter(data, targets))
        except (OSError, TimeoutError, ValueError, KeyError) as error:
            self._known()  # it may be the scheduler that is gone
            raise Lost(f"a worker went away while values were sent to it ({type(error).__name__})") from error
        except Exception as error:  # what could not be read there comes here as text
            if "No module named 'flowgrad" not in str(error):
                raise
            raise ClusterError(disagreement(f"worker {worker or 'of ' + self.name}", ("", str(error)))) from None
        return [Handle(key, futures[key]) for key in data]

    async def _scatter(self, data: dict[Key, Any], workers: list[str] | None) -> Any:
        """Scatter, in a context that knows of no task: within one, dask hands all values to its own worker, as they are."""
        return await self.client.scatter(data, workers=workers, hash=False, timeout=PLACE_SECONDS, asynchronous=True)

    def submit(
        self,
        records: dict[Key, Record],
        keys: Sequence[Key],
        workers: Sequence[str] = (),
        only: bool = False,
        blas_threads: int = 1,
        pinned: bool = False,
    ) -> list[Handle]:
        """Send the graph to the scheduler and return at once; the environment of workers sets their BLAS threads."""
        self._check_ready()
        large = {
            key: r.value
            for key, r in records.items()
            if isinstance(r, Data) and getattr(r.value, "nbytes", 0) > EMBED_BYTES
        }
        placed = {h.key: h for h in self.put(large)} if large else {}
        graph = to_dask({key: r for key, r in records.items() if key not in large}, run_task)
        wanted = [key for key in keys if key not in placed]
        with dask.annotate(**_where(records, workers, only, pinned)):
            futures = dict(zip(wanted, self.client.get(graph, wanted, sync=False)))
        # The scheduler keeps what its tasks wait for; the placed values may go when the tasks are done.
        needs = list(placed.values())
        return [placed[key] if key in placed else Handle(key, futures[key], needs) for key in keys]

    def run(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Compute keys, and bring their values here."""
        return cast(list[Any], self._read(super().run, *args, **kwargs))

    def _read(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do what is sent again where the scheduler could not read it."""
        try:
            return work(*args, **kwargs)
        except Unread:
            self._known()  # a round through dask's loop, so that it has forgotten those futures
        return work(*args, **kwargs)

    def result(self, handles: Sequence[Handle]) -> list[Any]:
        """Gather the values."""
        self._check_open()
        with self.waiting():
            return self._result(handles)

    def _result(self, handles: Sequence[Handle]) -> list[Any]:
        futures = [h.future for h in handles]
        try:
            with suppress(CancelledError):
                self._wait(futures, set())
                values = list(self._patiently(self.client.gather(futures, asynchronous=True)))
                return [_own_copy(value) for value in values] if self._in_process() else values
        except BaseException as error:
            # dask keeps an exception with its key; the frames of its traceback would keep the futures, and so the key, for ever.
            for future in futures:
                future.release()
            if told := unreadable(error, self.client):
                raise told from None
            if isinstance(error, KilledWorker):
                raise ClusterError(died_of(str(error.task))) from None
            raise
        # Not in an `except`: the first error's traceback would keep its futures, and so their keys would stay cancelled.
        self._known()  # it may be the scheduler that is gone
        for state in list(self.client.futures.values()):  # what one graph needs another one may have been for
            if told := unreadable(getattr(state, "exception", None), self.client):
                raise told
        raise Lost(
            "values that were kept on a worker are gone with it: call again, and if that goes on look at the workers' logs"
        )

    def _no_worker(self) -> ClusterError:
        return ClusterError(
            f"no worker has been there for {WORKERS_SECONDS:g} s on {self.name}: start workers, then call again "
            f"(a training goes on with resume=True); if they died of this call, their logs say why"
        )

    def _in_process(self) -> bool:
        """Whether workers live in this process, so that what is gathered is what they hold themselves."""
        return bool(self.client.scheduler) and self.client.scheduler.address.startswith("inproc")

    def alive(self, handle: Handle) -> bool:
        """Whether the future is not cancelled, lost or failed; a scattered value is never pending."""
        wanted = ("finished",) if handle.needs is None else ("pending", "finished")
        return handle.future is not None and handle.future.status in wanted

    def compute(self, collection: Any) -> Any:
        """Compute a dask collection on the workers."""
        return self.compute_all([collection])[0]

    def compute_all(self, collections: Sequence[Any]) -> list[Any]:
        """Compute dask collections on the workers."""
        return cast(list[Any], self._read(lambda: self.result([Handle("", f) for f in self.start(collections)])))

    def holds(self, future: Any) -> bool:
        """Whether a future is of this scheduler."""
        scheduler = future.client.scheduler
        return scheduler is not None and scheduler.address == self.client.scheduler.address

    def start(self, collections: Sequence[Any]) -> list[Any]:
        """Return futures of dask collections."""
        self._check_ready()
        return list(self.client.compute(list(collections)))

    def persist(self, collection: Any) -> Any:
        """Compute a dask collection where it is to stay."""
        self._check_ready()
        return self.client.persist(collection)

    def future(self, handle: Handle) -> Any:
        """Return the dask Future."""
        return handle.future

    def outcome(self, handles: Sequence[Handle], workers: Collection[str] = ()) -> list[Any]:
        """Gather values that may get lost."""
        with self.waiting():
            return self._outcome(handles, workers)

    def _outcome(self, handles: Sequence[Handle], workers: Collection[str]) -> list[Any]:
        futures = [h.future for h in handles]
        self._wait(futures, set(workers))
        for future in futures:
            if future.status == "error":
                error = future.exception()
                if isinstance(error, KilledWorker):
                    raise Lost(str(error), killed=str(error.task))
                if told := unreadable(error, self.client):
                    raise told
                raise TaskFailed(error, getattr(error, "flowgrad_worker", ""))
            if future.status != "finished":
                self._known()  # it may be the scheduler that is gone
                raise Lost(f"{future.key} was lost with its worker", task=str(future.key))
        try:
            return list(self._patiently(self.client.gather(futures, asynchronous=True)))
        except (CancelledError, OSError, TimeoutError) as error:
            raise Lost(f"values were lost on their way here ({type(error).__name__})") from None

    def _wait(self, futures: list[Any], workers: set[str]) -> None:
        """Wait until all are done, or the workers they need, or all of them, have been gone for a while."""
        since: float | None = None
        left = list(futures)
        while left:
            if left[-1].status != "pending":  # known here: asking takes a round through dask's loop
                left.pop()
                continue
            with suppress(CancelledError):  # their status tells
                try:
                    left[-1].exception(timeout=POLL_SECONDS)
                except TimeoutError as error:
                    _forget_frames(error)  # else values would stay with workers until garbage is collected here
                    since = self._gone(workers, since)
                    continue
            left.pop()

    def _gone(self, workers: set[str], since: float | None) -> float | None:
        """Return since when one of these workers has been gone, or all are; None if not; raise when it is for too long."""
        there = set(self._known())
        self._bring_back(len(there))
        gone = workers - there
        if there and not gone:
            return None
        if since is not None and time.monotonic() - since > (GONE_SECONDS if gone else WORKERS_SECONDS):
            raise Lost(f"worker {min(gone)} went away") if gone else self._no_worker()
        return since or time.monotonic()

    def release(self, handles: Iterable[Handle]) -> None:
        """Drop the futures."""
        for h in handles:
            h.future = h.needs = None


def answered(client: Client, question: Callable[[], Any]) -> Any:
    """Return what the scheduler answers to a question, which is an awaitable.

    dask tries for half a minute to reach one that is gone, and waits for ever for one that is stopped.

    Raises
    ------
    ClusterError
        If it is.
    """
    end = time.monotonic() + RECONNECT_SECONDS
    try:
        while client.status != "running":
            if time.monotonic() > end or client.status in ("closing", "closed"):
                raise ConnectionError
            time.sleep(0.1)
        return client.sync(question, callback_timeout=ANSWER_SECONDS)
    except (OSError, TimeoutError, RuntimeError, AttributeError) as error:
        raise ClusterError(
            f"the scheduler of {_name(client)} does not answer any more: start it again and make a new Engine"
        ) from error


def known_workers(client: Client) -> dict[str, Any]:
    """Return what a scheduler knows of its workers, by address."""
    return answered(client, lambda: client.scheduler.identity(n_workers=-1))["workers"]


def _name(client: Client) -> str:
    return f"distributed ({client.scheduler.address})" if client.scheduler else "distributed"


def run_task(func: Callable[..., Any], *args: Any) -> Any:
    """Run a task with one BLAS thread; an exception learns which worker raised it."""
    try:
        with one_thread():
            return func(*args)
    except Exception as error:
        with suppress(Exception):
            error.flowgrad_worker = get_worker().address  # type: ignore[attr-defined]
        if (told := sendable(error)) is error:
            raise
    raise told  # not in the `except`, whose error would go along


def sendable(error: Exception, who: str = "a task") -> Exception:
    """Return an exception that arrives as what it is: dask makes a bare `Exception` of what cannot be pickled with its causes."""
    if _arrives(error):
        return error
    error.__cause__ = error.__context__ = None
    if _arrives(error):
        return error
    told = ClusterError(f"{who} raised {type(error).__name__}, which cannot be pickled: {' '.join(str(error).split())}")
    told.__dict__ |= {name: value for name, value in vars(error).items() if name == "flowgrad_worker"}
    return told


def _arrives(error: Exception) -> bool:
    return type(error) is Exception or type(loads(error_message(error)["exception"].data)) is not Exception


def _where(records: dict[Key, Record], workers: Sequence[str], only: bool, pinned: bool) -> dict[str, Any]:
    """Return annotations: preferred workers by key; with `only`, any of `workers` and no other."""
    if not workers:
        return {}
    if only:
        return {"workers": list(workers), "allow_other_workers": False}
    wanted = {
        k: [workers[r.worker % len(workers)]]
        for k, r in records.items()
        if isinstance(r, Task) and r.worker is not None
    }
    return {"workers": lambda key: wanted.get(key, []), "allow_other_workers": not pinned} if wanted else {}


def _own_copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_own_copy(v) for v in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _nothing() -> None:
    pass


@contextmanager
def own_thread_left() -> Iterator[None]:
    """Within a task, leave its thread to other tasks meanwhile."""
    left = False
    with suppress(ValueError, KeyError, AttributeError):  # no task, one that left its thread before, or another thread
        secede()
        left = True
    try:
        yield
    finally:
        if left:
            rejoin()


def _check_synchronous(where: Client | Cluster) -> None:
    if where.asynchronous:
        what = "client" if isinstance(where, Client) else "cluster"
        raise ClusterError(
            f"the {what} is asynchronous: give an address or a synchronous client, or 'threads' to compute here, as in what "
            f"runs on a scheduler"
        )


def _of_another_process(name: str) -> ClusterError:
    return ClusterError(
        f"the client of {name} belongs to the process that this one was forked from: "
        f"make a new Engine here, of an address or of a new client"
    )


# Clusters whose event loop is in the process that this one was forked from.
_left_behind: WeakSet[Cluster] = WeakSet()


def _begin_anew() -> None:
    """Let a new client of a forked process work: the thread that prepares large messages for dask is not there."""
    _left_behind.update(getattr(SpecCluster, "_instances", ()))
    if hasattr(utils, "_offload_executor"):
        utils._offload_executor = ThreadPoolExecutor(1, thread_name_prefix="Dask-Offload")


after_fork(_begin_anew)


def _given(client: Client) -> DistributedExecutor:
    """Return an executor for a client that somebody else made."""
    _check_synchronous(client)
    executor = DistributedExecutor(client)
    with suppress(ValueError):  # dask writes the process into the name that it gives a client
        if uuid.UUID(client.id[-36:]).clock_seq != os.getpid() & 0x3FFF:
            raise _of_another_process(executor.name)
    return executor


def _here_in_a_task() -> LocalExecutor | None:
    """Return what runs within a task, if this is one, on as many threads as its worker has."""
    try:
        threads = int(get_worker().state.nthreads)
    except ValueError:
        return None
    return LocalExecutor(threads > 1, threads)


def connect(where: Any, timeout: float = 10.0) -> Executor | None:
    """Return an executor for a client, a cluster or an address; None: the current client if there is one, but not within a task.

    Raises
    ------
    ClusterError
        If nothing answers at the address within `timeout` seconds, or workers have another flowgrad or none.
    """
    if where is None and (here := _here_in_a_task()):
        return here
    executor = _connected(where, timeout)
    if executor is not None:
        executor._known()
    return executor


def _connected(where: Any, timeout: float) -> DistributedExecutor | None:
    if where is None:
        try:
            return _given(get_client())
        except ValueError:
            return None
    if isinstance(where, (Client, Cluster)):
        _check_synchronous(where)
    if isinstance(where, Cluster) and where in _left_behind:
        raise _of_another_process(f"{where.scheduler_address}")
    if isinstance(where, (Client, Cluster)) and getattr(where.status, "name", where.status) != "running":
        raise ClusterError(f"{where!r} is not running any more: make a new one, and a new Engine of it")
    if isinstance(where, Client):
        return _given(where)
    if not isinstance(where, (str, Cluster)):
        raise ClusterError(f"unknown engine {where!r}: give 'sync', 'threads', an address, a Client or a cluster")
    address = where if isinstance(where, str) else where.scheduler_address
    with suppress(ValueError):  # no task
        if get_worker().scheduler.address == where:
            return DistributedExecutor(get_client())
    try:
        return _own(address, lambda: reach(where, timeout))
    except Exception as error:  # whatever listens there may answer anything
        secured = "give a Client that has its certificates, " if address.startswith("tls") else ""
        raise ClusterError(
            f"no dask scheduler answers at {address} within {timeout:g} s: start one with `dask scheduler`, "
            f"{secured}check the address, or leave it out to run here ({type(error).__name__})"
        ) from error


def _own(address: str, make: Callable[[], Client]) -> DistributedExecutor:
    """Return an executor on a client that nobody gave us; one for each scheduler, until the last that uses it is gone."""
    mine = os.getpid(), address
    with _owning:
        known, users = _own_clients.get(mine, (None, WeakSet()))
        if known is None or known.status != "running":
            known, users = _own_clients[mine] = make(), WeakSet()
            threading.Thread(target=_close_when_unused, args=(mine, known, users), daemon=True).start()
        executor = DistributedExecutor(known)
        users.add(executor)
    return executor


def _close_when_unused(mine: tuple[int, str], client: Client, users: WeakSet[DistributedExecutor]) -> None:
    """Close an own client when nobody uses it: no executor, and no future or collection of somebody's."""
    while True:
        time.sleep(POLL_SECONDS)
        with _owning:
            # A loop that has ended does not hear that futures are let go of.
            if users or (client.futures and client.loop.asyncio_loop.is_running()):
                continue
            if _own_clients.get(mine, (None, users))[0] is client:
                del _own_clients[mine]
        break
    try:
        client.close()
    except Exception:  # its cluster may be gone
        client.status = "closed"  # else dask tries it again when the client is collected, wherever that is
    with suppress(Exception):
        client._loop_runner.stop()  # of one that closed itself


def reach(where: str | Cluster, timeout: float) -> Client:
    """Return a client of the scheduler at an address, or of a cluster.

    dask waits for ever for one that takes the connection and says nothing: it is stopped, or in the event loop that waits here.

    Raises
    ------
    Exception
        Whatever dask raises if none answers there; anything may.
    """
    came: Future[Client] = Future()

    def make() -> None:
        client, failure = None, None
        try:
            client = Client(where, timeout=timeout, set_as_default=False)
        except BaseException as error:
            failure = error
        if not came.set_running_or_notify_cancel():
            if client is not None:  # too late
                client.close()
        elif client is not None:
            came.set_result(client)
        else:
            came.set_exception(failure)

    threading.Thread(target=make, daemon=True).start()
    try:
        return came.result(timeout + POLL_SECONDS)  # dask's own patience ends first
    except Exception as error:
        came.cancel()
        failure = error
    # Its frames hold a half-made client. That must go now: collected while dask holds the lock of its event loops, it would wait
    # for that lock for ever.
    _forget_frames(failure)
    gc.collect()
    raise failure


def _forget_frames(error: BaseException) -> None:
    """Let go of all that the frames of an error hold, and hold one another by."""
    chain: list[BaseException | None] = [error]
    for link in chain:
        if link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
