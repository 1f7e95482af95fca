"""Loss and accuracy over feeds that are placed once."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from flowgrad.node import Node, Variable

from . import blocks
from .executors import Executor, Handle
from .feeds import Feeds
from .fuse import Layout
from .lower import flat_values
from .lower_train import compile_evaluation
from .tasks import Ref, TaskGraph, token
from .tree import bounds

# Samples in one task.
SHARD_SAMPLES = 5000


class Evaluation:
    """Loss and accuracy over checked feeds, placed once and computed for any state.

    Parameters
    ----------
    executor : Executor
    target : Node
        The loss.
    feeds : Feeds
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
        self.step = compile_evaluation(target, feeds, variables, layout)
        salt = uuid.uuid4().hex
        values: dict[str, Any] = {f"program-{token(salt)}": self.step.program}
        const = None
        if self.step.program.size("const"):
            const = flat_values(self.step.program, target.graph, "const", feeds.dtype)
            values[f"const-{token(salt)}"] = const
        self.shards = bounds(feeds.samples, -(-feeds.samples // SHARD_SAMPLES))
        nodes = target.graph.nodes
        for v in (n for n in (nodes[k] for k in self.step.fed) if isinstance(n, Variable)):
            for start, stop in self.shards:
                values[f"feed-{token(salt, v.index, start)}"] = feeds.arrays[v][start:stop]
        self.handles = self.executor.put(values)
        refs = [Ref(h.key) for h in self.handles]
        self.program = refs.pop(0)
        self.const = refs.pop(0) if const is not None else None
        n = len(self.shards)
        self.feeds = [[refs[k * n + s] for k in range(len(self.step.fed))] for s in range(n)]

    def submit(self, state: Ref | None) -> list[Handle]:
        """Start evaluating at a state; None: the program has no parameters."""
        graph = TaskGraph()
        keys = [
            graph.task("evaluate", blocks.evaluate_shard, self.program, state, self.const, feeds).key
            for feeds in self.feeds
        ]
        return self.executor.submit(graph.records, keys)

    def result(self, handles: list[Handle]) -> dict[str, float]:
        """Wait for the shards and add them up."""
        parts = self.executor.result(handles)
        self.executor.release(handles)
        scores = {"loss": math.fsum(p[0] for p in parts) / self.samples}
        if all(p[1] >= 0 for p in parts):
            scores["accuracy"] = sum(p[1] for p in parts) / self.samples
        return scores

    def close(self) -> None:
        """Let go of the feeds."""
        self.executor.release(self.handles)
        self.handles = []
