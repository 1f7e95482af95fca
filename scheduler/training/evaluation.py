"""Passes over all samples, of feeds that are placed once: loss and metrics, and what `BatchNorm` normalises by."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from flowgrad.errors import warn
from flowgrad.graph import Node, Variable, ancestors
from flowgrad.optim import State
from flowgrad.typing import Array

from ..engine import Engine
from ..executors import Handle, Recovery, Worker
from ..feeds import Chunked, Feeds, Placement
from ..programs import Layout, choose_by_size, pick, prune
from ..steps import (
    ACCURACY,
    Metric,
    Moments,
    Step,
    compile_evaluation,
    evaluate_shard,
    joined_scores,
    moments_of_shard,
    questions_of,
    scores_of,
    total_moments,
)
from ..tasks import Ref, TaskGraph, bounds, reduce_tree, token
from .job import TrainingJob

# Samples in one task.
SHARD_SAMPLES = 5000
# Tasks on chunks under way at a time.
AHEAD = 16


# A function, and its first argument.
Join = tuple[Callable[..., Any], Any]
# Results of shards, and of what joined them.
Swept = tuple[list[Any], Any]


class Sweep:
    """A pass over checked feeds that are placed once, for any state, a task for each shard.

    Parameters
    ----------
    step : Step
        What reads the feeds.
    """

    def __init__(self, engine: Engine, target: Node, step: Step, feeds: Feeds):
        self.executor = engine.executor
        program = choose_by_size(step.program, "shard", engine.kernel)
        reads = replace(step, program=program).reads(target.graph, feeds)
        self.placement = Placement(self.executor, program, *reads)
        self.shards = bounds(feeds.samples, -(-feeds.samples // SHARD_SAMPLES))
        self.recovery = Recovery()

    def run(self, state: State | None, function: Callable[..., Any], *args: Any, join: Join | None = None) -> Swept:
        """Run ``function(program, state, const, feeds, samples, *args)`` on each shard; return the results, in their order.

        What is lost with a worker meanwhile is computed again.

        Parameters
        ----------
        state : dict, optional
            None: the program has no parameters.
        join : (function, first argument), optional
            Then each result is a pair: its second part stays on the workers, and what the function gives of all of these, on one of
            them, is returned beside the first parts.
        """
        attempt = partial(self._attempt, state, function, args, join)
        return self.recovery.persist(attempt, self.executor, lambda failure: self.placement.doubt())

    def _attempt(
        self, state: State | None, function: Callable[..., Any], args: Sequence[Any], join: Join | None
    ) -> Swept:
        workers = self.executor.workers(self.recovery.avoid)
        addresses, only = [w.address for w in workers], bool(self.recovery.avoid)
        salt = uuid.uuid4().hex
        held = [] if state is None else self.executor.put({f"state-{token(salt)}": state}, addresses[0])
        at = Ref(held[0].key) if held else None
        parts: list[Any] = []
        apart: list[Handle] = []
        joined = None
        try:
            refs = self.placement.place(self.placement.values, None)
            reads = refs["program"], at, refs.get("const")
            size = AHEAD * len(workers) if self.placement.chunked else len(self.shards)
            for first in range(0, len(self.shards), size):
                graph, before, keys, more = TaskGraph(), len(held), [], []
                for k in range(first, min(first + size, len(self.shards))):
                    where, (start, stop) = k % len(workers), self.shards[k]
                    feeds = self._feeds(graph, k, workers, salt, held)
                    ref = graph.task("evaluate", function, *reads, feeds, stop - start, *args, worker=where)
                    if join is not None:
                        more.append(graph.task("predicted", pick, ref, 1, worker=where).key)
                        ref = graph.task("part", pick, ref, 0, worker=where)
                    keys.append(ref.key)
                handles = self.executor.submit(graph.records, [*keys, *more], addresses, only)
                apart += handles[len(keys) :]
                try:
                    parts += self.executor.outcome(handles[: len(keys)], addresses)
                finally:
                    self.executor.release(handles[: len(keys)])
                self.executor.release(held[before:])
                del held[before:]
            if join is not None:
                joined = self._join(join, apart, addresses, only)
        finally:
            self.executor.release([*held, *apart])
        return parts, joined

    def _join(self, join: Join, apart: list[Handle], addresses: list[str], only: bool) -> Any:
        graph = TaskGraph()
        key = graph.task("metrics", *join, [Ref(h.key) for h in apart], worker=0).key
        (joined,) = self.executor.run(graph.records, [key], addresses, only)
        return joined

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
        self.target, self.samples = target, feeds.samples
        questions = questions_of(target, feeds, metrics)
        self.kinds = tuple(q.kind for q in questions)
        self.metrics = ((ACCURACY,) if questions else ()) if metrics is None else metrics
        self.joined = [m for m in self.metrics if not m.adds_up]
        step = compile_evaluation(target, [n for q in questions for n in (q.output, q.truth)], feeds, variables, layout)
        self.sweep = Sweep(engine, target, step, feeds)

    def scores(self, state: dict[str, Array] | None) -> dict[str, Any]:
        """Return the mean loss and the metrics at a state; None: the program has no parameters."""
        join = (joined_scores, self.joined) if self.joined else None
        parts, joined = self.sweep.run(state, evaluate_shard, self.kinds, self.metrics, join=join)
        losses = [p.loss for p in parts]
        try:
            total = math.fsum(losses)
        except (OverflowError, ValueError):  # of inf and -inf, or beyond both
            total = sum(losses)
        if not math.isfinite(total):
            advice = "see engine.forward(node, feeds) for where it begins, and check the weights and the feeds"
            warn(f"the loss {self.target} is {total} on these feeds, and an accuracy says little: {advice}")
        return {"loss": total / self.samples} | scores_of(self.metrics, parts, list(joined or []))

    def close(self) -> None:
        """Let go of the feeds."""
        self.sweep.close()


def measured_nodes(job: TrainingJob) -> list[Node]:
    """Return the nodes whose mean and variance a training measures, operands first."""
    trained = set(job.variables)
    return sorted(
        (n for n in ancestors(job.settings.optimizer.target) if {n.parents[k] for k in n.measured_slots} & trained),
        key=lambda n: n.index,
    )


class Statistics:
    """Measures what nodes normalise by, at any state, over feeds that are placed once.

    Parameters
    ----------
    nodes : sequence of Node
        See `measured_nodes`.
    """

    def __init__(self, engine: Engine, job: TrainingJob, nodes: Sequence[Node], feeds: Feeds):
        self.places: list[list[tuple[int, int]]] = []
        layout = job.step.program.layout
        for node in nodes:
            variables = [node.parents[k] for k in node.measured_slots]
            self.places.append([layout[v.index][1:] for v in variables])
        self.channels = tuple(mean[1] - mean[0] for mean, _ in self.places)
        target = job.settings.optimizer.target
        step = compile_evaluation(target, [n.parents[0] for n in nodes], feeds, job.variables, layout)
        # The kernel is that of the whole, of which nobody needs what lies behind the last node.
        program = choose_by_size(step.program, "shard", engine.kernel)
        outputs = {str(k): program.outputs[str(k)] for k, _ in enumerate(nodes, 1)}
        step = replace(step, program=prune(replace(program, outputs=outputs)))
        self.sweep = Sweep(engine, target, step, feeds)

    def begin(self, state: State) -> State:
        """Return the state to begin with: one node after the other, for each reads what those before it normalise."""
        for k in range(len(self.places)):
            state = self.measure(state, [k])
        return state

    def measure(self, state: State, which: Sequence[int] | None = None) -> State:
        """Return a state with the mean and the variance of all nodes, or of some, as they are at this one."""
        which = range(len(self.places)) if which is None else which
        shards, _ = self.sweep.run(state, moments_of_shard, {k + 1: self.channels[k] for k in which})
        moments: list[Moments] = reduce_tree(shards, total_moments)
        named: State = {name: state[name].copy() for name in ("w", "average") if name in state}
        for k, (size, mean, squares) in zip(which, moments):
            for (start, stop), values in zip(self.places[k], (mean, squares / size)):
                for array in named.values():  # the average of weights over updates goes by the same
                    array[start:stop] = values
        return state | named

    def close(self) -> None:
        """Let go of the feeds."""
        self.sweep.close()
