"""A graph as plain rows that travel to the scheduler, and their picture: nothing there knows the classes of its ops."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flowgrad.draw import Scene
from flowgrad.draw.fold import Item
from flowgrad.draw.scene import ROLES, compose, items_of
from flowgrad.graph import Node, ancestors

# Nodes of a graph that is shown; a picture of more would hold up the scheduler.
MOST = 6000


def rows_of(target: Node) -> tuple[list[Any], str]:
    """Return a row for each node that a target depends on, and how many numbers are trained, in words.

    A row has the node's index, title, lines, role, the places of its parents, what is alike, its scope and its formula.
    """
    nodes = sorted(ancestors(target), key=lambda n: n.index)
    if len(nodes) > MOST:
        return [], f"a graph of {len(nodes):,} nodes is too large to be drawn here"
    items, counted = items_of(nodes)
    place: dict[Any, int] = {node: k for k, node in enumerate(nodes)}
    known: dict[Any, int] = {}

    def number(thing: Any) -> int:
        return known.setdefault(thing, len(known))

    rows = []
    for node, item in zip(nodes, items):
        rows.append(
            [
                node.index,
                item.title,
                list(item.lines),
                item.role,
                [place[parent] for parent in item.parents],
                [number(item.kind), number(item.like)],
                list(item.scope),
                formula_of(node),
            ]
        )
    return rows, counted


def formula_of(node: Node) -> str:
    """Return what a node computes, in a line."""
    if not node.parents:
        return "a variable"
    if text := getattr(type(node), "formula", ""):
        return f"y = {text}"
    return (type(node).__doc__ or "").strip().partition("\n")[0].replace("`", "")[:120]


def items_from(rows: Sequence[Any]) -> list[Item]:
    """Return what a picture shows of rows."""
    return [
        Item(k, title, tuple(lines), role, tuple(parents), kind, like, scope=tuple(scope))
        for k, (_, title, lines, role, parents, (kind, like), scope, _) in enumerate(rows)
    ]


def picture(rows: Sequence[Any], counted: str, width: int, opened: Collection[int]) -> Scene:
    """Return the picture of rows; `opened` are places of rows, as keys and nodes of its cards are."""
    return compose(items_from(rows), ROLES, counted, fold=None, width=width, opened=opened)
