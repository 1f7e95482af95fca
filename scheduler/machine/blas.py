"""BLAS threads: one per task where tasks run side by side or bits are promised, for another number gives other bits."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

# The BLAS that numba calls; it is loaded late, and must be there to be told.
COMPILED_BLAS = "scipy.linalg.cython_blas"


class _Limit:
    """How many threads there may be now, for all who ask at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = self.threads = 0
        self.before: dict[str, tuple[Any, int]] = {}  # by the library's file

    def enter(self, count: int) -> None:
        with self.lock:
            pools = _pools(COMPILED_BLAS in sys.modules)
            allowed = 1 if self.users else count
            self.users += 1
            if (allowed, len(pools)) == (self.threads, len(self.before)):
                return  # asking each library takes longer than a small task's arithmetic
            self.threads = allowed
            for pool in pools:
                there = pool.num_threads
                self.before.setdefault(pool.filepath, (pool, there))
                _set(pool, min(allowed, there))

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                for pool, threads in self.before.values():
                    _set(pool, threads)
                self.before, self.threads = {}, 0


_limit = _Limit()


def one_thread() -> AbstractContextManager[None]:
    """Limit every BLAS that is loaded in this process to one thread, for the length of a ``with`` block."""
    return blas_threads(1)


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Limit every BLAS that is loaded in this process to `count` threads, for the length of a ``with`` block.

    Blocks may overlap, in one thread or several: meanwhile there is one thread, and the last one to end restores what the first
    one found. Nobody gets more threads than there were.
    """
    _limit.enter(count)
    try:
        yield
    finally:
        _limit.leave()


@lru_cache(maxsize=2)
def _pools(compiled: bool) -> list[Any]:
    return [pool for pool in ThreadpoolController().lib_controllers if pool.user_api == "blas"]


def _set(pool: Any, threads: int) -> None:
    # `set_num_threads` does nothing in a thread that is not the first that asked; whoever asked first may be gone.
    getattr(pool, "_real_set_num_threads", pool.set_num_threads)(threads)
