"""Lowering optimizer steps: per step shard gradients -> reduction tree by shard index -> update. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowgrad.autodiff import differentiate
from flowgrad.jacobian import Array
from flowgrad.node import Node, Variable
from flowgrad.ops import CrossEntropyWithSoftMax
from flowgrad.optim import Rule
from flowgrad.privacy import Privacy
from flowgrad.program import Program

from . import blocks
from .blocks import Step
from .feeds import Feeds
from .fuse import Layout
from .lower import compile_forward, input_var, lower_share
from .passes import backward_passes, run_passes
from .plan import Plan
from .private import PrivateStep
from .recipe import Recipe, work_of
from .steps import Ends
from .tasks import Ref, TaskGraph
from .tree import bounds, reduce_tree


@dataclass(frozen=True)
class Given:
    """References to what every step reads."""

    step: Ref
    const: Ref | None
    feeds: list[Ref]
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
    work = work_of(recipe, cut=False)
    inputs = {(i.role, i.node): k for k, i in enumerate(step.program.inputs)}
    leaves = tuple(inputs[i.role, i.node] for var in work.leaves for i in recipe.program.inputs if i.var == var)
    flat = step.program.size("param")
    order, start = np.zeros(flat, np.int64), 0
    for v in params:
        if v.index in step.program.layout:
            _, lo, hi = step.program.layout[v.index]
            assert recipe.place[recipe.wrt.index(v)] == (0, lo, hi)
            order[lo:hi] = np.arange(start, start + v.dim)
        start += v.dim
    ends = Ends(work.edges, (flat,), 1, feeds.dtype, "")
    return replace(step, private=PrivateStep(privacy, work.unit.instrs, ends, leaves, work.result, order, start))


def compile_evaluation(target: Node, feeds: Feeds, params: Sequence[Variable], layout: Layout | None) -> Step:
    """Return the loss, and for a cross entropy the logits and labels, whose classes are compared."""
    targets = [target, *target.parents] if isinstance(target, CrossEntropyWithSoftMax) else [target]
    program = compile_forward(targets, feeds, params, "shard", layout)
    return Step(program, (), _fed(program))


def _fed(program: Program) -> tuple[int, ...]:
    return tuple(i.node for i in program.inputs if i.role == "feed")


def lower_window(
    graph: TaskGraph, step: Step, plan: Plan, rule: Rule, given: Given, state: Ref, batches: Sequence[Array]
) -> tuple[Ref, Ref]:
    """Lower consecutive steps.

    Parameters
    ----------
    graph : TaskGraph
        Receives the tasks.
    batches : sequence of int array
        The rows of each step's mini-batch.

    Returns
    -------
    (Ref, Ref)
        The state after the last step; the list of the steps' mean losses.
    """
    steps = [[rows[start:stop] for start, stop in bounds(len(rows), plan.shards)] for rows in batches]
    if plan.grain == "round":
        done = graph.task(
            "round", blocks.run_round, given.step, rule, state, given.const, given.feeds, steps, given.threads
        )
        return graph.task("state", blocks.pick, done, 0), graph.task("loss", blocks.pick, done, 1)
    losses = []
    for shards in steps:
        batch = sum(map(len, shards))
        shares = [_share(graph, step, plan, rule, given, state, rows, batch) for rows in shards]
        mean = reduce_tree(shares, lambda group: graph.task("reduce", blocks.add_gradients, group))
        state = graph.task("update", blocks.update, given.step, rule, state, mean)
        losses.append(graph.task("loss", blocks.pick, mean, 1))
    return state, graph.task("losses", blocks.collect, *losses)


def _share(
    graph: TaskGraph, step: Step, plan: Plan, rule: Rule, given: Given, state: Ref, rows: Array, batch: int
) -> Ref:
    if plan.grain != "node" or step.private is not None:
        return graph.task("gradient", blocks.shard_step, given.step, rule, state, given.const, given.feeds, rows, batch)
    feeds = iter(given.feeds)
    inputs: dict[int, Ref] = {}
    for i in step.program.inputs:
        if i.role == "feed":
            inputs[i.var] = graph.task("take", blocks.take, next(feeds), rows)
        elif i.role == "param":
            inputs[i.var] = graph.task("weights", blocks.weights, state)
        elif i.role == "const":
            assert given.const is not None
            inputs[i.var] = given.const
    return lower_share(graph, step.program, step.names, inputs, len(rows), batch)


def epoch_batches(samples: int, batch_size: int, shuffle: bool, seed: int, epoch: int) -> list[Array]:
    """Return the rows of every mini-batch of an epoch; the last one may be smaller.

    The order depends on `seed` and `epoch` alone.
    """
    rows = np.random.default_rng([seed, epoch]).permutation(samples) if shuffle else np.arange(samples)
    return [rows[i : i + batch_size] for i in range(0, samples, batch_size)]
