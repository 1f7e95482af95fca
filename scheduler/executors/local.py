"""dask's own schedulers in this process: synchronous, or threads."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from typing import Any

import dask
import dask.local
import dask.threaded
from dask.system import CPU_COUNT

from flowgrad.draw import Shown

from ..machine import after_fork, forked_lock, one_thread, threads_can_start
from ..machine import blas_threads as limited_to
from ..tasks import Data, Key, Record, Ref, references, to_dask
from .base import Executor, Handle, Worker


def _forget_pools() -> None:
    """Let dask make new pools in the child of a fork: it would give the next graph to threads that are not there."""
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()
    dask.threaded.pools_lock = threading.Lock()


after_fork(_forget_pools)


class Done(Shown, Future[Any]):
    """A future that is done, and pickled by its value."""

    def __init__(self, value: Any):
        super().__init__()
        self.set_result(value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.result(),)

    def _shows(self) -> dict[str, Any]:
        return {"result": self.result()}


class LocalExecutor(Executor):
    """Runs tasks at once, in this process: with dask's threaded scheduler, or without `threads` one task after the other.

    Of threads there are as many as processors, or `most`.
    """

    def __init__(self, threads: bool, most: int = CPU_COUNT):
        self.name = "threads" if threads else "sync"
        self.threads = min(most, CPU_COUNT) if threads else 1
        self._pooled = threads
        self._held: dict[Key, Any] = {}
        self._uses: dict[Key, int] = {}
        self._lock = forked_lock()

    @property
    def _get(self) -> Any:
        if not (self._pooled and threads_can_start()) or _in_pool(dask.config.get("pool", None)):
            return dask.local.get_sync
        return dask.threaded.get if self.threads == CPU_COUNT else partial(dask.threaded.get, num_workers=self.threads)

    @property
    def address(self) -> Any:
        """Its name; one of somebody's own goes itself."""
        return self.name if type(self) is LocalExecutor else self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is about this process and this machine."""
        stays = ("_held", "_uses", "_lock", "threads", "measured")
        return {name: value for name, value in vars(self).items() if name not in stays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LocalExecutor.__init__(self, state["_pooled"])
        vars(self).update(state)

    def workers(self, avoid: Collection[str] = ()) -> list[Worker]:
        """Return this process."""
        return [Worker("here", self.threads)]

    def put(self, data: dict[Key, Any], worker: str | None = None) -> list[Handle]:
        """Hold the values."""
        return [self._hold(key, value) for key, value in data.items()]

    def submit(
        self,
        records: dict[Key, Record],
        keys: Sequence[Key],
        workers: Sequence[str] = (),
        only: bool = False,
        blas_threads: int = 1,
        pinned: bool = False,
    ) -> list[Handle]:
        """Compute `keys` now."""
        known = {key: Data(self._held[key]) for key in references(records.values()) if key in self._held}
        graph = to_dask({**records, **known})
        with limited_to(blas_threads):
            values = self._get(graph, list(keys))
        return [self._hold(key, value) for key, value in zip(keys, values)]

    def submit_line(
        self, records: dict[Key, Record], keys: Sequence[Key], one_blas_thread: bool = False
    ) -> list[Handle]:
        """Compute one record after the other, without dask."""
        values: dict[Key, Any] = {}
        with one_thread() if one_blas_thread else nullcontext():
            for key, r in records.items():
                values[key] = (
                    r.value if isinstance(r, Data) else r.func(*[_resolve(a, values, self._held) for a in r.args])
                )
        return [self._hold(key, values[key]) for key in keys]

    def compute(self, collection: Any) -> Any:
        """Compute a dask collection with the same scheduler."""
        with one_thread():
            return collection.compute(scheduler=self._get)

    def compute_all(self, collections: Sequence[Any]) -> list[Any]:
        """Compute dask collections with the same scheduler."""
        return list(dask.compute(*collections, scheduler=self._get))

    def future(self, handle: Handle) -> Any:
        """Return the value as a future that is done."""
        return Done(handle.future)

    def result(self, handles: Sequence[Handle]) -> list[Any]:
        """Return the values."""
        return [h.future for h in handles]

    def release(self, handles: Iterable[Handle]) -> None:
        """Forget values that nobody holds any more."""
        with self._lock:
            for h in handles:
                h.future = None
                self._uses[h.key] -= 1
                if not self._uses[h.key]:
                    del self._uses[h.key], self._held[h.key]

    def _hold(self, key: Key, value: Any) -> Handle:
        with self._lock:
            self._held[key] = value
            self._uses[key] = self._uses.get(key, 0) + 1
        return Handle(key, value)


def _in_pool(pool: Any) -> bool:
    """Whether this may be a thread of somebody's pool: all of its threads might wait there for tasks that none of them takes."""
    here = threading.current_thread()
    if pool is None or here is threading.main_thread():
        return False
    # A pool of concurrent.futures notes its threads after they have begun.
    if prefix := getattr(pool, "_thread_name_prefix", ""):
        return here.name.startswith(prefix)
    return here in getattr(pool, "_pool", (here,))  # of multiprocessing; of another one's threads nothing is known


def _resolve(arg: Any, values: dict[Key, Any], held: dict[Key, Any]) -> Any:
    """Return what an argument stands for. A function of the module: one within another would keep all values until a collection."""
    if isinstance(arg, Ref):
        return values[arg.key] if arg.key in values else held[arg.key]
    return [_resolve(a, values, held) for a in arg] if isinstance(arg, list) else arg
