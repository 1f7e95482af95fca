"""Recipes: what a derivative of one node by others needs, worked out once per graph, and the keys of all its values.

A value's key names its expression: op, attributes, and the keys of what it reads, down to the content of variables and feeds.
So two recipes that share a part share its keys, and a variable that was set changes the keys of what lies downstream alone.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np

from flowgrad.autodiff import Derivation, derive
from flowgrad.graph import Graph
from flowgrad.jacobian import Array, Identity
from flowgrad.node import Node, Variable, ancestors
from flowgrad.op import Op
from flowgrad.ops import Gather, Mark, Slice
from flowgrad.program import Instr, Program, Role, trace

from .feeds import Feeds, require_values
from .lower import flat_values, input_var
from .passes import forward_passes, run_passes
from .steps import Ends
from .tasks import token
from .units import cut_up

# Recipes that an engine remembers.
REMEMBERED = 64


@dataclass(frozen=True)
class Place:
    """Where a node's derivative lies: the number of a variable of the derivation, and the range in it."""

    wrt: int
    lo: int
    hi: int


class Recipe:
    """A node, the nodes to differentiate by, and which variables are fed.

    Parameters
    ----------
    result : Node
    wrt : sequence of Node
    fed : set of Variable
    grain : str
        At ``"node"`` every node and every edge is a unit.
    """

    def __init__(self, result: Node, wrt: Sequence[Node], fed: frozenset[Variable], grain: str):
        self.result, self.wrt, self.graph = result, tuple(wrt), result.graph
        upstream = ancestors(result)
        self.needed = [v for v in upstream if isinstance(v, Variable)]
        params = [v for v in wrt if isinstance(v, Variable) and v not in fed]
        marks: dict[Node, type[Op]] = {n: Mark for n in wrt if isinstance(n, Op) and n in upstream}
        traced = trace([result], fed, params, marks)
        program = run_passes(traced, forward_passes(grain))
        self.target = program.outputs["0"]
        variables: dict[int, int] = {}  # program variable -> number
        self.places: dict[Node, Place] = {}
        for node in wrt:
            var, lo, hi = self._find(program, node, fed)
            if var is not None:
                self.places[node] = Place(variables.setdefault(var, len(variables)), lo, hi)
        self.place = [(p.wrt, p.lo, p.hi) if (p := self.places.get(n)) is not None else n.dim for n in self.wrt]
        self.sizes = [program.types[var].dim for var in variables] or [0]
        self.variables = list(variables)
        self.derivation: Derivation = derive(program, self.target, list(variables))
        self.program = self.derivation.program
        self.statics = _statics(self.program)
        self.same = {i.out: i.args[0] for i in self.program.instrs if _passes_on(i, grain)}
        self.units = cut_up(self.program, self.statics, self.same, self.through, grain)
        self.unit_of = {var: unit for unit in self.units for var in unit.writes}
        nodes = self.graph.nodes
        self.feeds = {i.var: cast(Variable, nodes[i.node]) for i in self.program.inputs if i.role == "feed"}
        reached = {e.wrt for e in self.derivation.edges}
        # Nodes that the result does not depend on.
        self.independent = [n for n in self.wrt if n not in self.places or self.places[n].wrt not in reached]
        self.end_reads = tuple(dict.fromkeys(a for e in self.derivation.edges for a in e.pull.args))
        self._ends: dict[Any, Ends] = {}
        # Filled in by `forward_mode`.
        self.pushes: Any = None
        self.mode: str | None = None
        self._set: tuple[list[Any], Any, dict[int, tuple[str, Array]]] | None = None

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

    def through(self, var: int) -> int:
        """Return the variable that stands behind marks."""
        while var in self.same:
            var = self.same[var]
        return var

    def values_now(self, feeds: Feeds) -> dict[int, tuple[str, Array]]:
        """Return token and value of everything that is made of unfed variables alone, by program variable.

        The value of a variable is replaced, never changed, when it is set: the same array is the same value.
        """
        now: list[Any] = [v._value for v in self.needed]
        if self._set is not None and self._set[1] == feeds.dtype and all(map(operator.is_, now, self._set[0])):
            return self._set[2]
        require_values(self.needed, feeds, self.result)
        found = _static_values(self.program, self.statics, self.graph, feeds.dtype)
        self._set = now, feeds.dtype, found
        return found

    def tokens_now(self, feeds: Feeds) -> list[str]:
        """Return what stands for the content of all variables that are set."""
        return [name for name, _ in self.values_now(feeds).values()]

    def ends(self, rows: int, dtype: Any) -> Ends:
        """Return the last edges for a seed of `rows` rows; they read `end_reads`, in that order."""
        key = (rows, np.dtype(dtype))
        if key not in self._ends:
            at = {var: k for k, var in enumerate(self.end_reads)}
            edges = tuple(
                e._replace(pull=e.pull._replace(args=tuple(at[a] for a in e.pull.args))) for e in self.derivation.edges
            )
            told = [(e.wrt, e.start, e.entries, e.pull.op, e.pull.attrs, e.pull.slot, e.pull.args) for e in edges]
            self._ends[key] = Ends(edges, tuple(self.sizes), rows, key[1], token(told, self.sizes, rows, key[1].str))
        return self._ends[key]


class RecipeBook:
    """The recipes that were used last."""

    def __init__(self) -> None:
        self.found: OrderedDict[Any, Recipe] = OrderedDict()
        self.variables: WeakKeyDictionary[Graph, tuple[int, list[Variable]]] = WeakKeyDictionary()

    def trained(self, graph: Graph, fed: Any) -> list[Node]:
        """Return the trainable variables that are not in `fed`."""
        count = len(graph._nodes)
        known = self.variables.get(graph)
        if known is None or known[0] != count:
            known = self.variables[graph] = (count, [n for n in graph.nodes if isinstance(n, Variable)])
        return [v for v in known[1] if v.trainable and v not in fed]

    def get(self, result: Node, wrt: Sequence[Node], fed: Any, grain: str) -> Recipe:
        """Return the recipe; worked out if it is not remembered."""
        fed = frozenset(fed)
        key = (result, tuple(wrt), fed, grain == "node")
        if key not in self.found:
            self.found[key] = Recipe(result, wrt, fed, grain)
            if len(self.found) > REMEMBERED:
                self.found.popitem(last=False)
        self.found.move_to_end(key)
        return self.found[key]


def _passes_on(i: Instr, grain: str) -> bool:
    """Whether the result is the first argument: marks, and pulls by an identity where an edge need not be a task."""
    return i.op is Mark or (grain != "node" and i.verb == "pull" and i.op.kind(i.slot) is Identity)


def _statics(program: Program) -> list[Instr | int]:
    """Return the inputs that are no feeds, and the instructions that cut ranges out of them."""
    given = {i.var for i in program.inputs if i.role in ("param", "const")}
    cuts = [i for i in program.instrs if i.op in (Slice, Gather) and i.verb == "apply" and i.args[0] in given]
    return [*given, *cuts]


def _static_values(
    program: Program, statics: Sequence[Instr | int], graph: Graph, dtype: Any
) -> dict[int, tuple[str, Array]]:
    roles: dict[int, Role] = {i.var: i.role for i in program.inputs}
    cut = {i.args[0] for i in statics if isinstance(i, Instr)}
    read = {a for i in program.instrs for a in i.args if i.op not in (Slice, Gather) or i.verb != "apply"}
    flats = {var: flat_values(program, graph, roles[var], dtype) for var in statics if isinstance(var, int)}
    found = {}
    for item in statics:
        if isinstance(item, int):
            value = flats[item]
            if item in cut and item not in read:
                continue  # nobody reads the whole
            found[item] = token(value), value
        else:
            value = np.ascontiguousarray(item.op.apply(flats[item.args[0]], **dict(item.attrs)))
            found[item.out] = token(value), value
    return found
