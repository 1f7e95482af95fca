"""Lowering optimizer steps: per step shard gradients -> reduction tree by shard index -> update. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowgrad.autodiff import differentiate
from flowgrad.graph import Node, Variable
from flowgrad.ops import CrossEntropyWithSoftMax
from flowgrad.optim import Privacy, Rule
from flowgrad.program import Program
from flowgrad.typing import Array

from ..costs.plan import Plan
from ..derivatives.recipe import Recipe
from ..derivatives.whole import whole_of
from ..derivatives.work import Ends
from ..feeds.check import Feeds
from ..programs.compile import backward_passes, run_passes
from ..programs.fuse import Layout
from ..programs.lower import compile_forward, input_var, lower_share
from ..programs.work import Step, add_gradients, collect, pick, run_round, shard_step, take_rows, update, weights_of
from ..tasks.records import Ref, TaskGraph
from ..tasks.tree import reduce_tree
from .lanes import Carry, Given, Light, Part, first_gradient, last_update, update_gradient, whole_step
from .private import PrivateStep
from .slices import begin_slice, cut_shares, pick_weights, sliced_gradient, update_slice


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


def compile_step(
    target: Node, feeds: Feeds, params: Sequence[Variable], grain: str, layout: Layout | None = None
) -> Step:
    """Return forward and backward of the loss by all `params`, fused or node by node."""
    forward = compile_forward([target], feeds, params, grain, layout)
    flat = input_var(forward, "param")
    wrt = [] if flat is None else [flat]
    program = differentiate(forward, forward.outputs["0"], wrt, fold=grain != "node")
    program = run_passes(program, backward_passes(grain))
    return Step(program, tuple(n for n in program.outputs if n != "0"), _fed(program))


def compile_private(
    step: Step, target: Node, feeds: Feeds, params: Sequence[Variable], privacy: Privacy | None
) -> Step:
    """Return the step with what clips and blurs; the parameters lie as they do in `step`."""
    if privacy is None:
        return step
    recipe = Recipe(target, params, frozenset(feeds.arrays), "shard")
    whole = whole_of(recipe, cut=False)
    inputs = {(i.role, i.node): k for k, i in enumerate(step.program.inputs)}
    leaves = tuple(inputs[i.role, i.node] for var in whole.leaves for i in recipe.program.inputs if i.var == var)
    flat = step.program.size("param")
    order, start = np.zeros(flat, np.int64), 0
    for v in params:
        if v.index in step.program.layout:
            _, lo, hi = step.program.layout[v.index]
            assert recipe.place[recipe.wrt.index(v)] == (0, lo, hi)
            order[lo:hi] = np.arange(start, start + v.dim)
        start += v.dim
    ends = Ends(whole.edges, (flat,), 1, feeds.dtype, "")
    return replace(step, private=PrivateStep(privacy, whole.instrs, ends, leaves, whole.result, order, start))


def compile_evaluation(target: Node, feeds: Feeds, params: Sequence[Variable], layout: Layout | None) -> Step:
    """Return the loss, and for a cross entropy the logits and labels, whose classes are compared."""
    targets = [target, *target.parents] if isinstance(target, CrossEntropyWithSoftMax) else [target]
    program = compile_forward(targets, feeds, params, "shard", layout)
    return Step(program, (), _fed(program))


def _fed(program: Program) -> tuple[int, ...]:
    return tuple(i.node for i in program.inputs if i.role == "feed")


def lower_steps(
    graph: TaskGraph,
    plan: Plan,
    rule: Rule,
    lanes: Sequence[Lane],
    before: list[Ref],
    steps: Sequence[Sequence[Array]],
    program: Step,
    exchange: str = "together",
) -> list[Ref]:
    """Lower consecutive steps.

    Parameters
    ----------
    graph : TaskGraph
        Receives the tasks.
    plan, rule
        What the arithmetic is.
    lanes : sequence of Lane
        Where shards are computed; changes no bit.
    before : list of Ref
        What was done so far (`blocks.Done`): one state, or a slice each, and losses of no interest here.
    steps : sequence of sequence of int array
        Per step the rows of each shard in its lane's feeds.
    program : Step
        The program itself, for grain ``"node"``.
    exchange : str
        At grain ``"shard"``: who updates; see `exchange`.

    Returns
    -------
    list of Ref
        The states after the last step, as they were given, each with the mean losses of these steps.
    """
    if plan.grain not in ("round", "shard"):
        return [_fine_steps(graph, plan, rule, lanes, before[0], steps, program)]
    if plan.grain == "shard" and exchange == "slices":
        return _sliced_steps(graph, rule, lanes, before, steps)
    if plan.grain == "shard":
        kind = Light if exchange == "together" else Carry
        return [_lane_steps(graph, rule, kind, lanes, before[0], steps)]
    lane = lanes[0]
    args = (lane.step, rule, before[0], lane.const, lane.feeds, steps, lane.threads)
    return [graph.task("round", run_round, *args, worker=lane.worker)]


def _parts(lanes: Sequence[Lane], shards: Sequence[Array]) -> list[Part]:
    batch = sum(map(len, shards))
    return [Part(shards[lane.first : lane.stop], lane.first, len(shards), batch, lane.threads) for lane in lanes]


def _given(graph: TaskGraph, rule: Rule, lanes: Sequence[Lane]) -> list[Ref]:
    """Add what brings together, once per lane, what all its tasks read."""
    return [graph.task("given", Given, x.step, rule, x.const, x.feeds, worker=x.worker) for x in lanes]


def _lane_steps(
    graph: TaskGraph,
    rule: Rule,
    kind: type[Carry],
    lanes: Sequence[Lane],
    before: Ref,
    steps: Sequence[Sequence[Array]],
) -> Ref:
    """Give each lane one task per step: the update by the gradients of the step before, and its own next gradients.

    A single lane has gradients and update of a step in one task. Several make the same update each, so that a step waits for one
    hop between workers and not for two.
    """
    given = _given(graph, rule, lanes)
    if len(lanes) == 1:
        (lane,) = lanes
        for k, shards in enumerate(steps):
            whole = (given[0], before, not k, shards, lane.threads)
            before = graph.task("step", whole_step, *whole, worker=lane.worker)
        return before
    carries: list[Ref] = []
    last = 0
    for shards in steps:
        new = []
        for lane, reads, part in zip(lanes, given, _parts(lanes, shards)):
            if carries:
                args = (reads, kind, carries, last, part)
                new.append(graph.task("update-gradient", update_gradient, *args, worker=lane.worker))
            else:
                first = (reads, kind, before, part)
                new.append(graph.task("gradient", first_gradient, *first, worker=lane.worker))
        carries, last = new, len(shards)
    return graph.task("update", last_update, given[0], carries, last, worker=lanes[0].worker)


def _sliced_steps(
    graph: TaskGraph, rule: Rule, lanes: Sequence[Lane], before: Sequence[Ref], steps: Sequence[Sequence[Array]]
) -> list[Ref]:
    """Give each slice of the parameters an update of its own, on a worker of its own."""
    n = len(before)
    given = _given(graph, rule, lanes)
    homes = [k * len(lanes) // n for k in range(n)]
    at = [lanes[h].worker for h in homes]
    done = [graph.task("update", begin_slice, s, worker=w) for s, w in zip(before, at)]
    for shards in steps:
        weights = [graph.task("weights", pick_weights, d, worker=w) for d, w in zip(done, at)]
        shares = [
            graph.task("gradient", sliced_gradient, reads, weights, part, worker=lane.worker)
            for lane, reads, part in zip(lanes, given, _parts(lanes, shards))
        ]
        for k, home in enumerate(homes):
            cuts = [graph.task("cut", cut_shares, y, k, n, worker=x.worker) for x, y in zip(lanes, shares)]
            args = (given[home], done[k], cuts, len(shards))
            done[k] = graph.task("update", update_slice, *args, worker=at[k])
    return done


def _fine_steps(
    graph: TaskGraph,
    plan: Plan,
    rule: Rule,
    lanes: Sequence[Lane],
    before: Ref,
    steps: Sequence[Sequence[Array]],
    program: Step,
) -> Ref:
    """Grains ``"node"`` and ``"sample"``: a task for everything that people want to see."""
    losses = []
    step, home = lanes[0].step, lanes[0].worker
    state = graph.task("state", pick, before, 0, worker=home)
    for shards in steps:
        batch = sum(map(len, shards))
        shares = [
            _share(graph, program, plan, rule, lane_of(lanes, s), state, rows, batch) for s, rows in enumerate(shards)
        ]
        mean = reduce_tree(shares, lambda group: graph.task("reduce", add_gradients, group, worker=home))
        state = graph.task("update", update, step, rule, state, mean, worker=home)
        losses.append(graph.task("loss", pick, mean, 1, worker=home))
    return graph.task("done", collect, state, losses, worker=home)


def _share(
    graph: TaskGraph, step: Step, plan: Plan, rule: Rule, lane: Lane, state: Ref, rows: Array, batch: int
) -> Ref:
    at = lane.worker
    if plan.grain != "node" or step.private is not None:
        args = (lane.step, rule, state, lane.const, lane.feeds, rows, batch)
        return graph.task("gradient", shard_step, *args, worker=at)
    feeds = iter(lane.feeds)
    inputs: dict[int, Ref] = {}
    for i in step.program.inputs:
        if i.role == "feed":
            inputs[i.var] = graph.task("take", take_rows, next(feeds), rows, worker=at)
        elif i.role == "param":
            inputs[i.var] = graph.task("weights", weights_of, state, worker=at)
        elif i.role == "const":
            assert lane.const is not None
            inputs[i.var] = lane.const
    return lower_share(graph, step.program, step.names, inputs, len(rows), batch)


def lane_of(lanes: Sequence[Lane], shard: int) -> Lane:
    """Return the lane that computes a shard."""
    return next(lane for lane in lanes if lane.first <= shard < lane.stop)
