"""Recipes: what a derivative of one node by others needs, worked out once per graph, and the keys of all its values.

A value's key names its expression: op, attributes, and the keys of what it reads, down to the content of variables and feeds.
So two recipes that share a part share its keys, and a variable that was set changes the keys of what lies downstream alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from flowgrad.autodiff import Derivation, Edge, derive
from flowgrad.graph import Graph, Node, Variable, ancestors
from flowgrad.jacobians import Identity
from flowgrad.op import Op
from flowgrad.ops import Gather, Mark, Slice
from flowgrad.program import Builder, Instr, Program, verify
from flowgrad.typing import Array

from ..feeds import Feeds, require_values
from ..programs import choose_by_size, flat_values, forward_passes, input_var, run_passes, traced
from ..tasks import combine, group_of, token
from .units import ValueName, cut_up, name_values
from .work import LastEdges, Span


@dataclass(frozen=True, eq=False)
class OneTask:
    """Everything from what is given to the last edges as one task: for blocks whose values nobody asks for again.

    Attributes
    ----------
    program : Program
        Its inputs are ``leaves``, in their order, then the seed; its first output is the result's value.
    leaves : tuple of int
        The recipe's variables: values that are set, then feeds.
    edges : tuple of Edge
        They read the outputs, by their number.
    """

    program: Program
    leaves: tuple[int, ...]
    edges: tuple[Edge, ...]


class Recipe:
    """A node, the nodes to differentiate by, and which variables are fed.

    Parameters
    ----------
    grain : str
        At ``"node"`` every node and every edge is a unit.
    kernel : str
        What runs its programs, ``"auto"`` by their size.
    """

    def __init__(self, result: Node, wrt: Sequence[Node], fed: frozenset[Variable], grain: str, kernel: str = "numpy"):
        self.choose = partial(choose_by_size, grain=grain, kernel=kernel)
        self.result, self.wrt, self.graph = result, tuple(wrt), result.graph
        upstream = ancestors(result)
        self.needed = [v for v in upstream if isinstance(v, Variable)]
        params = [v for v in wrt if isinstance(v, Variable) and v not in fed]
        marks: dict[Node, type[Op]] = {n: Mark for n in wrt if isinstance(n, Op) and n in upstream}
        program = run_passes(traced([result], fed, params, marks), forward_passes(grain))
        self.forward, self.target = program, program.outputs["0"]
        found = [self._find(program, node, fed) for node in wrt]
        self.variables = list(dict.fromkeys(var for var, _, _ in found if var is not None))
        numbers = {var: k for k, var in enumerate(self.variables)}
        # Nodes that are not in the program lie in one more variable, to which no edge leads.
        self.spans: list[Span] = []
        absent = 0
        for node, (var, lo, hi) in zip(wrt, found):
            if var is not None:
                self.spans.append((numbers[var], lo, hi))
            else:
                self.spans.append((len(self.variables), absent, absent + node.dim))
                absent += node.dim
        self.sizes = [program.types[var].dim for var in self.variables]
        self.sizes += [absent] if absent or not self.sizes else []
        self.derivation: Derivation = derive(program, self.target, self.variables)
        self.program = self.choose(verify(self.derivation.program))
        # What cuts ranges out of the flat vectors.
        flat = {i.var for i in self.program.inputs if i.role in ("param", "const")}
        self.cuts = [
            i for i in self.program.instrs if i.verb == "apply" and i.op in (Slice, Gather) and i.args[0] in flat
        ]
        self.same = {i.out: i.args[0] for i in self.program.instrs if _passes_on(i, grain)}
        self.edges = self.derivation.edges
        self.end_reads = tuple(dict.fromkeys(a for e in self.edges for a in e.reads))
        wanted = (self.target, *self.end_reads)
        self.units, self._holders = cut_up(self.program, self.cuts, self.same, self.through, grain, wanted)
        # By the first variable that a unit writes: its number.
        self.made_by = {unit.writes[0]: number for number, unit in enumerate(self.units)}
        self.heads = self._heads()
        names = [result.name, *(node.name for node in wrt[:1]), *(node.name for node in wrt[1:][-1:])]
        self.name = f"{names[0]} by {' .. '.join(names[1:])}"
        nodes = self.graph.nodes
        self.feeds = {i.var: cast(Variable, nodes[i.node]) for i in self.program.inputs if i.role == "feed"}
        reached = {e.wrt for e in self.edges}
        # Nodes that the result does not depend on.
        self.independent = [n for n, (k, _, _) in zip(wrt, self.spans) if k not in reached]
        self._ends: dict[Any, LastEdges] = {}
        # Filled in by `forward`.
        self.pushes: Any = None
        self.mode: str | None = None
        self._set: _Set | None = None
        self._names: tuple[Any, dict[str, dict[int, ValueName]]] = (None, {})

    @staticmethod
    def _find(program: Program, node: Node, fed: frozenset[Variable]) -> tuple[int | None, int, int]:
        if isinstance(node, Op):
            return program.outputs.get(f"at {node.index}"), 0, node.dim
        if node in fed:
            return input_var(program, "feed", node.index), 0, node.dim
        var = input_var(program, "param")
        if var is None or node.index not in program.layout:
            return None, 0, node.dim
        _, lo, hi = program.layout[node.index]
        return var, lo, hi

    def _heads(self) -> dict[int, tuple[str, str]]:
        """Return group and name of what is given and of each unit's results, by the first variable that it writes."""
        value, groups = group_of("value"), {role: group_of(role) for role in ("feed", "seed")}
        heads = {i.var: (groups.get(i.role, value), i.label) for i in self.program.inputs}
        heads |= {i.out: (value, i.label) for i in self.cuts}
        for unit in self.units:
            heads[unit.writes[0]] = group_of(unit.prefix, [heads[var][0] for var in unit.holders]), unit.name
        return heads

    def through(self, var: int) -> int:
        """Return the variable that stands behind marks."""
        while var in self.same:
            var = self.same[var]
        return var

    def values_now(self, feeds: Feeds) -> dict[int, tuple[str, Array]]:
        """Return token and value of everything that is made of unfed variables alone, by program variable.

        The value of a variable is replaced, never changed, when it is set: the same array is the same value.
        """
        version, known = self.graph._version, self._set
        if known is not None and known.dtype == feeds.dtype:
            if known.version == version:
                return known.values
            if all(v._value is value for v, value in zip(self.needed, known.read)):
                self._set = known._replace(version=version)
                return known.values
        read = [v._value for v in self.needed]
        require_values(self.needed, feeds, self.result)
        values = _values_set(self.program, self.cuts, self.graph, feeds.dtype)
        self._set = _Set(version, read, feeds.dtype, values)
        return values

    def holder(self, var: int) -> tuple[int, int | None]:
        """Return whose result a variable is in, see `Unit.holders`, and which of several it is."""
        var = self.through(var)
        return self._holders.get(var, (var, None))

    def names(self, statics: dict[int, tuple[str, Array]], seed: str) -> dict[int, ValueName]:
        """Return the names of all results, see `name_values`.

        Parameters
        ----------
        statics : dict
            What `values_now` returned.
        seed : str
            Stands for the content of the seed; empty for one that is given with the feeds.
        """
        if self._names[0] is not statics:
            self._names = statics, {}
        known = self._names[1]
        if seed not in known:
            names = {var: ValueName(name) for var, (name, _) in statics.items()}
            names.update((var, ValueName(combine("feed"), (var,))) for var in self.feeds)
            own = self.derivation.seed
            names[own] = ValueName(combine("seed", seed), () if seed else (own,))
            known[seed] = name_values(self.units, names)
        return known[seed]

    def ends(self, rows: int, dtype: Any) -> LastEdges:
        """Return the last edges for a seed of `rows` rows; they read `end_reads`, in that order."""
        key = (rows, np.dtype(dtype))
        if key not in self._ends:
            at = {var: k for k, var in enumerate(self.end_reads)}
            edges = tuple(e.renamed(at.__getitem__) for e in self.edges)
            identity = token(edges, self.sizes, rows, key[1].str)
            self._ends[key] = LastEdges(edges, tuple(self.sizes), rows, key[1], identity)
        return self._ends[key]

    def as_one_task(self, cut: bool = True) -> OneTask:
        """Return all of it as one task, the result's value included.

        With `cut`, ranges of the flat vectors are given; otherwise the vectors are, and the instructions cut them.
        """
        edges = [e.renamed(self.through) for e in self.derivation.edges]
        target = self.through(self.target)
        wanted = {target, *(a for e in edges for a in e.reads)}
        cuts = {i.out for i in self.cuts} if cut else set()
        kept = []
        for i in reversed(self.program.instrs):
            if i.out in wanted and i.out not in self.same and i.out not in cuts:
                kept.append(i._replace(args=tuple(map(self.through, i.args))))
                wanted.update(kept[-1].args)
        kept.reverse()
        own, seed = {i.out for i in kept}, self.derivation.seed
        leaves = tuple(sorted(var for var in wanted if var not in own and var != seed))
        types, builder = self.program.types, Builder()
        at = {var: builder.input(types[var], "feed", var) for var in leaves}
        at[seed] = builder.input(types[seed], "seed")
        for i in kept:
            at[i.out] = builder.copy(i, types[i.out], [at[a] for a in i.args])
        outputs = list(dict.fromkeys([target, *(a for e in edges for a in e.reads)]))
        program = self.choose(builder.build({str(k): at[var] for k, var in enumerate(outputs)}))
        return OneTask(program, leaves, tuple(e.renamed(outputs.index) for e in edges))


class _Set(NamedTuple):
    """What was made of the values that variables had at a version of their graph."""

    version: int
    read: list[Any]
    dtype: np.dtype[Any]
    values: dict[int, tuple[str, Array]]


def _passes_on(i: Instr, grain: str) -> bool:
    """Whether the result is the first argument: marks, and pulls by an identity where an edge need not be a task."""
    return i.op is Mark or (grain != "node" and i.verb == "pull" and i.op.kind(i.slot) is Identity)


def _values_set(program: Program, cuts: Sequence[Instr], graph: Graph, dtype: Any) -> dict[int, tuple[str, Array]]:
    """Return token and value of the ranges, and of the flat vectors that something reads as a whole, or nothing does."""
    flats = {i.var: flat_values(program, graph, i.role, dtype) for i in program.inputs if i.role in ("param", "const")}
    outs, cut = {i.out for i in cuts}, {i.args[0] for i in cuts}
    read = {a for i in program.instrs if i.out not in outs for a in i.args}
    values = {var: value for var, value in flats.items() if var in read or var not in cut}
    for i in cuts:
        values[i.out] = np.ascontiguousarray(i.op.apply(flats[i.args[0]], **dict(i.attrs)))
    return {var: (token(value), value) for var, value in values.items()}
