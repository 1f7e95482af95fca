"""What a picture shows of the nodes of a graph: titles, lines, roles, and who is alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from ..errors import GraphError
from ..inputs import brief, count, listed, times
from .fold import Item

# Fill and line by role.
ROLES = {
    "parameter": ("#fef3c7", "#b45309"),
    "feed": ("#d1fae5", "#047857"),
    "measured": ("#ccfbf1", "#0f766e"),
    "constant": ("#f3f4f6", "#6b7280"),
    "op": ("#e0e7ff", "#4f46e5"),
    "result": ("#fce7f3", "#be185d"),
}
# Attributes that say how an op is computed, not what it is.
INTERNAL = frozenset(
    (
        "axes",
        "dim",
        "n",
        "k",
        "rows",
        "image",
        "kernel",
        "node",
        "below",
        "sizes",
        "ends",
        "to",
        "shapes",
        "index",
        "channels",
    )
)


class Vertex(Protocol):
    """What a picture shows of a node."""

    name: str
    dim: int
    shape: tuple[int, ...]
    index: int
    attrs: dict[str, Any]

    @property
    def parents(self) -> tuple[Vertex, ...]:
        """Operands by slot."""

    @property
    def children(self) -> tuple[Vertex, ...]:
        """Who reads it."""

    def __hash__(self) -> int: ...


class Drawable(Protocol):
    """A graph as far as a picture goes: its nodes in topological order."""

    @property
    def nodes(self) -> Sequence[Vertex]:
        """All nodes."""


def nodes_of(graph: Drawable, targets: Vertex | Sequence[Vertex] | None) -> Sequence[Vertex]:
    """Return the nodes to draw: all, or what targets depend on."""
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


def is_trained(node: Vertex) -> bool:
    """Tell parameters from feeds: a variable without a value waits for a feed."""
    # Not `value`, which fetches the latest while a training runs.
    return getattr(node, "trainable", False) and getattr(node, "_given", None) is not None


def items_of(nodes: Sequence[Vertex]) -> tuple[list[Item], str]:
    """Return what a picture shows of nodes, and their numbers in words."""
    scopes = {node.name.rpartition(".")[0] for node in nodes}
    numbers = sum(node.dim for node in nodes if is_trained(node))
    counted = f"{count(len(nodes), 'node')}, {count(numbers, 'trained number')}"
    return [_item(node, scopes) for node in nodes], counted


def _item(node: Vertex, scopes: Collection[str]) -> Item:
    op, size, title = type(node).__name__, times(node.shape), node.name
    role = "op" if node.children else "result"
    if not node.parents:
        op = role = "parameter" if is_trained(node) else "measured" if getattr(node, "measured", False) else "feed"
    if hasattr(node, "text"):  # a constant is drawn as what it is
        title, op, role = node.text, "constant", "constant"
    told = attributes_of(node)
    kind = (op, title if role == "constant" else "", node.shape, repr(node.attrs))
    like = (
        op,
        "" if node.parents else role,
        node.shape,
        re.sub(r"\d+", "", repr(node.attrs)) if len(node.attrs) < 20 else tuple(node.attrs),
    )
    inside = node.name if node.name in scopes else node.name.rpartition(".")[0]
    lines = (f"{op} · {size}", *([told] if told else []))
    scope = tuple(filter(None, inside.split(".")))
    return Item(node, title, lines, role, node.parents, kind, like, True, scope, node.dim * is_trained(node))


def attributes_of(node: Vertex) -> str:
    """Return what attributes say of an op, in a line; nothing if they only say how it is computed."""
    found = dict(node.attrs)
    ours = type(node).__module__.startswith("flowgrad.")
    words = []
    if ours and "start" in found and "stop" in found:
        start, stop = found.pop("start"), found.pop("stop")
        read, size = node.parents[0].shape, stop - start
        a_row = len(read) == 2 and read[1] == size and start % size == 0
        words.append(f"row {start // size}" if a_row else f"[{start}:{stop}]")
    if ours and "rate" not in found and "below" in found and "scale" in found:
        words.append(f"rate {1 - 1 / found.pop('scale'):.3g}")
    if ours and not any(map(any, found.get("around", [[0]]))):
        found.pop("around", None)
    for name, value in found.items():
        if ours and (name in INTERNAL or (name in ("stride", "groups") and value in (1, (1, 1)))):
            continue
        if value is None:
            continue
        name = {"around": "padding", "c": "by", "p": "power"}.get(name, name) if ours else name
        words.append(f"{name} {_plain(value)}")
    return shortened(", ".join(words), 36)


def _plain(value: Any) -> str:
    """Write an attribute: 2 x 2 is 2 when both are alike, and so are paddings."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and value:
        parts = [_plain(part) for part in value]
        return parts[0] if len(parts) > 1 and len(set(parts)) == 1 else " x ".join(parts)
    return shortened(str(value), 24)


def shortened(text: str, longest: int = 34) -> str:
    """Return the beginning of a text that is too long."""
    text = legible(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def legible(text: str) -> str:
    """Return a text without what files cannot hold: control characters, and halves of pairs."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "�", text)
