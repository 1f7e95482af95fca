"""What every step reads, on the workers that read it: program, constants, feeds.

Feeds lie in one of two ways. *Whole*: each worker that needs them has all of them, under keys of its own (copies under one key
would be thinned out by dask). *By the bucket*: where they are in chunks, or larger than the workers' memory, the rows of some
steps at a time are collected from all chunks, for each lane its own; the order of rows stays the one that the seed gives, over
all samples.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowgrad.typing import Array

from ..executors import Executor, Handle, Worker
from ..tasks import Key, Load, Ref, TaskGraph, token
from .check import rows_of
from .chunks import Chunked, join_rows

# Of a worker's memory: feeds that take more are not kept whole; buckets, of which a few are there at a time, take less.
WHOLE_SHARE = 0.4
BUCKET_SHARE = 0.08
BUCKET_BYTES = 256 << 20
# Chunks that have to be computed stay with the workers if all of them fit into this share of the memory of all.
RESIDENT_SHARE = 0.3
RESIDENT_BYTES = 1 << 30  # where memory is not limited
# Rows that the client sends: smaller ones travel with the tasks.
SENT_BYTES = 1 << 16


class Placement:
    """Program, constants and feeds on an executor's workers; placed again where they got lost.

    Parameters
    ----------
    program : Any
        Placed as it is.
    feeds : list of ndarray or Chunked
        In the order in which the program reads them.
    """

    def __init__(self, executor: Executor, program: Any, const: Array | None, feeds: list[Any]):
        self.executor, self.feeds = executor, feeds
        self.values: dict[str, Any] = {"program": program} | ({} if const is None else {"const": const})
        self.samples = max(map(len, feeds), default=1)
        self.row_bytes = sum(_row_bytes(f) for f in feeds)
        self.chunked = any(isinstance(f, Chunked) for f in feeds)
        self._placed: dict[str | None, dict[str, Handle]] = {}
        self._resident: dict[tuple[int, int], Handle] = {}

    def bucketed(self, workers: Sequence[Worker]) -> bool:
        """Return whether feeds are read by the bucket."""
        least = min((w.memory for w in workers if w.memory), default=0)
        return self.chunked or bool(least and self.samples * self.row_bytes > WHOLE_SHARE * least)

    def bucket_rows(self, workers: Sequence[Worker], lanes: int) -> int:
        """Return how many rows all lanes together may have in one bucket."""
        least = min((w.memory for w in workers if w.memory), default=0)
        per_lane = min(BUCKET_BYTES, BUCKET_SHARE * least) if least else BUCKET_BYTES
        return max(1, int(lanes * per_lane / max(1, self.row_bytes)))

    def lanes(self, workers: Sequence[Worker], shards: int, single: bool, alone: int) -> list[Lane]:
        """Return lanes for `shards` on the workers, and place what they need.

        A lane per worker, with shards by its threads; with `single`, one lane that has `alone` threads. What is on workers that
        have no lane is let go.
        """
        seats = [(0, 0, shards, alone)] if single else deal_out(workers, shards)
        whole = not self.bucketed(workers)
        feeds = {f"feed-{i}": feed for i, feed in enumerate(self.feeds)}
        used = {workers[k].address for k, *_ in seats}
        for address in set(self._placed) - used:
            self.executor.release(self._placed.pop(address).values())
        lanes = []
        for k, first, stop, threads in seats:
            refs = self.place(self.values | (feeds if whole else {}), workers[k].address)
            placed = [refs[name] for name in feeds] if whole else []
            lanes.append(Lane(k, refs["program"], refs.get("const"), placed, first, stop, threads))
        return lanes

    def on(self, address: str) -> bool:
        """Return whether something was placed on a worker, and not let go."""
        return address in self._placed

    def place(self, values: Mapping[str, Any], address: str | None) -> dict[str, Ref]:
        """Return references to values on a worker, or wherever there is room; those that are not there, or got lost, are placed."""
        there = self._placed.setdefault(address, {})
        missing = {name: v for name, v in values.items() if name not in there or not self.executor.alive(there[name])}
        if missing:
            salt = uuid.uuid4().hex
            keyed: dict[Key, Any] = {f"{name.split('-')[0]}-{token(salt, name)}": v for name, v in missing.items()}
            there |= zip(missing, self.executor.put(keyed, address))
        return {name: Ref(there[name].key) for name in values}

    # -- by the bucket ------------------------------------------------------------------------------------------

    def bucket(
        self,
        graph: TaskGraph,
        lanes: Sequence[Lane],
        workers: Sequence[Worker],
        steps: Sequence[Sequence[Array]],
        salt: str,
    ) -> tuple[list[Lane], list[list[Array]], list[Handle]]:
        """Add the tasks that collect the rows of some steps.

        Returns
        -------
        (list of Lane, list, list of Handle)
            Lanes that read these rows; the steps' rows in them; what has to be kept until the steps are done.
        """
        local: list[list[Array]] = [[] for _ in steps]
        batches, sent = [], []
        for lane in lanes:
            mine = [rows for shards in steps for rows in shards[lane.first : lane.stop]]
            rows = np.concatenate(mine) if mine else np.zeros(0, np.int64)
            feeds = []
            for i in range(len(self.feeds)):
                ref, handles = self.rows(graph, i, rows, lane.worker, workers, salt)
                feeds.append(ref)
                sent += handles
            batches.append(replace(lane, feeds=feeds))
            at = 0
            for k, shards in enumerate(steps):
                for part in shards[lane.first : lane.stop]:
                    local[k].append(np.arange(at, at + len(part)))
                    at += len(part)
        return batches, local, sent

    def rows(
        self, graph: TaskGraph, i: int, rows: Array, worker: int, workers: Sequence[Worker], salt: str
    ) -> tuple[Ref, list[Handle]]:
        """Add the tasks that collect `rows` of feed `i`, in their order, on a worker."""
        feed = self.feeds[i]
        if isinstance(feed, Chunked) and len(rows):
            return self._collect(graph, i, feed, rows, worker, workers, salt), []
        if isinstance(feed, Chunked):
            values = np.zeros((0, feed.form.dim), feed.form.dtype)
        else:
            values = np.ascontiguousarray(feed[rows])
        if values.nbytes <= SENT_BYTES:
            return graph.task("rows", given, values, salt, worker=worker), []
        handles = self.executor.put({f"rows-{token(salt, i, rows)}": values}, workers[worker].address)
        return Ref(handles[0].key), handles

    def _collect(
        self, graph: TaskGraph, i: int, feed: Chunked, rows: Array, worker: int, workers: Sequence[Worker], salt: str
    ) -> Ref:
        chunk_of = np.searchsorted(feed.starts, rows, side="right") - 1
        order = np.lexsort((rows, chunk_of))  # chunk by chunk, and each of them forwards
        cuts = np.searchsorted(chunk_of[order], np.arange(len(feed.chunks) + 1))
        parts, places = [], []
        for c in range(len(feed.chunks)):
            place = order[cuts[c] : cuts[c + 1]]
            if not len(place):
                continue
            at = self._home(feed, c, workers)
            start, stop = feed.starts[c : c + 2]
            args = (self._source(i, c, workers), feed.told, rows[place] - start, feed.form, start, stop - start, salt)
            parts.append(graph.task("take", rows_of, *args, worker=at))
            places.append(place)
        return graph.task("rows", join_rows, parts, places, worker=worker)

    def _home(self, feed: Chunked, c: int, workers: Sequence[Worker]) -> int:
        return c * len(workers) // len(feed.chunks)

    def _source(self, i: int, c: int, workers: Sequence[Worker]) -> Any:
        """Return what a task reads chunk `c` of feed `i` from: a key that is there, or what loads it."""
        chunk = self.feeds[i].chunks[c]
        if hasattr(chunk, "key") and hasattr(chunk, "client"):  # the user's own: it is there as long as the array is
            return Ref(chunk.key)
        if not isinstance(chunk, Load) or not self._fits(workers):
            return chunk
        if (i, c) not in self._resident:
            graph = TaskGraph()
            salt = uuid.uuid4().hex
            ref = graph.task("load", given, chunk, salt, worker=self._home(self.feeds[i], c, workers))
            addresses = [w.address for w in workers]
            self._resident[i, c] = self.executor.submit(graph.records, [ref.key], addresses)[0]
        return Ref(self._resident[i, c].key)

    def _fits(self, workers: Sequence[Worker]) -> bool:
        size = sum(f.nbytes for f in self.feeds if isinstance(f, Chunked))
        memory = sum(w.memory for w in workers)
        return size <= (RESIDENT_SHARE * memory if all(w.memory for w in workers) else RESIDENT_BYTES)

    def change(self, program: Any) -> None:
        """Have another program read the feeds."""
        self.values["program"] = program
        self.executor.release([there.pop("program") for there in self._placed.values() if "program" in there])

    def doubt(self) -> None:
        """Load chunks anew when they are wanted next: something got lost."""
        self.executor.release(self._resident.values())
        self._resident = {}

    def close(self) -> None:
        """Let go of everything."""
        for there in self._placed.values():
            self.executor.release(there.values())
        self._placed = {}
        self.doubt()


def deal_out(workers: Sequence[Worker], shards: int) -> list[tuple[int, int, int, int]]:
    """Return worker, first and last shard, and threads of each lane.

    Examples
    --------
    >>> deal_out([Worker("a", 1), Worker("b", 3)], 4)
    [(0, 0, 1, 1), (1, 1, 4, 3)]
    >>> deal_out([Worker("a", 1), Worker("b", 1), Worker("c", 1)], 2)
    [(0, 0, 1, 1), (1, 1, 2, 1)]
    """
    used = workers[:shards]
    every, spans, before, first = sum(w.threads for w in used), [], 0, 0
    for k, w in enumerate(used):
        before += w.threads
        stop = (2 * shards * before + every) // (2 * every)
        if stop > first:
            spans.append((k, first, stop, w.threads))
        first = max(first, stop)
    return spans


def given(value: Any, salt: str) -> Any:
    """Return a value that the client sends along, or loads a chunk; `salt` tells one asking from another."""
    return value() if callable(value) else value


def _row_bytes(feed: Any) -> int:
    if isinstance(feed, Chunked):
        return feed.form.dim * feed.form.dtype.itemsize
    return int(feed.nbytes // max(1, len(feed)))


@dataclass(frozen=True)
class Lane:
    """Where some of a mini-batch's shards are computed, and references to what their tasks read there.

    Attributes
    ----------
    worker : int
        Index into the workers of the submission.
    step, const, feeds
        The program, the constants and the feeds on that worker.
    first, stop : int
        Its shards: neighbours, so that all lanes' shards in order are the shards in order.
    threads : int
        Threads that its tasks may use.
    """

    worker: int
    step: Ref
    const: Ref | None
    feeds: list[Ref]
    first: int
    stop: int
    threads: int = 1


def lane_of(lanes: Sequence[Lane], shard: int) -> Lane:
    """Return the lane that computes a shard."""
    return next(lane for lane in lanes if lane.first <= shard < lane.stop)
