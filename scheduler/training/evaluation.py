"""Loss and accuracy over feeds that are placed once."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence

import numpy as np

from flowgrad.graph import Node, Variable
from flowgrad.typing import Array

from ..executors import Executor, Handle, Lost, Recovery, TaskFailed, Worker
from ..feeds import Chunked, Feeds, Placement
from ..programs import Layout, flat_values
from ..steps import compile_evaluation, evaluate_shard
from ..tasks import Ref, TaskGraph, bounds, token

# Samples in one task.
SHARD_SAMPLES = 5000
# Tasks on chunks under way at a time.
AHEAD = 16


class Evaluation:
    """Loss and accuracy over checked feeds, placed once and computed for any state.

    Parameters
    ----------
    target : Node
        The loss.
    variables : sequence of Variable
        The trained ones, whose values come from the state; the others keep the values that they have now.
    layout : dict, optional
        Where the variables lie in the state.
    """

    def __init__(
        self,
        executor: Executor,
        target: Node,
        feeds: Feeds,
        variables: Sequence[Variable] = (),
        layout: Layout | None = None,
    ):
        self.executor = executor
        self.samples = feeds.samples
        step = compile_evaluation(target, feeds, variables, layout)
        const = None
        if step.program.size("const"):
            const = flat_values(step.program, target.graph, "const", feeds.dtype)
        nodes = target.graph.nodes
        fed = [v for v in (nodes[k] for k in step.fed) if isinstance(v, Variable)]
        self.placement = Placement(executor, step.program, const, [feeds.arrays[v] for v in fed])
        self.shards = bounds(feeds.samples, -(-feeds.samples // SHARD_SAMPLES))
        self.recovery = Recovery()

    def scores(self, state: dict[str, Array] | None) -> dict[str, float]:
        """Return the mean loss, and the accuracy where there are classes, at a state; None: the program has no parameters.

        What is lost with a worker meanwhile is computed again.
        """
        while True:
            held: list[Handle] = []
            try:
                parts = self._attempt(state, held)
            except (Lost, TaskFailed) as error:
                failure = error.with_traceback(None)
            else:
                break
            finally:
                self.executor.release(held)
            pause = self.recovery.judge(failure, len(self.executor.workers(self.recovery.avoid)))
            self.placement.doubt()
            time.sleep(pause)
        self.recovery.progress()
        scores = {"loss": math.fsum(p[0] for p in parts) / self.samples}
        if all(p[1] >= 0 for p in parts):
            scores["accuracy"] = sum(p[1] for p in parts) / self.samples
        return scores

    def _attempt(self, state: dict[str, Array] | None, held: list[Handle]) -> list[tuple[float, int]]:
        workers = self.executor.workers(self.recovery.avoid)
        addresses, only = [w.address for w in workers], bool(self.recovery.avoid)
        salt = uuid.uuid4().hex
        at: Ref | None = None
        if state is not None:
            held += self.executor.put({f"state-{token(salt)}": state}, addresses[0])
            at = Ref(held[-1].key)
        refs = self.placement.place(self.placement.values, None)
        size = AHEAD * len(workers) if self.placement.chunked else len(self.shards)
        parts: list[tuple[float, int]] = []
        for first in range(0, len(self.shards), size):
            graph = TaskGraph()
            keys: list[str] = []
            sent: list[Handle] = []
            for k in range(first, min(first + size, len(self.shards))):
                feeds = self._feeds(graph, k, workers, salt, sent)
                where = k % len(workers)
                args = (refs["program"], at, refs.get("const"), feeds, self.shards[k][1] - self.shards[k][0])
                keys.append(graph.task("evaluate", evaluate_shard, *args, worker=where).key)
            handles = self.executor.submit(graph.records, keys, addresses, only)
            try:
                parts += self.executor.outcome(handles, set(addresses))
            finally:
                self.executor.release([*handles, *sent])
        return parts

    def _feeds(self, graph: TaskGraph, k: int, workers: list[Worker], salt: str, sent: list[Handle]) -> list[Ref]:
        """Return the references to shard `k` of every feed."""
        start, stop = self.shards[k]
        where = k % len(workers)
        feeds = []
        for i, feed in enumerate(self.placement.feeds):
            if isinstance(feed, Chunked):
                ref, handles = self.placement.rows(graph, i, np.arange(start, stop), where, workers, salt)
                sent += handles
            else:
                name, address = f"feed-{i}-{k}", workers[where].address
                ref = self.placement.place({name: feed[start:stop]}, address)[name]
            feeds.append(ref)
        return feeds

    def close(self) -> None:
        """Let go of the feeds."""
        self.placement.close()
