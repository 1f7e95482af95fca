"""Feeds that were seen before: told apart by their content, never by who they are, for an array may be changed in place.

Feeds are copied, for results go on reading them. Those of moderate size stay for later calls: comparing an array with the
copy, bit by bit, takes a fraction of the time of hashing it, and spares the checks too. Large feeds are hashed.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from flowgrad.graph import Graph, Variable
from flowgrad.typing import Array

from ..executors import Executor
from ..machine import empty_array
from ..tasks import is_future, token
from .check import Feeds, check_feeds
from .chunks import Chunked, is_elsewhere

# Feeds of a call up to this many bytes are kept for comparison; so many calls are remembered.
COPIED = 32 << 20
REMEMBERED = 4


@dataclass(frozen=True)
class RememberedFeeds(Feeds):
    """Checked feeds, what stands for the content of each, and the number of the call after which those tokens never come again.

    No number: tokens are hashes, and the same content will have them again.
    """

    tokens: dict[Variable, str]
    call: int | None = None

    def unchanged(self) -> bool:
        """Whether hashed feeds still have the content that their tokens stand for; arrays may be changed in place."""
        return all(token(array) == self.tokens[v] for v, array in self.arrays.items())


@dataclass(frozen=True)
class _Call:
    graph: Graph
    dtype: Any
    beginnings: dict[Any, bytes]
    raw: dict[Variable, Array]
    known: RememberedFeeds
    below: dict[Variable, int | None]


class FeedMemory:
    """Remembers the feeds of the last calls.

    Parameters
    ----------
    executor : Executor
        Computes feeds that are dask's. Where it is remote, tokens are hashes, the same for everybody; else they hold in this
        process only and cost less.
    limit : int
        Bytes of feeds that may be kept; 0: nothing computed from the feeds is kept, so each call has tokens of its own.
    forget : callable
        Is told the number of a call whose tokens will never come again.
    """

    def __init__(self, executor: Executor, limit: int, forget: Callable[[int], None]):
        self.executor, self.hashed = executor, executor.remote
        self.limit = limit
        self.forget = forget
        self.calls: list[_Call] = []
        self.salt = uuid.uuid4().hex[:8]
        self.count = itertools.count()

    def check(self, graph: Graph, feeds: Mapping[Any, Any] | None, dtype: Any) -> RememberedFeeds:
        """Return checked feeds with their tokens; raises what `check_feeds` raises."""
        if not self._copies(feeds):
            checked = owned(check_feeds(graph, feeds, dtype, executor=self.executor), feeds)
            name = token if self.limit or self.hashed else self._token
            return RememberedFeeds(**vars(checked), tokens={v: name(a) for v, a in checked.arrays.items()})
        beginnings = _beginnings(feeds)
        for call in reversed(self.calls):
            alike = call.graph is graph and call.dtype == dtype and call.beginnings == beginnings
            alike = alike and all(v.below == n for v, n in call.below.items())  # nodes may have been built since
            if alike and all(_equal(a, feeds[v]) for v, a in call.raw.items()):
                return call.known
        raw = {v: _copy(a) for v, a in feeds.items()}
        checked = check_feeds(graph, raw, dtype)
        arrays = checked.arrays
        if sum(a.nbytes for a in arrays.values()) > COPIED:
            return RememberedFeeds(**vars(checked), tokens={v: token(a) for v, a in arrays.items()})
        for a in arrays.values():
            a.flags.writeable = False
        tokens = {v: self._token(a) for v, a in arrays.items()}
        known = RememberedFeeds(**vars(checked), tokens=tokens, call=None if self.hashed else next(self.count))
        self.calls.append(_Call(graph, dtype, beginnings, raw, known, {v: v.below for v in arrays}))
        while len(self.calls) > REMEMBERED or self.nbytes > self.limit:
            gone = self.calls.pop(0).known.call
            if gone is not None:
                self.forget(gone)
        return known

    def _copies(self, feeds: Any) -> TypeGuard[Mapping[Any, Array]]:
        """Whether to copy the feeds and compare later ones with that."""
        if not (self.limit or self.hashed) or not isinstance(feeds, Mapping) or not feeds:
            return False
        plain = all(type(a) in (np.ndarray, np.memmap) and a.dtype.kind in "fiub" for a in feeds.values())
        return plain and sum(a.nbytes for a in feeds.values()) <= COPIED

    @property
    def nbytes(self) -> int:
        """Bytes of the feeds that are remembered, as they were given and as they are fed."""
        arrays = [a for call in self.calls for a in (*call.raw.values(), *call.known.arrays.values())]
        return sum(a.nbytes for a in {id(a): a for a in arrays}.values())

    def clear(self) -> None:
        """Forget all of them."""
        self.calls = []

    def _token(self, array: Array) -> str:
        return token(array) if self.hashed else f"{self.salt}-{next(self.count)}"


def _beginnings(feeds: Mapping[Any, Array]) -> dict[Any, bytes]:
    """Return the first bytes of each feed: where they differ, the rest need not be compared."""
    return {v: a[:1].tobytes()[:64] if a.ndim else b"" for v, a in feeds.items()}


def owned(checked: Feeds, feeds: Any) -> Feeds:
    """Return feeds that share no memory with the user's, who may change theirs while something still reads them.

    What is in chunks stays where it is, and so does an array that lies in a file: there may be no room for it.
    """
    arrays = dict(checked.arrays)
    for v, a in arrays.items():
        given = feeds[v] if v in feeds else feeds[v.name]
        if isinstance(given, (list, tuple)) or (is_elsewhere(given) and not is_future(given)):
            continue  # put together from what is theirs
        if isinstance(a, Chunked) or _in_file(a):
            continue
        if not isinstance(given, np.ndarray) or np.may_share_memory(a, given):
            arrays[v] = _copy(a)
    return replace(checked, arrays=arrays)


def _in_file(array: Array | None) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def _copy(array: Array) -> Array:
    copy = empty_array(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


def _equal(a: Array, b: Array) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not b.flags.c_contiguous or not b.flags.aligned or a.size == 0 or a.nbytes % 8:
        return a.size > 0 and a.tobytes() == b.tobytes()
    return bool((a.reshape(-1).view(np.uint64) == b.reshape(-1).view(np.uint64)).all())
