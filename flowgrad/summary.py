"""A graph as a table: what each layer is, and how much it has and does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import groupby
from typing import NamedTuple

from .counts import operations
from .graph import Constant, Graph, Node, Variable
from .inputs import times
from .op import Op
from .program import Builder, Type

HEAD = ("name", "op", "shape", "parameters", "operations", "shared")


class Row(NamedTuple):
    """A line of the table."""

    name: str
    op: str
    shape: str
    parameters: int
    operations: float
    shared: str


def summary(graph: Graph) -> str:
    """Return the table of a graph's nodes as text: neighbours of one layer, or alike, are one line.

    Operations are those of a sample's values, forward. A parameter that several nodes read is shared.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0) as graph:
    ...     x = fg.Variable(4, name="x")
    ...     y = fg.Tanh(fg.MatVec(fg.Variable((3, 4), "glorot", name="h.W"), x, name="h.y"), name="h")
    >>> print(graph.summary())
    name  op                      shape  parameters  operations  shared
    -------------------------------------------------------------------
    x     variable                4
    h     variable, MatVec, Tanh  3              12          27
    4 nodes, 12 parameters, 27 operations a sample
    """
    layers = {n.name.rpartition(".")[0] for n in graph.nodes}
    rows = [_row(list(part), layer) for layer, part in groupby(graph.nodes, lambda n: _layer(n, layers))]
    total = f"{len(graph.nodes):,} nodes, {sum(r.parameters for r in rows):,} parameters, "
    total += f"{sum(r.operations for r in rows):,.0f} operations a sample"
    cells = [HEAD, *([r.name, r.op, r.shape, _count(r.parameters), _count(r.operations), r.shared] for r in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(HEAD))]
    right = (False, False, False, True, True, False)
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)).rstrip() for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], total])


def _layer(node: Node, layers: Set[str]) -> str | tuple[object, ...]:
    """Return what neighbours of one line have in common: the layer's name, which its last node has, or what they are."""
    if node.name in layers:
        return node.name
    named = node.name != f"{type(node).__name__.lower()}{node.index}"
    return node.name.rpartition(".")[0] or (node.name if named else (type(node), node.shape))


def _row(nodes: Sequence[Node], layer: str | tuple[object, ...]) -> Row:
    first, last = nodes[0], nodes[-1]
    alike = first.name if len(nodes) == 1 else f"{first.name} .. {last.name}"
    name = layer if isinstance(layer, str) else alike
    kinds = Counter(_kind(node) for node in nodes)
    op = ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in kinds.items())
    shared = [
        f"{n.name} x {len(n._edges)}" for n in nodes if isinstance(n, Variable) and n.trainable and len(n._edges) > 1
    ]
    if len(shared) > 2:
        shared = [f"{len(shared)} variables"]
    parameters = sum(n.dim for n in nodes if isinstance(n, Variable) and n.trainable and n.value is not None)
    return Row(name, op, times(last.shape), parameters, sum(map(_operations, nodes)), ", ".join(shared))


def _kind(node: Node) -> str:
    if isinstance(node, Constant):
        return f"constant {node.text}"
    return "variable" if isinstance(node, Variable) else type(node).__name__


def _operations(node: Node) -> float:
    if not isinstance(node, Op):
        return 0.0
    builder = Builder()
    args = [builder.input(Type(p.dim, False), "feed") for p in node.parents]
    out = type(node).expand(builder, args, node.attrs, "")
    program = builder.build({"0": out})
    return sum(operations(i, program) for i in program.instrs)


def _count(number: float) -> str:
    return f"{number:,.0f}" if number else ""


setattr(Graph, "summary", summary)  # noqa: B010 (mypy); here, because it counts ops, which import graphs
