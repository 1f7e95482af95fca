"""Lowering optimizer steps: per step shard gradients -> reduction tree by shard index -> update. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from flowgrad.typing import Array

from ..feeds import Lane, lane_of
from ..programs import add_gradients, collect, lower_share, pick, take_rows, weights_of
from ..tasks import Ref, TaskGraph, reduce_tree
from .lanes import LaneBatch, LaneInputs, first_gradient, last_update, update_gradient, whole_step
from .slices import cut_shares, pick_weights, sliced_gradient, update_slice
from .step import Step, inputs_of
from .work import run_round, shard_step, update


def lower_steps(
    graph: TaskGraph,
    grain: str,
    lanes: Sequence[Lane],
    before: list[Ref],
    steps: Sequence[Sequence[Array]],
    program: Step,
    exchange: str = "together",
) -> list[Ref]:
    """Lower consecutive steps.

    Parameters
    ----------
    lanes : sequence of Lane
        Where shards are computed; changes no bit.
    before : list of Ref
        What was done so far (`work.Done`): one state, or a slice each, and losses of no interest here.
    steps : sequence of sequence of int array
        Per step the rows of each shard in its lane's feeds.
    program : Step
        The program itself, for grain ``"node"``.
    exchange : str
        At grain ``"shard"``: who updates; see `flowgrad.scheduler.costs.forecast.WAYS`.

    Returns
    -------
    list of Ref
        The states after the last step, cut as they came, each with the mean losses of these steps.
    """
    if grain not in ("round", "shard"):
        return [_fine_steps(graph, grain, lanes, before[0], steps, program)]
    if grain == "shard" and exchange == "slices":
        return _sliced_steps(graph, lanes, before, steps)
    if grain == "shard":
        return [_lane_steps(graph, exchange != "together", lanes, before[0], steps)]
    lane = lanes[0]
    args = (lane.step, before[0], lane.const, lane.feeds, steps, lane.threads)
    return [graph.task("round", run_round, *args, worker=lane.worker)]


def _parts(lanes: Sequence[Lane], shards: Sequence[Array]) -> list[LaneBatch]:
    batch = sum(map(len, shards))
    return [LaneBatch(shards[lane.first : lane.stop], lane.first, len(shards), batch, lane.threads) for lane in lanes]


def _lane_inputs(graph: TaskGraph, lanes: Sequence[Lane]) -> list[Ref]:
    """Add what brings together, once per lane, what all its tasks read."""
    return [graph.task("inputs", LaneInputs, x.step, x.const, x.feeds, worker=x.worker) for x in lanes]


def _lane_steps(
    graph: TaskGraph, travels: bool, lanes: Sequence[Lane], before: Ref, steps: Sequence[Sequence[Array]]
) -> Ref:
    """Give each lane one task per step: the update by the gradients of the step before, and its own next gradients.

    A single lane has gradients and update of a step in one task. Several make the same update each, so that a step waits for one
    hop between workers and not for two.
    """
    inputs = _lane_inputs(graph, lanes)
    if len(lanes) == 1:
        (lane,) = lanes
        for k, shards in enumerate(steps):
            whole = (inputs[0], before, not k, shards, lane.threads)
            before = graph.task("step", whole_step, *whole, worker=lane.worker)
        return before
    carries: list[Ref] = []
    last = 0
    for shards in steps:
        new = []
        for lane, reads, part in zip(lanes, inputs, _parts(lanes, shards)):
            if carries:
                args = (reads, travels, carries, last, part)
                new.append(graph.task("update-gradient", update_gradient, *args, worker=lane.worker))
            else:
                first = (reads, travels, before, part)
                new.append(graph.task("gradient", first_gradient, *first, worker=lane.worker))
        carries, last = new, len(shards)
    return graph.task("update", last_update, inputs[0], carries, last, worker=lanes[0].worker)


def _sliced_steps(
    graph: TaskGraph, lanes: Sequence[Lane], before: Sequence[Ref], steps: Sequence[Sequence[Array]]
) -> list[Ref]:
    """Give each slice of the parameters an update of its own, on a worker of its own."""
    n = len(before)
    inputs = _lane_inputs(graph, lanes)
    homes = [k * len(lanes) // n for k in range(n)]
    at = [lanes[h].worker for h in homes]
    done = list(before)
    for number, shards in enumerate(steps):
        weights = [graph.task("weights", pick_weights, d, worker=w) for d, w in zip(done, at)]
        shares = [
            graph.task("gradient", sliced_gradient, reads, weights, part, worker=lane.worker)
            for lane, reads, part in zip(lanes, inputs, _parts(lanes, shards))
        ]
        for k, home in enumerate(homes):
            cuts = [graph.task("cut", cut_shares, y, k, n, worker=x.worker) for x, y in zip(lanes, shares)]
            args = (inputs[home], done[k], not number, cuts, len(shards))
            done[k] = graph.task("update", update_slice, *args, worker=at[k])
    return done


def _fine_steps(
    graph: TaskGraph, grain: str, lanes: Sequence[Lane], before: Ref, steps: Sequence[Sequence[Array]], program: Step
) -> Ref:
    """Grains ``"node"`` and ``"sample"``: a task for everything that people want to see."""
    losses = []
    step, home = lanes[0].step, lanes[0].worker
    state = graph.task("state", pick, before, 0, worker=home)
    for shards in steps:
        batch = sum(map(len, shards))
        shares = [_share(graph, program, grain, lane_of(lanes, s), state, rows, batch) for s, rows in enumerate(shards)]
        mean = reduce_tree(shares, lambda group: graph.task("reduce", add_gradients, group, worker=home))
        state = graph.task("update", update, step, state, mean, worker=home)
        losses.append(graph.task("loss", pick, mean, 1, worker=home))
    return graph.task("done", collect, state, losses, worker=home)


def _share(graph: TaskGraph, step: Step, grain: str, lane: Lane, state: Ref, rows: Array, batch: int) -> Ref:
    at = lane.worker
    if grain != "node" or step.private is not None:
        args = (lane.step, state, lane.const, lane.feeds, rows, batch)
        return graph.task("gradient", shard_step, *args, worker=at)
    taken = [graph.task("take", take_rows, feed, rows, worker=at) for feed in lane.feeds]
    weights = graph.task("weights", weights_of, state, worker=at) if step.program.size("param") else None
    inputs = inputs_of(step.program, weights, lane.const, taken)
    return lower_share(graph, step.program, step.names, inputs, len(rows), batch)
