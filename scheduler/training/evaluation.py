"""Loss and metrics over feeds that are placed once."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from flowgrad.errors import warn
from flowgrad.graph import Node, Variable
from flowgrad.typing import Array

from ..engine import Engine
from ..executors import Handle, Recovery, Worker
from ..feeds import Chunked, Feeds, Placement
from ..programs import Layout, choose_by_size, pick
from ..steps import ACCURACY, Metric, Part, compile_evaluation, evaluate_shard, joined_scores, questions_of, scores_of
from ..tasks import Ref, TaskGraph, bounds, token

# Samples in one task.
SHARD_SAMPLES = 5000
# Tasks on chunks under way at a time.
AHEAD = 16


class Evaluation:
    """Loss and metrics over checked feeds, placed once and computed for any state.

    Parameters
    ----------
    target : Node
        The loss.
    variables : sequence of Variable
        The trained ones, whose values come from the state; the others keep the values that they have now.
    layout : dict, optional
        Where the variables lie in the state.
    metrics : tuple of Metric, optional
        None: accuracy where there are classes.
    """

    def __init__(
        self,
        engine: Engine,
        target: Node,
        feeds: Feeds,
        variables: Sequence[Variable] = (),
        layout: Layout | None = None,
        metrics: tuple[Metric, ...] | None = None,
    ):
        self.executor, self.target = engine.executor, target
        self.samples = feeds.samples
        questions = questions_of(target, feeds, metrics)
        self.kinds = tuple(q.kind for q in questions)
        self.metrics = ((ACCURACY,) if questions else ()) if metrics is None else metrics
        self.joined = [m for m in self.metrics if not m.adds_up]
        step = compile_evaluation(target, [n for q in questions for n in (q.output, q.truth)], feeds, variables, layout)
        step = replace(step, program=choose_by_size(step.program, "shard", engine.kernel))
        self.placement = Placement(self.executor, step.program, *step.reads(target.graph, feeds))
        self.shards = bounds(feeds.samples, -(-feeds.samples // SHARD_SAMPLES))
        self.recovery = Recovery()

    def scores(self, state: dict[str, Array] | None) -> dict[str, Any]:
        """Return the mean loss and the metrics at a state; None: the program has no parameters.

        What is lost with a worker meanwhile is computed again.
        """
        attempt = partial(self._attempt, state)
        parts, joined = self.recovery.persist(attempt, self.executor, lambda failure: self.placement.doubt())
        losses = [p.loss for p in parts]
        try:
            total = math.fsum(losses)
        except (OverflowError, ValueError):  # of inf and -inf, or beyond both
            total = sum(losses)
        if not math.isfinite(total):
            advice = "see engine.forward(node, feeds) for where it begins, and check the weights and the feeds"
            warn(f"the loss {self.target} is {total} on these feeds, and an accuracy says little: {advice}")
        return {"loss": total / self.samples} | scores_of(self.metrics, parts, joined)

    def _attempt(self, state: dict[str, Array] | None) -> tuple[list[Part], list[float]]:
        workers = self.executor.workers(self.recovery.avoid)
        addresses, only = [w.address for w in workers], bool(self.recovery.avoid)
        salt = uuid.uuid4().hex
        held = [] if state is None else self.executor.put({f"state-{token(salt)}": state}, addresses[0])
        at = Ref(held[0].key) if held else None
        parts: list[Part] = []
        predicted: list[Handle] = []
        try:
            refs = self.placement.place(self.placement.values, None)
            reads = refs["program"], at, refs.get("const")
            size = AHEAD * len(workers) if self.placement.chunked else len(self.shards)
            for first in range(0, len(self.shards), size):
                graph, before, keys, apart = TaskGraph(), len(held), [], []
                for k in range(first, min(first + size, len(self.shards))):
                    where, (start, stop) = k % len(workers), self.shards[k]
                    args = self._feeds(graph, k, workers, salt, held), stop - start, self.kinds, self.metrics
                    ref = graph.task("evaluate", evaluate_shard, *reads, *args, worker=where)
                    if self.joined:
                        apart.append(graph.task("predicted", pick, ref, 1, worker=where).key)
                        ref = graph.task("part", pick, ref, 0, worker=where)
                    keys.append(ref.key)
                handles = self.executor.submit(graph.records, [*keys, *apart], addresses, only)
                predicted += handles[len(keys) :]
                try:
                    parts += self.executor.outcome(handles[: len(keys)], addresses)
                finally:
                    self.executor.release(handles[: len(keys)])
                self.executor.release(held[before:])
                del held[before:]
            joined = self._join(predicted, addresses, only) if self.joined else []
        finally:
            self.executor.release([*held, *predicted])
        return parts, joined

    def _join(self, predicted: list[Handle], addresses: list[str], only: bool) -> list[float]:
        """Bring the predictions together on one worker, and return what functions of all of them give."""
        graph = TaskGraph()
        key = graph.task("metrics", joined_scores, self.joined, [Ref(h.key) for h in predicted], worker=0).key
        (scores,) = self.executor.run(graph.records, [key], addresses, only)
        return list(scores)

    def _feeds(self, graph: TaskGraph, k: int, workers: list[Worker], salt: str, held: list[Handle]) -> list[Ref]:
        """Return the references to shard `k` of every feed; what has to be kept for them is added to `held`."""
        start, stop = self.shards[k]
        where = k % len(workers)
        feeds = []
        for i, feed in enumerate(self.placement.feeds):
            if isinstance(feed, Chunked):
                ref, handles = self.placement.rows(graph, i, np.arange(start, stop), where, workers, salt)
                held += handles
            else:
                name, address = f"feed-{i}-{k}", workers[where].address
                ref = self.placement.place({name: feed[start:stop]}, address)[name]
            feeds.append(ref)
        return feeds

    def close(self) -> None:
        """Let go of the feeds."""
        self.placement.close()
