"""Lowering: nodes and feeds -> task records. Pure; nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from flowgrad.graph import Graph, Variable
from flowgrad.program import Instr, Program
from flowgrad.typing import Array

from ..feeds import Feeds
from ..kernels import run_by, run_instr, why_not_chosen, why_not_compiled
from ..tasks import Data, Ref, TaskGraph, bounds, prefix_of, reduce_tree
from .compile import flat_values
from .work import add_gradients, cut_rows, flat_gradient, mean_seed, pick, run_program, shard_gradient

# Without a given number of shards, samples are cut into shards of about this many, so many at most.
SHARD_SAMPLES = 4096
MAX_SHARDS = 16


# Instructions from which on values and gradients are compiled if nothing is asked for: NumPy takes microseconds for each.
MANY = 100


def choose_by_size(program: Program, grain: str, kernel: str) -> Program:
    """Return a program as a kernel runs it; ``"auto"``: compiled where NumPy's calls would take longer than loading a kernel."""
    if grain == "node" or kernel == "numpy" or (kernel == "auto" and len(program.instrs) < MANY):
        return program
    return program if (why_not_compiled() if kernel == "numba" else why_not_chosen()) else run_by(program, "numba")


def cut_samples(samples: int, grain: str, shards: int | None) -> list[tuple[int, int]]:
    """Return the ranges of samples that values and derivatives are computed for one by one; training has its own shards."""
    return bounds(samples, samples if grain == "sample" else shards or min(MAX_SHARDS, -(-samples // SHARD_SAMPLES)))


class JobInputs:
    """Feeds, parameters and constants of one call as records, cut into shards."""

    def __init__(self, program: Program, owner: Graph, feeds: Feeds, grain: str, shards: int | None):
        self.graph = TaskGraph()
        self.program, self.grain = program, grain
        self.bounds = cut_samples(feeds.samples, grain, shards)
        nodes = owner.nodes
        self.whole: dict[int, Ref] = {}
        for i in program.inputs:
            if i.role == "feed":
                self.whole[i.var] = self.graph.data("feed", feeds.arrays[cast(Variable, nodes[i.node])], i.label)
            elif i.role in ("param", "const"):
                self.whole[i.var] = self.graph.data(i.role, flat_values(program, owner, i.role, feeds.dtype), i.label)

    def arrays(self, samples: int) -> list[Array]:
        """Return the inputs of the program, but the seed, for so many samples; they are taken again where there are fewer."""
        arrays = []
        for i in self.program.inputs:
            if i.var in self.whole:
                value = cast(Data, self.graph.records[self.whole[i.var].key]).value
                arrays.append(value[np.arange(samples) % len(value)] if i.role == "feed" else value)
        return arrays

    def inputs(self, start: int, stop: int) -> dict[int, Ref]:
        """Return the inputs of one shard, but the seed."""
        refs = dict(self.whole)
        if len(self.bounds) > 1:
            for i in self.program.inputs:
                if i.role == "feed":
                    refs[i.var] = self.graph.task("take", cut_rows, self.whole[i.var], start, stop, name=i.label)
        return refs

    def job(self, keys: list[Ref], finish: Callable[[list[Any]], Any]) -> Computation:
        """Return the computation of `keys`."""
        samples = self.bounds[-1][1]
        return Computation(self.graph, keys, finish, self.program, self.grain, len(self.bounds), samples, self)


@dataclass
class Computation:
    """Records, the keys that are wanted, and how their values become the result."""

    graph: TaskGraph
    keys: list[Ref]
    finish: Callable[[list[Any]], Any]
    program: Program
    grain: str
    shards: int
    samples: int
    inputs: JobInputs


def lower_nodes(graph: TaskGraph, instrs: Sequence[Instr], inputs: dict[int, Ref]) -> dict[int, Ref]:
    """Give every instruction its own task; return the reference of each program variable."""
    refs = dict(inputs)
    for i in instrs:
        args = (i._replace(out=0, args=()), *(refs[a] for a in i.args))
        refs[i.out] = graph.task(prefix_of(i), run_instr, *args, name=i.name)
    return refs


def lower_forward(program: Program, owner: Graph, feeds: Feeds, grain: str, shards: int | None) -> Computation:
    """Lower the outputs of a forward program for every sample; the result is a list of arrays ``(N, dim)``."""
    placed = JobInputs(program, owner, feeds, grain, shards)
    graph = placed.graph
    names = tuple(program.outputs)
    keys: list[Ref] = []
    held = None if grain == "node" else graph.data("program", program)
    for start, stop in placed.bounds:
        inputs = placed.inputs(start, stop)
        if held is None:
            refs = lower_nodes(graph, program.instrs, inputs)
            keys += [refs[program.outputs[name]] for name in names]
            continue
        block = graph.task("forward", run_program, held, names, *(inputs[i.var] for i in program.inputs))
        keys += [block] if len(names) == 1 else [graph.task("pick", pick, block, k) for k in range(len(names))]
    return placed.job(keys, partial(_joined, len(names), placed.bounds))


def _joined(outputs: int, bounds: Sequence[tuple[int, int]], values: list[Any]) -> list[Array]:
    """Return the arrays of so many outputs, whose shards come one after the other."""
    out = []
    for k in range(outputs):
        parts = [np.broadcast_to(v, (stop - start, v.shape[1])) for v, (start, stop) in zip(values[k::outputs], bounds)]
        out.append(np.concatenate(parts))
    return out


def lower_gradient(
    program: Program,
    named: Sequence[tuple[str, list[Variable]]],
    owner: Graph,
    feeds: Feeds,
    wrt: Sequence[Variable],
    grain: str,
    shards: int | None,
) -> Computation:
    """Lower the mean gradient of a scalar; the result is a dict ``{variable: (dim,)}``.

    Parameters
    ----------
    program, named
        See `compile_gradient`.
    """
    placed = JobInputs(program, owner, feeds, grain, shards)
    graph = placed.graph
    names = tuple(name for name, _ in named)
    held = None if grain == "node" else graph.data("program", program)
    seed = program.inputs[-1].var
    shares: list[Ref] = []
    for start, stop in placed.bounds if names else ():
        inputs = placed.inputs(start, stop)
        if held is None:
            shares.append(lower_share(graph, program, names, inputs, stop - start, feeds.samples))
            continue
        refs = [inputs[i.var] for i in program.inputs if i.var != seed]
        shares.append(graph.task("gradient", shard_gradient, held, names, feeds.samples, stop - start, *refs))
    keys = [reduce_tree(shares, lambda group: graph.task("reduce", add_gradients, group))] if shares else []
    places: list[tuple[Variable, int, int]] = []
    at = 0
    for _, variables in named:
        fed = variables[0] in feeds.arrays
        for v in variables:
            if fed:
                places.append((v, at, at + v.dim))
            elif v.index in program.layout:
                _, start, stop = program.layout[v.index]
                places.append((v, at + start, at + stop))
        at += variables[0].dim if fed else program.size("param")
    return placed.job(keys, partial(_by_variable, list(wrt), places, feeds.dtype))


def _by_variable(
    wrt: Sequence[Variable], places: Sequence[tuple[Variable, int, int]], dtype: Any, values: list[Any]
) -> dict[Variable, Array]:
    """Return the piece of a flat gradient that lies at each variable's place; zeros for those without one."""
    out = {v: np.zeros(v.dim, dtype) for v in wrt}
    for v, start, stop in places:
        out[v] = values[0][0][start:stop].copy()
    return out


def lower_share(
    graph: TaskGraph, program: Program, names: tuple[str, ...], inputs: dict[int, Ref], samples: int, batch: int
) -> Ref:
    """Lower one shard's share of the mean gradient node by node: a task per node forward, one per edge backward."""
    seed = program.inputs[-1].var
    loss = program.outputs["0"]
    forward = [i for i in program.instrs if i.out < seed]  # what was there before the seed was added
    refs = lower_nodes(graph, forward, inputs)
    refs[seed] = graph.task("seed", mean_seed, refs[loss], samples, batch)
    refs = lower_nodes(graph, program.instrs[len(forward) :], refs)
    outputs = [refs[program.outputs[name]] for name in names]
    return graph.task("gradient", flat_gradient, refs[loss], samples, batch, program.size("param"), *outputs)
