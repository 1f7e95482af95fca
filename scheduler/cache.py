"""Values by key that stay where they were computed: bounded by bytes, the least recently used goes first."""

from __future__ import annotations

import uuid
from collections import OrderedDict, defaultdict
from typing import NamedTuple

from .executors import Executor, Handle
from .known import KnownFeeds

# Bytes that an engine keeps if it is not told otherwise.
DEFAULT_BYTES = 256 << 20


class CacheInfo(NamedTuple):
    """What a cache did and holds.

    Attributes
    ----------
    hits, misses : int
        Values that were needed and there; that had to be computed.
    bytes, limit : int
        Of all values held; of those that may be held.
    values : int
        Number of values held.
    """

    hits: int
    misses: int
    bytes: int
    limit: int
    values: int


class Cache:
    """Handles by content-addressed key.

    Parameters
    ----------
    executor : Executor
        Holds the values.
    limit : int
        Bytes; 0 keeps nothing.
    """

    def __init__(self, executor: Executor, limit: int = DEFAULT_BYTES):
        self.executor = executor
        self.limit = limit
        self.held: OrderedDict[str, tuple[Handle, int, KnownFeeds | None]] = OrderedDict()
        self.of: defaultdict[KnownFeeds | None, set[str]] = defaultdict(set)  # keys by the feeds that they depend on
        self.hits = self.misses = self.bytes = 0
        self.salt = ""

    def lost(self) -> None:
        """Start anew after values were lost. Keys get another salt: a cluster remembers the old ones as cancelled for a while."""
        self.clear()
        self.salt = uuid.uuid4().hex[:8]

    def check(self) -> None:
        """Start anew if something that is held is known to be lost."""
        if self.executor.remote and not all(self.executor.alive(handle) for handle, *_ in self.held.values()):
            self.lost()

    def has(self, key: str) -> bool:
        """Whether the value is there; counts as a use of it."""
        if key in self.held:
            self.held.move_to_end(key)
            self.hits += 1
            return True
        self.misses += 1
        return False

    def add(self, handle: Handle, nbytes: int, known: KnownFeeds | None = None) -> None:
        """Take over a handle of a value that depends on these feeds, if on any. Nothing is dropped before `trim`."""
        if handle.key in self.held:
            self.executor.release([handle])
            return
        self.held[handle.key] = (handle, nbytes, known)
        self.of[known].add(handle.key)
        self.bytes += nbytes

    def trim(self) -> None:
        """Drop the least recently used values until the rest fits the limit."""
        while self.bytes > self.limit:
            key = next(iter(self.held))
            self.of[self.held[key][2]].discard(key)
            self._drop(key)

    def forget(self, known: KnownFeeds) -> None:
        """Drop what depends on feeds that will not come again: nobody will ask for it."""
        for key in self.of.pop(known, ()):
            self._drop(key)

    def _drop(self, key: str) -> None:
        handle, nbytes, _ = self.held.pop(key)
        self.bytes -= nbytes
        self.executor.release([handle])

    def clear(self) -> None:
        """Drop everything; the counts start again."""
        self.executor.release([handle for handle, *_ in self.held.values()])
        self.held.clear()
        self.of.clear()
        self.hits = self.misses = self.bytes = 0

    def info(self) -> CacheInfo:
        """Return the counts."""
        return CacheInfo(self.hits, self.misses, self.bytes, self.limit, len(self.held))
