"""The interface that all executors share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

from dask.system import CPU_COUNT

from flowgrad.errors import ClusterError, FlowgradError

from ..tasks import Key, Record


class Handle:
    """A key that an executor keeps for us; let go of with ``executor.release``.

    `needs` are values that were placed for what computes it, None where it was placed itself.
    """

    def __init__(self, key: Key, future: Any = None, needs: list[Handle] | None = None):
        self.key, self.future, self.needs = key, future, needs


class Worker(NamedTuple):
    """Somewhere tasks run: its address, its threads, its memory in bytes (0: not limited), its name, if it has any."""

    address: str
    threads: int
    memory: int = 0
    name: str = ""


class Lost(ClusterError):
    """Values are gone with the worker that held them; the same work can be asked for again, under other keys.

    Attributes
    ----------
    killed : str
        The task that workers died of, as far as dask can tell; else empty.
    task : str
        The task that was waited for when a worker died, whatever it died of; else empty.
    """

    def __init__(self, reason: str, killed: str = "", task: str = ""):
        super().__init__(reason)
        self.killed, self.task = killed, task or killed


class TaskFailed(FlowgradError):
    """A task raised an exception.

    Attributes
    ----------
    error : BaseException
        What it raised.
    worker : str
        Address of the worker on which it did; empty if not known.
    """

    def __init__(self, error: BaseException, worker: str):
        super().__init__(str(error))
        self.error = error
        self.worker = worker


class Executor(ABC):
    """Runs task records.

    Attributes
    ----------
    name : str
        For messages.
    threads : int
        Threads that a task may use when it runs alone.
    remote : bool
        Whether values are on other machines or processes, and so may be lost.
    own : bool
        Whether flowgrad started its workers, on this machine, for itself alone.
    """

    name: str
    threads: int
    remote: bool = False
    own: bool = False

    @property
    def address(self) -> Any:
        """What an engine in another process is given to run there."""
        return self

    def machine_threads(self, workers: Sequence[Worker]) -> int:
        """Return the threads that a long task may use when nothing else runs on these workers.

        On a cluster of our own, those of all of them.
        """
        each = [w.threads for w in workers]
        return max(min(each), min(sum(each), CPU_COUNT)) if self.own else min(each)

    def waiting(self) -> AbstractContextManager[None]:
        """Return a block in which the caller mostly waits for tasks."""
        return nullcontext()

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Return a block whose tasks a cluster's dashboard puts together under a name."""
        return nullcontext()

    @cached_property
    def measured(self) -> dict[Any, Any]:
        """What was measured on this executor, for the cost model."""
        return {}

    @abstractmethod
    def workers(self, avoid: Collection[str] = ()) -> list[Worker]:
        """Return the workers there are, in a fixed order, without those to avoid; wait for one if there is none."""

    def spare_first(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return workers in another order: those first that run nothing now, for others may train on the rest."""
        return list(workers)

    @abstractmethod
    def put(self, data: dict[Key, Any], worker: str | None = None) -> list[Handle]:
        """Place values under their keys on one worker, or wherever there is room."""

    @abstractmethod
    def submit(
        self,
        records: dict[Key, Record],
        keys: Sequence[Key],
        workers: Sequence[str] = (),
        only: bool = False,
        blas_threads: int = 1,
        pinned: bool = False,
    ) -> list[Handle]:
        """Start computing `keys`. References may name keys in `records` or keys that are held.

        Parameters
        ----------
        workers : sequence of str
            What the records' ``worker`` counts into. A task runs there while that worker lives.
        only : bool
            Whether tasks must run on one of `workers`, whichever it is.
        blas_threads : int
            Threads that each matrix product of tasks in this process may use.
        pinned : bool
            Whether tasks run on their own worker or not at all.
        """

    def submit_line(
        self, records: dict[Key, Record], keys: Sequence[Key], one_blas_thread: bool = False
    ) -> list[Handle]:
        """Like `submit`, for records in which hardly anything can run side by side; they stand in their order.

        BLAS may use all its threads in this process, or with `one_blas_thread` the tasks deal out their samples themselves.
        """
        return self.submit(records, keys)

    def run(
        self,
        records: dict[Key, Record],
        keys: Sequence[Key],
        workers: Sequence[str] = (),
        only: bool = False,
        blas_threads: int = 1,
        line: bool = False,
    ) -> list[Any]:
        """Compute `keys`, bring their values here and let go of them; see `submit`, with `line` `submit_line`.

        Raises
        ------
        Lost
            With `workers`, if one of them went away and the values do not come: dask now and then waits for one that has died
            for ever. Without, the exception of a task is raised as it was.
        """
        if line:
            submitted = self.submit_line(records, keys)
        else:
            submitted = self.submit(records, keys, workers, only, blas_threads)
        try:
            return self.outcome(submitted, workers) if workers else self.result(submitted)
        finally:
            self.release(submitted)

    def alive(self, handle: Handle) -> bool:
        """Whether the value is still there, as far as is known here."""
        return True

    @abstractmethod
    def compute(self, collection: Any) -> Any:
        """Compute a dask collection; raises `Lost` where a value that it needs is gone."""

    def compute_all(self, collections: Sequence[Any]) -> list[Any]:
        """Compute dask collections, side by side where that can be, and bring all of it here."""
        return [self.compute(collection) for collection in collections]

    def holds(self, future: Any) -> bool:
        """Whether the value of a future of dask's can be read by tasks."""
        return False

    def start(self, collections: Sequence[Any]) -> list[Any]:
        """Compute dask's delayed values where there is room, and return futures of them."""
        raise NotImplementedError(f"there are no futures on {self.name}")

    def persist(self, collection: Any) -> Any:
        """Return a dask collection of futures, where there are any."""
        return collection

    @abstractmethod
    def future(self, handle: Handle) -> Any:
        """Return something with a method ``result()``; on a cluster the dask Future."""

    @abstractmethod
    def result(self, handles: Sequence[Handle]) -> list[Any]:
        """Wait for values and bring them here; the exception of a task is raised as it was."""

    def outcome(self, handles: Sequence[Handle], workers: Collection[str] = ()) -> list[Any]:
        """Wait for values that may get lost.

        Parameters
        ----------
        workers : collection of str
            The only workers that may compute them; empty: any.

        Raises
        ------
        Lost
            If workers went away with values that are needed.
        TaskFailed
            If a task raised an exception.
        """
        return self.result(handles)

    @abstractmethod
    def release(self, handles: Iterable[Handle]) -> None:
        """Let go of keys."""
