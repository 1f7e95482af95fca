"""Values by token that stay where they were computed: bounded by bytes, the least recently used goes first."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from typing import NamedTuple

from ..executors import Executor, Handle
from ..machine import ROOM, forked_lock, room_bytes

# Bytes that an engine keeps if it is not told otherwise.
DEFAULT_BYTES = 256 << 20


class CacheInfo(NamedTuple):
    """What a cache did and holds.

    Attributes
    ----------
    hits, misses : int
        Values that were needed and there; that had to be computed.
    bytes, limit : int
        Of all values held and feeds remembered; of those that may be.
    values : int
        Number of values held.
    room, room_limit : int
        Bytes in this process that are kept to be used again: memory of results that were let go of, buffers of kernels. All engines
        of a process share them.
    """

    hits: int
    misses: int
    bytes: int
    limit: int
    values: int
    room: int
    room_limit: int


class ValueCache:
    """Handles by the token of what they hold, whatever key that was computed under.

    Parameters
    ----------
    executor : Executor
        Holds the values.
    limit : int
        Bytes; 0 keeps nothing.

    Attributes
    ----------
    lock : RLock
        Whoever asks what is held, and relies on it, has it meanwhile: several threads may use one engine.
    """

    def __init__(self, executor: Executor, limit: int = DEFAULT_BYTES):
        self.executor = executor
        self.limit = limit
        self.lock = forked_lock(threading.RLock)
        self.held: OrderedDict[str, tuple[Handle, int, int | None]] = OrderedDict()
        self.hits = self.misses = self.bytes = 0
        self.salt = ""

    def lost(self) -> None:
        """Start anew after values were lost. Tokens get another salt: a cluster remembers the old ones as cancelled for a while."""
        self.clear()
        self.salt = uuid.uuid4().hex[:8]

    def check(self) -> None:
        """Start anew if something that is held is known to be lost."""
        if self.executor.remote and not all(self.executor.alive(handle) for handle, *_ in self.held.values()):
            self.lost()

    def has(self, token: str) -> bool:
        """Whether the value is there; counts as a use of it."""
        if token in self.held:
            self.held.move_to_end(token)
            self.hits += 1
            return True
        self.misses += 1
        return False

    def add(self, token: str, handle: Handle, nbytes: int, call: int | None = None) -> None:
        """Take over a handle; nothing is dropped before `trim`. `call`: whose feeds the value depends on, see `forget`."""
        if token in self.held:
            self.executor.release([handle])
            return
        self.held[token] = (handle, nbytes, call)
        self.bytes += nbytes

    def trim(self, other: int = 0) -> None:
        """Drop the least recently used values until the rest, with `other` bytes, fits the limit."""
        while self.held and self.bytes + other > self.limit:
            self._drop(next(iter(self.held)))

    def forget(self, call: int) -> None:
        """Drop what depends on the feeds of a call that will not come again: nobody will ask for it."""
        for token in [token for token, (*_, of) in self.held.items() if of == call]:
            self._drop(token)

    def _drop(self, token: str) -> None:
        handle, nbytes, _ = self.held.pop(token)
        self.bytes -= nbytes
        self.executor.release([handle])

    def clear(self) -> None:
        """Drop everything; the counts start again."""
        self.executor.release([handle for handle, *_ in self.held.values()])
        self.held.clear()
        self.hits = self.misses = self.bytes = 0

    def info(self, other: int = 0) -> CacheInfo:
        """Return the counts; `other` bytes are kept beside the values."""
        return CacheInfo(self.hits, self.misses, self.bytes + other, self.limit, len(self.held), room_bytes(), ROOM)
