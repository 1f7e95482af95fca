"""A graph as plain rows that travel to the scheduler, and their picture: nothing there knows the classes of its ops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flowgrad.draw import Scene
from flowgrad.draw.compose import compose
from flowgrad.draw.fold import Item
from flowgrad.draw.items import ROLES, items_of
from flowgrad.graph import Node, ancestors

from ..programs import ends_of
from ..tasks import about

# Nodes of a graph that is shown; a picture of more would hold up the scheduler.
MOST = 6000


def rows_of(target: Node) -> tuple[list[Any], str]:
    """Return a row for each node that a target depends on, and how many numbers are trained, in words.

    A row has the node's index, title, lines, role, the places of its parents, what is alike, its scope, its formula, and how many
    numbers are trained in it.
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
                item.trained,
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
        Item(k, title, tuple(lines), role, tuple(parents), kind, like, True, tuple(scope), trained)
        for k, (_, title, lines, role, parents, (kind, like), scope, _, trained) in enumerate(rows)
    ]


def picture(rows: Sequence[Any], counted: str, width: int, opened: Collection[int]) -> Scene:
    """Return the picture of rows; `opened` are places of rows, as keys and nodes of its cards are."""
    return compose(items_from(rows), ROLES, counted, fold=None, width=width, opened=opened)


# -- whose tasks there are ------------------------------------------------------------------------------------------


class Took(NamedTuple):
    """What tasks of a node took in microseconds, forward and back, each the mean of those seen, and the keys of the latest."""

    forward: float
    back: float
    value: str
    edges: tuple[str, ...]


class Places:
    """Finds rows by what keys call nodes: one, or those of a kind from one to another, as fused ones are called."""

    def __init__(self, rows: Sequence[Any]):
        self.kinds = [row[5][0] for row in rows]
        self.place = {row[1]: k for k, row in enumerate(rows) if row[3] != "constant"}  # which has its value there

    def of(self, name: str) -> list[int]:
        """Return the places of the rows."""
        if name in self.place:
            return [self.place[name]]
        first, last = (self.place.get(end, -1) for end in ends_of(name))
        if first < 0 or last < 0:
            return []
        return [k for k in range(first, last + 1) if k == last or self.kinds[k] == self.kinds[first]]


def kept_of(rows: Sequence[Any], held: Iterable[Sequence[str]]) -> dict[str, set[int]]:
    """Return the places of rows whose ``value``, and whose ``Jacobian``, or what was pulled by it, has a key that is held."""
    places, kept = Places(rows), {"value": set[int](), "Jacobian": set[int]()}
    for key in held:
        told = about(key)
        if told is not None:
            kept["Jacobian" if told.back else "value"].update(places.of(told.name))
    return kept


def took_of(rows: Sequence[Any], seen: Mapping[tuple[str, str], Sequence[Any]]) -> dict[int, Took]:
    """Return by place of a row what its tasks took.

    Parameters
    ----------
    seen : mapping
        See `state.Shown.tasks`.
    """
    place = Places(rows).place
    found: defaultdict[int, list[tuple[bool, float, str]]] = defaultdict(list)
    for name, (key, count, seconds) in seen.items():
        told = about(name)
        if told is not None and told.name in place:
            found[place[told.name]].append((told.back, 1e6 * seconds / count, str(key)))
    took = {}
    for k, tasks in found.items():
        forward, back = ([(spent, key) for way, spent, key in tasks if way is which] for which in (False, True))
        value, edges = forward[-1][1] if forward else "", tuple(key for _, key in back)
        took[k] = Took(sum(spent for spent, _ in forward), sum(spent for spent, _ in back), value, edges)
    return took
