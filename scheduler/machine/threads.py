"""Samples dealt out to several threads of this process, each with one BLAS thread.

BLAS's own threads would do for matrix products. But they keep a processor busy for tens of milliseconds after their last one,
and whatever other threads do next takes twice as long.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from typing import Any, TypeVar

from dask.system import CPU_COUNT

from ..tasks import bounds
from .blas import one_thread
from .forks import after_fork

T = TypeVar("T")
A = TypeVar("A")
# What names of threads that help begin with. To wait for one another they are too few.
HELPERS = "flowgrad-helper"


@lru_cache(maxsize=1)
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CPU_COUNT, thread_name_prefix=HELPERS)


after_fork(_helpers.cache_clear)


def threads_can_start() -> bool:
    """Whether pools take work: in what runs when the interpreter ends (``atexit``) they refuse it."""
    return threading.main_thread().is_alive()


def spread(work: Callable[[int, int], T], samples: int, threads: int) -> list[T]:
    """Return ``work(start, stop)`` for neighbouring ranges of samples, one for each thread; the caller's thread takes part.

    Parameters
    ----------
    work : callable
        What it deals out itself, its thread does alone.

    Examples
    --------
    >>> spread(lambda start, stop: (start, stop), 5, 2)
    [(0, 3), (3, 5)]
    """
    return _together([partial(work, *part) for part in bounds(samples, min(threads, samples))])


def each_side_by_side(work: Callable[[A], T], items: Iterable[A], threads: int = CPU_COUNT) -> list[T]:
    """Return ``work(item)`` for each item, like ``map``; whichever thread is free takes the next one, the caller's too.

    So it does not matter that another thread takes 0.1 ms to wake.

    Examples
    --------
    >>> each_side_by_side(lambda k: k * k, range(4))
    [0, 1, 4, 9]
    """
    all_items = list(items)
    results: list[Any] = [None] * len(all_items)
    left = itertools.count()  # `next` is atomic

    def some() -> None:
        while (k := next(left)) < len(all_items):
            results[k] = work(all_items[k])

    _together([some] * max(1, min(threads, len(all_items))))
    return results


def _together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Return what calls return, the first of which the caller's thread makes; an error comes when all are done."""
    if not threads_can_start() or threading.current_thread().name.startswith(HELPERS):
        return [call() for call in calls]
    with one_thread():
        futures = [_helpers().submit(call) for call in calls[1:]]
        try:
            first = calls[0]()
        finally:
            wait(futures)  # they write into arrays of the caller's
    return [first, *(future.result() for future in futures)]
