"""From nodes to boxes: levels, and many alike siblings folded into one box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Item:
    """One vertex of what is to be drawn.

    Attributes
    ----------
    key : hashable
        Its identity.
    title, detail : str
        First and second line of its label.
    role : str
        Decides the colour and is told in the legend.
    parents : tuple of hashable
        Keys by slot.
    kind : hashable
        Only items of one kind are folded together.
    slots : bool
        Whether the order of the parents means something.
    """

    key: Hashable
    title: str
    detail: str
    role: str
    parents: tuple[Hashable, ...]
    kind: Hashable
    slots: bool = True


@dataclass
class Box:
    """One box of the picture: an item, or `count` of them folded.

    Attributes
    ----------
    ports : list of str
        Labels of the places, top to bottom, where arrows come in.
    free : bool
        Whether arrows may come in in any order.
    """

    title: str
    detail: str
    role: str
    count: int
    level: int
    free: bool = False
    ports: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Edge:
    """An arrow from box `source` to port `port` of box `target`, standing for `count` edges."""

    source: int
    target: int
    port: int
    count: int


def fold(items: Sequence[Item], limit: int) -> tuple[list[Box], list[Edge]]:
    """Turn items, parents before children, into boxes and arrows in the order of their first items.

    More than `limit` siblings that look alike become one box. Alike are items of one kind and level whose parents and children
    are alike.
    """
    level = levels(items)
    colour = _colours(items, level, limit)
    members: dict[Hashable, list[Item]] = {}
    size = Counter(colour.values())
    for item in items:
        folded = size[colour[item.key]] > limit
        members.setdefault(("all", colour[item.key]) if folded else item.key, []).append(item)
    boxes: list[Box] = []
    place: dict[Hashable, int] = {}
    for group in members.values():
        first, detail = group[0], _range(group[0].detail, group[-1].detail)
        place.update((item.key, len(boxes)) for item in group)
        boxes.append(Box(first.title, detail, first.role, len(group), level[first.key], not first.slots))
    edges: list[Edge] = []
    for index, group in enumerate(members.values()):
        edges += _connect(index, boxes[index], group, place, limit)
    return boxes, edges


def levels(items: Sequence[Item]) -> dict[Hashable, int]:
    """Return each item's level: the longest way to it, leaves right before their first child."""
    level: dict[Hashable, int] = {}
    for item in items:
        level[item.key] = 1 + max((level[p] for p in item.parents), default=-1)
    first_child: dict[Hashable, int] = {}
    for item in items:
        for parent in item.parents:
            first_child[parent] = min(first_child.get(parent, level[item.key]), level[item.key])
    for item in items:
        if not item.parents:
            level[item.key] = first_child.get(item.key, 1) - 1
    return level


def _colours(items: Sequence[Item], level: Mapping[Hashable, int], limit: int) -> dict[Hashable, int]:
    """Colour refinement: items get the same number when they, their parents and their children look alike."""
    children: dict[Hashable, list[tuple[int, Hashable]]] = {item.key: [] for item in items}
    wide = {item.key: len(item.parents) > limit or not item.slots for item in items}
    for item in items:
        for slot, parent in enumerate(item.parents):
            children[parent].append((-1 if wide[item.key] else slot, item.key))
    colour = _number((item.key, (item.kind, item.role, level[item.key])) for item in items)
    for _ in range(64):
        look = []
        for item in items:
            above = [colour[parent] for parent in item.parents]
            below = sorted((slot, colour[child]) for slot, child in children[item.key])
            around = (tuple(sorted(above) if wide[item.key] else above), tuple(below))
            look.append((item.key, (colour[item.key], around)))
        refined = _number(look)
        if len(set(refined.values())) == len(set(colour.values())):
            break
        colour = refined
    return colour


def _number(looks: Iterable[tuple[Hashable, Hashable]]) -> dict[Hashable, int]:
    seen: dict[Hashable, int] = {}
    return {key: seen.setdefault(look, len(seen)) for key, look in looks}


def _range(first: str, last: str) -> str:
    """Join ``w0 · 784`` and ``w89 · 784`` into ``w0 … w89 · 784``."""
    name, _, dim = first.partition(" · ")
    other = last.partition(" · ")[0]
    joined = name if name == other else f"{name} … {other}"
    return f"{joined} · {dim}" if dim else joined


def _connect(index: int, box: Box, group: list[Item], place: Mapping[Hashable, int], limit: int) -> list[Edge]:
    """Give a box its ports and return the arrows into them."""
    wide = not group[0].slots or max(len(item.parents) for item in group) > limit
    port_of: dict[Hashable, int] = {}
    slots: dict[int, list[int]] = {}
    count: Counter[tuple[int, int]] = Counter()
    for item in group:
        for slot, parent in enumerate(item.parents):
            source = place[parent]
            port = port_of.setdefault(source if wide else slot, len(port_of))
            slots.setdefault(port, []).append(slot)
            count[source, port] += 1
    named = group[0].slots and (len(port_of) > 1 or wide)
    box.ports = [_slot_label(sorted(set(slots[port]))) if named else "" for port in range(len(port_of))]
    return [Edge(source, index, port, n) for (source, port), n in count.items()]


def _slot_label(slots: list[int]) -> str:
    if len(slots) == 1:
        return str(slots[0])
    if slots[-1] - slots[0] == len(slots) - 1:
        return f"{slots[0]}–{slots[-1]}"
    return f"{len(slots)} slots"
