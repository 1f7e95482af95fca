"""What makes rounds fast with NumPy alone: arrays that are used again, threads over shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from flowgrad.optim import WORK
from flowgrad.program import Program
from flowgrad.typing import Array

from ..programs.counts import flops

# Entries that are updated at a time, so that the room for it does not grow with the parameters.
UPDATE_ENTRIES = 1 << 17
# Operations of a shard from which on a thread of its own pays: below, Python's lock is the limit.
THREAD_FLOPS = 2e7


class Scratch:
    """Arrays of one shard, kept from step to step."""

    def __init__(self) -> None:
        self.arrays: dict[Any, Array] = {}

    def array(self, name: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return the array of this name; a new one where the shape changes."""
        found = self.arrays.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            found = self.arrays[name] = np.empty(shape, dtype)
        return found

    def work(self, entries: int, dtype: Any) -> Array:
        """Return the room in which a rule updates so many entries."""
        return self.array("work", (WORK, min(entries, UPDATE_ENTRIES)), dtype)

    def take(self, name: Any, feed: Array, rows: Array) -> Array:
        """Return rows of a feed."""
        out = self.array(name, (len(rows), *feed.shape[1:]), feed.dtype)
        return np.take(feed, rows, axis=0, out=out, mode="clip")


def worth_threads(program: Program, steps: Sequence[Sequence[Array]], threads: int) -> bool:
    """Whether shards are worth a thread each."""
    shards, largest = max(map(len, steps)), max(map(len, steps[0]), default=0)
    fixed, each = flops(program)
    return min(threads, shards) > 1 and fixed + each * largest >= THREAD_FLOPS


@contextmanager
def shard_threads(
    program: Program, steps: Sequence[Sequence[Array]], threads: int
) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a ``map`` over shards: in several threads, where shards are worth it."""
    if not worth_threads(program, steps, threads):
        yield map
        return
    with ThreadPoolExecutor(min(threads, max(map(len, steps)))) as pool:
        yield pool.map
