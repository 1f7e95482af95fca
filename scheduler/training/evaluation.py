"""Loss and accuracy over feeds that are placed once."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from flowgrad.errors import warn
from flowgrad.graph import Node, Variable
from flowgrad.ops import LogisticCrossEntropy
from flowgrad.typing import Array

from ..engine import Engine
from ..executors import Handle, Recovery, Worker
from ..feeds import Chunked, Feeds, Placement
from ..programs import Layout, choose_by_size
from ..steps import class_losses, compile_evaluation, evaluate_shard
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
        engine: Engine,
        target: Node,
        feeds: Feeds,
        variables: Sequence[Variable] = (),
        layout: Layout | None = None,
    ):
        self.executor, self.target = engine.executor, target
        self.samples = feeds.samples
        losses = class_losses(target, feeds)
        self.binary = tuple(isinstance(loss, LogisticCrossEntropy) for loss in losses)
        step = compile_evaluation(target, losses, feeds, variables, layout)
        step = replace(step, program=choose_by_size(step.program, "shard", engine.kernel))
        self.placement = Placement(self.executor, step.program, *step.reads(target.graph, feeds))
        self.shards = bounds(feeds.samples, -(-feeds.samples // SHARD_SAMPLES))
        self.recovery = Recovery()

    def scores(self, state: dict[str, Array] | None) -> dict[str, float]:
        """Return the mean loss, and the accuracy where there are classes, at a state; None: the program has no parameters.

        What is lost with a worker meanwhile is computed again.
        """
        attempt = partial(self._attempt, state)
        parts = self.recovery.persist(attempt, self.executor, lambda failure: self.placement.doubt())
        losses = [p[0] for p in parts]
        try:
            total = math.fsum(losses)
        except (OverflowError, ValueError):  # of inf and -inf, or beyond both
            total = sum(losses)
        scores = {"loss": total / self.samples}
        if not math.isfinite(total):
            advice = "see engine.forward(node, feeds) for where it begins, and check the weights and the feeds"
            warn(f"the loss {self.target} is {total} on these feeds, and an accuracy says little: {advice}")
        if self.binary:
            scores["accuracy"] = sum(p[1] for p in parts) / self.samples
        return scores

    def _attempt(self, state: dict[str, Array] | None) -> list[tuple[float, float]]:
        workers = self.executor.workers(self.recovery.avoid)
        addresses, only = [w.address for w in workers], bool(self.recovery.avoid)
        salt = uuid.uuid4().hex
        held = [] if state is None else self.executor.put({f"state-{token(salt)}": state}, addresses[0])
        at = Ref(held[0].key) if held else None
        parts: list[tuple[float, float]] = []
        try:
            refs = self.placement.place(self.placement.values, None)
            size = AHEAD * len(workers) if self.placement.chunked else len(self.shards)
            for first in range(0, len(self.shards), size):
                graph, keys, before = TaskGraph(), [], len(held)
                for k in range(first, min(first + size, len(self.shards))):
                    feeds = self._feeds(graph, k, workers, salt, held)
                    args = (
                        refs["program"],
                        at,
                        refs.get("const"),
                        feeds,
                        self.shards[k][1] - self.shards[k][0],
                        self.binary,
                    )
                    keys.append(graph.task("evaluate", evaluate_shard, *args, worker=k % len(workers)).key)
                parts += self.executor.run(graph.records, keys, addresses, only)
                self.executor.release(held[before:])
                del held[before:]
        finally:
            self.executor.release(held)
        return parts

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
