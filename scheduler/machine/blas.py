"""BLAS threads: one per task where tasks run side by side or bits are promised, for another number gives other bits."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .forks import after_fork, forked_lock

# The BLAS that compiled kernels call where NumPy's cannot be asked for; it is loaded late, and must be there to be told.
OTHER_BLAS = "scipy.linalg.cython_blas"
# What Fortran's matrix product may be called, but for the letter of its precision; the first one counts in 64 bits.
PRODUCTS = ("scipy_{}gemm_64_", "{}gemm_64_", "scipy_{}gemm_", "{}gemm_")


class _Limit:
    """How many threads there may be now, for all who ask at the same time."""

    def __init__(self) -> None:
        self.lock = forked_lock()
        self.users = self.threads = 0
        self.before: dict[str, tuple[Any, int]] = {}  # by the library's file

    def enter(self, count: int) -> None:
        with self.lock:
            pools = _pools(OTHER_BLAS in sys.modules)
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
            self.users = max(0, self.users - 1)  # a block that a fork cut short is forgotten
            if not self.users:
                self.restore()

    def restore(self) -> None:
        """Give all libraries the threads that they had before anybody asked."""
        for pool, threads in self.before.values():
            _set(pool, threads)
        self.users, self.before, self.threads = 0, {}, 0


_limit = _Limit()
after_fork(_limit.restore)  # whoever asked is not in the child


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


@cache
def product_address(dtype: np.dtype[Any]) -> int:
    """Return where the BLAS has its matrix product of a precision: NumPy's, so that there is one, or SciPy's.

    Whole numbers are given to it by address, eight bytes each; one that counts in four reads the lower half.
    """
    letter = "d" if dtype == np.float64 else "s"
    for pool in _pools(OTHER_BLAS in sys.modules):
        library = ctypes.CDLL(pool.filepath)  # it is loaded already
        for name in PRODUCTS:
            function = getattr(library, name.format(letter), None)
            if function is not None:
                return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
    capsule = importlib.import_module(OTHER_BLAS).__pyx_capi__[f"{letter}gemm"]
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(pointer_of(capsule, name_of(capsule)))


@lru_cache(maxsize=2)
def _pools(other: bool) -> list[Any]:
    return [pool for pool in ThreadpoolController().lib_controllers if pool.user_api == "blas"]


def _set(pool: Any, threads: int) -> None:
    # `set_num_threads` does nothing in a thread that is not the first that asked; whoever asked first may be gone.
    getattr(pool, "_real_set_num_threads", pool.set_num_threads)(threads)
