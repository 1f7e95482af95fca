"""Pictures of computational graphs and of task graphs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, GraphError
from ..inputs import brief, count, flag
from .compose import WIDTH, compose, scene_of
from .curves import best_epoch, curves
from .fold import Item
from .items import Drawable, Vertex, legible, nodes_of
from .page import page
from .paint import format_of, painted, write
from .scene import Arrow, Card, Frame, Scene, filled, mixed, root_mean_square
from .svg import svg_of
from .table import Shown

__all__ = [
    "Arrow",
    "Card",
    "Frame",
    "Scene",
    "Shown",
    "best_epoch",
    "curves",
    "draw",
    "draw_tasks",
    "mixed",
    "scene_of",
    "svg_of",
]

FOLD_TASKS = 8
MOST_SHOWN = 10_000  # nodes of a graph that a notebook shows unasked
TASKS = {
    "load": ("#d1fae5", "#047857"),
    "pull": ("#fef3c7", "#b45309"),
    "reduce": ("#ede9fe", "#7c3aed"),
    "update": ("#fce7f3", "#be185d"),
}


def draw(
    graph: Drawable,
    path: str | os.PathLike[str],
    targets: Vertex | Sequence[Vertex] | None = None,
    fold: int | None = None,
    direction: str = "right",
    width: int | None = WIDTH,
    values: bool = False,
    result: Vertex | None = None,
) -> Path:
    """Draw a computational graph; the arguments are those of `Graph.draw`. The path is returned.

    Every node is a card: its name, its op and shape, and attributes that matter. Arrows enter a card in the order of its slots.
    Siblings that look alike become one card when there are many of them, and so do steps that repeat, with an arrow back where one
    reads the one before.

    Raises
    ------
    GraphError
        When there is nothing to draw, a target is of another graph, or the picture would be too large.
    DataError
        When the ending is unknown, the file cannot be written, or matplotlib is missing for PNG and PDF.
    """
    path, suffix = format_of(path)
    nodes = nodes_of(graph, targets)
    measured = _measured(graph, nodes, flag(values, "values"), result)

    def told(places: Sequence[int]) -> str:
        """Write the norms in a card, the smallest and the largest."""
        lines = []
        for sign, _, norms in measured:
            those = [norms[k] for k in places if k in norms]
            if those:
                low, high = f"{min(those):.3g}", f"{max(those):.3g}"
                lines.append(f"|{sign}| {low if low == high else f'{low}…{high}'}")
        return " · ".join(lines)

    def scene(opened: Collection[int] = ()) -> Scene:
        return scene_of(graph, targets, fold=fold, direction=direction, width=width, opened=opened, told=told)

    def coloured(one: Scene) -> tuple[Scene, dict[int, str]]:
        if not measured:
            return one, {}
        _, what, norms = measured[-1]
        found = {card.key: [norms[k] for k in card.nodes if k in norms] for card in one.cards}
        return filled(one, {key: root_mean_square(those) for key, those in found.items() if those}, what)

    def svg(one: Scene) -> str:
        one, colours = coloured(one)
        return svg_of(
            one, colours=colours, hints={card.key: _names(graph, card) for card in one.cards if card.count > 1}
        )

    if suffix == "html":
        return write(path, page(scene(), scene, svg).encode())
    if suffix == "svg":
        return write(path, svg(scene()).encode())
    return write(path, painted(*coloured(scene()), suffix))


def shown(graph: Drawable, target: Vertex | None = None) -> str | None:
    """Return what notebooks show of a graph, or of what a node depends on; None where that is too much."""
    try:
        return svg_of(scene_of(graph, target, width=WIDTH)) if len(graph.nodes) <= MOST_SHOWN else None
    except Exception:
        return None


def _measured(
    graph: Drawable, nodes: Sequence[Any], values: bool, result: Any
) -> list[tuple[str, str, dict[int, float]]]:
    """Return a sign, words and the norms by place of a node: of values, and of cotangents."""
    found = []
    if values:
        found.append(("y", "norm of value", {node.index: _norm(node.forward()) for node in nodes}))
    if result is not None:
        if getattr(result, "graph", None) is not graph:
            raise GraphError(f"result must be a node of the graph to draw, which {brief(result, 80)} is not")
        on_way = set(nodes_of(graph, result))
        norms = {node.index: _norm(node.backward(result)) for node in reversed(nodes) if node in on_way}
        found.append(("g", f"norm of cotangent of {legible(result.name)}", norms))
    return found


def _norm(array: Any) -> float:
    return math.sqrt(float((array * array).sum()))


def _names(graph: Drawable, card: Card) -> str:
    """Return the names in a folded card, the first of them."""
    names = [legible(graph.nodes[k].name) for k in card.nodes[:8]]
    return ", ".join([*names, "..."] if card.count > len(names) else names)


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
        Text of the card; a second line after a line feed. The leading word decides the colour, the first
        line without digits what is folded together. Keys without a label show themselves.
    path, fold
        As for `draw`, which raises the same errors; a cycle of tasks is a `GraphError`, missing networkx a `DataError`.
    """
    path, suffix = format_of(path)
    items = []
    for key in _sorted(edges):
        title, _, detail = labels.get(key, str(key)).partition("\n")
        word = re.match(r"[^\W\d_]+", title)
        role = word.group().lower() if word else "task"
        parents = tuple(sorted(edges.get(key, ()), key=lambda k: (labels.get(k, ""), str(k))))
        kind = re.sub(r"\d+", "", title)
        items.append(Item(key, title, (detail,) if detail else (), role, parents, kind, key, slots=False))
    scene = compose(items, TASKS, count(len(items), "task"), fold=fold)
    if suffix == "html":
        return write(path, page(scene, lambda _: scene, svg_of).encode())
    return write(path, svg_of(scene).encode() if suffix == "svg" else painted(scene, {}, suffix))


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
