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

_lock = threading.Lock()
_users: list[list[tuple[Any, int]]] = []


def one_thread() -> AbstractContextManager[None]:
    """Limit every BLAS that is loaded in this process to one thread, for the length of a ``with`` block."""
    return blas_threads(1)


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Limit every BLAS that is loaded in this process to `count` threads, for the length of a ``with`` block.

    Blocks may overlap, in one thread or several: meanwhile there is one thread, and the last one to end restores what the first
    one found. Nobody gets more threads than there were.
    """
    with _lock:
        pools = _pools(COMPILED_BLAS in sys.modules)
        allowed = 1 if _users else count
        _users.append([(pool, pool.num_threads) for pool in pools] if not _users else [])
        for pool in pools:
            _set(pool, min(allowed, pool.num_threads))
    try:
        yield
    finally:
        with _lock:
            before = _users.pop(0)
            if _users:
                _users[0] = [*before, *_users[0]]
            for pool, threads in [] if _users else before:
                _set(pool, threads)


@lru_cache(maxsize=2)
def _pools(compiled: bool) -> list[Any]:
    return [pool for pool in ThreadpoolController().lib_controllers if pool.user_api == "blas"]


def _set(pool: Any, threads: int) -> None:
    # `set_num_threads` does nothing in a thread that is not the first that asked; whoever asked first may be gone.
    getattr(pool, "_real_set_num_threads", pool.set_num_threads)(threads)
