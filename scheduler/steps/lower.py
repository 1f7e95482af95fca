"""Lowering optimizer steps: per step shard gradients -> reduction tree by shard index -> update. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from flowgrad.typing import Array

from ..feeds import Lane, lane_of
from ..programs import add_gradients, collect, lower_share, pick, take_rows, weights_of
from ..tasks import Ref, TaskGraph, reduce_tree
from .draws import Span, keys_of
from .lanes import LaneBatch, LaneInputs, lane_gradient, pick_weights, update_lanes, whole_step
from .step import Step, inputs_of
from .work import run_round, shard_step, update, with_rows


def lower_steps(
    graph: TaskGraph, grain: str, lanes: Sequence[Lane], before: Ref, steps: Sequence[Sequence[Array]], program: Step
) -> Ref:
    """Lower consecutive steps.

    Parameters
    ----------
    lanes : sequence of Lane
        Where shards are computed; changes no bit.
    before : Ref
        What was done so far (`work.Done`): the state, and losses of no interest here.
    steps : sequence of sequence of int array
        Per step the rows of each shard in its lane's feeds.
    program : Step
        The step itself, which lanes have on their workers.

    Returns
    -------
    Ref
        The state after the last step, with the mean losses of these steps.
    """
    if grain == "shard":
        return _lane_steps(graph, lanes, before, steps, program)
    if grain != "round":
        return _fine_steps(graph, grain, lanes, before, steps, program)
    lane = lanes[0]
    args = (lane.step, before, lane.const, lane.feeds, steps, lane.threads)
    return graph.task("round", run_round, *args, worker=lane.worker)


def _parts(lanes: Sequence[Lane], shards: Sequence[Array]) -> list[LaneBatch]:
    batch = sum(map(len, shards))
    return [LaneBatch(shards[lane.first : lane.stop], lane.first, len(shards), batch, lane.threads) for lane in lanes]


def _lane_steps(
    graph: TaskGraph, lanes: Sequence[Lane], before: Ref, steps: Sequence[Sequence[Array]], program: Step
) -> Ref:
    """Give each lane a task per step for its gradients; the first one's worker updates, and sends the parameters.

    A single lane has gradients and update of a step in one task.
    """
    # What all tasks of a lane read is brought together once.
    inputs = [graph.task("inputs", LaneInputs, x.step, x.const, x.feeds, worker=x.worker) for x in lanes]
    home = lanes[0].worker
    for k, shards in enumerate(steps):
        if len(lanes) == 1:
            whole = (inputs[0], before, not k, shards, lanes[0].threads)
            before = graph.task("step", whole_step, *whole, worker=home)
            continue
        names = ("w",) if program.draws is None else ("w", "t")
        weights = graph.task("weights", pick_weights, before, names, worker=home)
        parts = [
            graph.task("gradient", lane_gradient, reads, weights, part, worker=lane.worker)
            for lane, reads, part in zip(lanes, inputs, _parts(lanes, shards))
        ]
        before = graph.task("update", update_lanes, inputs[0], before, not k, parts, len(shards), worker=home)
    return before


def _fine_steps(
    graph: TaskGraph, grain: str, lanes: Sequence[Lane], before: Ref, steps: Sequence[Sequence[Array]], program: Step
) -> Ref:
    """Grains ``"node"`` and ``"sample"``: a task for everything that people want to see."""
    losses = []
    step, home = lanes[0].step, lanes[0].worker
    state = graph.task("state", pick, before, 0, worker=home)
    for shards in steps:
        batch = sum(map(len, shards))
        firsts = accumulate(map(len, shards), initial=0)
        shares = [
            _share(graph, program, grain, lane_of(lanes, s), state, rows, batch, first)
            for s, (rows, first) in enumerate(zip(shards, firsts))
        ]
        mean = reduce_tree(shares, lambda group: graph.task("reduce", add_gradients, group, worker=home))
        state = graph.task("update", update, step, state, mean, worker=home)
        losses.append(graph.task("loss", pick, mean, 1, worker=home))
    return graph.task("done", collect, state, losses, worker=home)


def _share(
    graph: TaskGraph, step: Step, grain: str, lane: Lane, state: Ref, rows: Array, batch: int, first: int
) -> Ref:
    at = lane.worker
    if grain != "node" or step.private is not None:
        args = (lane.step, state, lane.const, lane.feeds, rows, batch, None, first)
        return graph.task("gradient", shard_step, *args, worker=at)
    fed = [i.label for i in step.program.inputs if i.role == "feed"]
    drawn = "" if step.draws is None else fed.pop(step.draws.at)
    taken = [graph.task("take", take_rows, x, rows, worker=at, name=label) for x, label in zip(lane.feeds, fed)]
    if step.draws is not None:
        span = Span(1, first, len(rows))
        taken.insert(step.draws.at, graph.task("draw", keys_of, step.draws, state, [span], worker=at, name=drawn))
    weights = graph.task("weights", weights_of, state, worker=at) if step.program.size("param") else None
    inputs = inputs_of(step.program, weights, lane.const, taken)
    share = lower_share(graph, step.program, step.names, inputs, len(rows), batch)
    return graph.task("rows", with_rows, lane.step, lane.const, taken, share, worker=at) if step.tables else share
