"""Samples dealt out to several threads of this process, each with one BLAS thread; threads of one walk, and how many are faster.

BLAS's own threads would do for matrix products. But they keep a processor busy for tens of milliseconds after their last one,
and whatever other threads do next takes twice as long.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar

from dask.system import CPU_COUNT

from flowgrad.typing import Array

from ..tasks import bounds
from .blas import one_thread
from .floats import without_subnormals
from .forks import after_fork

T = TypeVar("T")
A = TypeVar("A")
# What names of threads that help begin with. To wait for one another they are too few.
HELPERS = "flowgrad-helper"
# Seconds after which it is looked again whether one thread is faster than all.
LOOK = 3.0
# Seconds of steps that tell how fast so many threads are.
TRY = 0.02


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


def run_threads(work: Callable[[int], None], threads: int, sync: Array) -> None:
    """Run ``work(k)`` in `threads` threads, this one among them; an error in one of them, or a signal, ends them all."""
    errors: list[BaseException] = []

    @without_subnormals
    def guarded(k: int) -> None:
        try:
            work(k)
        except BaseException as error:
            sync[1] = 1
            errors.append(error)

    helpers = [threading.Thread(target=guarded, args=(k,), daemon=True) for k in range(1, threads)]
    try:
        for helper in helpers:
            helper.start()
        guarded(0)
        for helper in helpers:
            helper.join()
    except BaseException:  # a signal that came outside of the walk: nobody waits at a barrier for this thread
        sync[1] = 1
        raise
    if errors:
        raise errors[0]


class Pace:
    """Which number of threads is the faster one, all or one: looked at while steps run, again every few seconds.

    Threads that wait for each other at every step may be slower than one where something else has a processor; they change no bit.
    """

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.looked = -LOOK

    def segments(self, steps: int, threads: int) -> Iterator[tuple[int, int, int]]:
        """Give ranges of steps, each with a number of threads."""
        first, tries = 0, (1, threads, 1, threads)
        # So many steps that threads which start are not all that is seen; what a step takes is known from the round before.
        length = math.ceil(TRY / self.seconds.get(threads, math.inf)) or steps
        if threads > 1 and 2 * len(tries) * length <= steps and time.monotonic() - self.looked > LOOK:
            self.looked, self.seconds = time.monotonic(), {}
            for count in tries:
                yield first, first + length, count
                first += length
        known = {1, threads} <= self.seconds.keys()
        yield first, steps, min(threads, 1, key=self.seconds.__getitem__) if known else threads

    @contextmanager
    def measure(self, steps: int, threads: int) -> Iterator[None]:
        """Measure steps that run in the block; what is slower than before may have been disturbed."""
        began = time.perf_counter()
        yield
        seconds = (time.perf_counter() - began) / steps
        self.seconds[threads] = min(seconds, self.seconds.get(threads, math.inf))
