"""Pictures of computational graphs and of task graphs."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError, GraphError
from ..inputs import brief, integer, listed
from .fold import Item
from .fold import fold as fold_items
from .render import Palette, render

__all__ = ["draw", "draw_tasks"]

FOLD = 12
FOLD_TASKS = 8
MAX_BOXES = 1500
ROLES = {
    "trainable variable": ("#fef3c7", "#d97706"),
    "feed variable": ("#d1fae5", "#059669"),
    "constant": ("#f3f4f6", "#6b7280"),
    "op": ("#e0e7ff", "#4f46e5"),
    "result": ("#fce7f3", "#db2777"),
}
TASKS = {
    "load": ("#d1fae5", "#059669"),
    "pull": ("#fef3c7", "#d97706"),
    "reduce": ("#ede9fe", "#7c3aed"),
    "update": ("#fce7f3", "#db2777"),
}


class Vertex(Protocol):
    """What a picture shows of a node."""

    name: str
    dim: int
    shape: tuple[int, ...]
    index: int
    attrs: dict[str, Any]

    @property
    def parents(self) -> tuple[Vertex, ...]: ...
    @property
    def children(self) -> tuple[Vertex, ...]: ...
    @property
    def value(self) -> Any: ...
    def __hash__(self) -> int: ...


class Drawable(Protocol):
    """A graph as far as a picture goes: its nodes in topological order."""

    @property
    def nodes(self) -> Sequence[Vertex]: ...


def draw(
    graph: Drawable, path: str | os.PathLike[str], targets: Vertex | Sequence[Vertex] | None = None, fold: int = FOLD
) -> Path:
    """Draw a computational graph, operands on the left, results on the right.

    Every node is a box: its op, its name and its dim. Arrows enter a box in the order of its slots, top to
    bottom. Siblings that look alike (same op, same dim, parents and children alike) become one box when there
    are many of them. The arguments are those of `Graph.draw`; the path is returned.

    Raises
    ------
    GraphError
        When there is nothing to draw, a target is of another graph, or the picture would be too large.
    DataError
        When matplotlib is missing, the ending is unknown, or the file cannot be written.
    """
    nodes = _nodes(graph, targets)
    items = []
    for node in nodes:
        op = type(node).__name__
        role = "op" if node.children else "result"
        if not node.parents:
            role = "trainable variable" if _trained(node) else "feed variable"
        size = " x ".join(map(str, node.shape))
        title, name = op, node.name
        if hasattr(node, "text"):  # a constant is drawn as what it is
            title, name, role = node.text, "constant", "constant"
        kind = (title, node.shape, repr(node.attrs))
        items.append(Item(node, title, f"{_short(name)} · {size}", role, node.parents, kind))
    numbers = sum(node.dim for node in nodes if _trained(node))
    counted = f"{_count(len(nodes), 'node')}, {_count(numbers, 'trainable number')}"
    return _render(path, items, ROLES, counted, "; in each box: op, name · shape", fold)


def draw_tasks(
    edges: Mapping[Any, Collection[Any]],
    labels: Mapping[Any, str],
    path: str | os.PathLike[str],
    fold: int = FOLD_TASKS,
) -> Path:
    """Draw a task graph in the look of `draw`.

    Parameters
    ----------
    edges : mapping of key to collection of keys
        The tasks, each with the keys that it depends on; keys that are no tasks are drawn as well.
    labels : mapping of key to str
        Text of the box; a second line after a line feed. The leading word decides the colour, the first
        line without digits what is folded together. Keys without a label show themselves.
    path, fold
        As for `draw`, which raises the same errors; a cycle of tasks is a `GraphError`, missing networkx a `DataError`.
    """
    items = []
    for key in _sorted(edges):
        title, _, detail = labels.get(key, str(key)).partition("\n")
        word = re.match(r"[^\W\d_]+", title)
        role = word.group().lower() if word else "task"
        parents = tuple(sorted(edges.get(key, ()), key=lambda k: (labels.get(k, ""), str(k))))
        kind = re.sub(r"\d+", "", title)
        items.append(Item(key, _short(title), _short(detail), role, parents, kind, slots=False))
    return _render(path, items, TASKS, _count(len(items), "task"), "", fold)


def _nodes(graph: Drawable, targets: Vertex | Sequence[Vertex] | None) -> Sequence[Vertex]:
    if not graph.nodes:
        raise GraphError("the graph has no nodes to draw: build some inside `with graph:`")
    if targets is None:
        return graph.nodes
    several = listed(targets)
    stack: list[Any] = [targets] if several is None else several
    if not stack:
        raise GraphError("there are no targets to draw: leave them out for the whole graph")
    for target in stack:
        if getattr(target, "graph", None) is not graph:
            raise GraphError(
                f"{brief(target, 80)} is not a node of the graph to draw: give nodes of this graph as targets"
            )
    seen = set(stack)
    while stack:
        for parent in stack.pop().parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda node: node.index)


def _trained(node: Vertex) -> bool:
    """Tell parameters from feeds: a variable without a value waits for a feed."""
    return getattr(node, "trainable", False) and node.value is not None


def _sorted(edges: Mapping[Any, Collection[Any]]) -> list[Hashable]:
    """Order tasks so that each comes after those it depends on, alike for every run."""
    try:
        import networkx
    except ImportError as error:
        raise DataError("drawing needs networkx: pip install 'flowgrad[viz]'") from error
    if not edges:
        raise GraphError("there are no tasks to draw")
    graph = networkx.DiGraph({key: sorted(edges[key], key=str) for key in sorted(edges, key=str)}).reverse(copy=False)
    try:
        return list(networkx.lexicographical_topological_sort(graph, key=str))
    except networkx.NetworkXUnfeasible:
        raise GraphError("the tasks depend on each other in a cycle: there is no order to draw them in") from None


def _render(
    path: str | os.PathLike[str], items: Sequence[Item], colours: Palette, counted: str, note: str, limit: int
) -> Path:
    boxes, edges = fold_items(items, integer(limit, "fold", 0))
    if len(boxes) > MAX_BOXES:
        raise GraphError(
            f"{len(boxes)} boxes are too many for one picture (at most {MAX_BOXES}): draw a part of it, with targets=..."
        )
    folded = f", drawn as {len(boxes)} boxes" if len(boxes) < len(items) else ""
    return render(path, boxes, edges, colours, counted + folded + note)


def _short(text: str, longest: int = 32) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
