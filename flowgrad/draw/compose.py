"""The picture of a graph: its items are folded, laid out, framed by their scopes, and put on a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import cycle

from ..errors import GraphError
from ..inputs import integer, one_of
from .fold import Box, Edge, Item
from .fold import fold as fold_items
from .items import ROLES, Drawable, Vertex, items_of, legible, nodes_of, shortened
from .layout import PORT, Layout, in_rows, in_scopes, lay_out
from .scene import (
    LINE,
    MARGIN,
    SMALL,
    TITLE,
    Arrow,
    Card,
    Frame,
    Palette,
    Scene,
    breadth,
    legend_rows,
    legend_width,
    pile,
)

FOLD, FEW = 12, 3  # alike siblings from which on they are folded: in small pictures, and in those of many cards
MANY = 40
MAX_BOXES = 1500
FRAME = 18.0  # between a frame and what is in it
DIRECTIONS = ("right", "down")
# Fill and line of roles that are not known.
SPARE = (
    ("#e0e7ff", "#4f46e5"),
    ("#fef3c7", "#d97706"),
    ("#d1fae5", "#059669"),
    ("#fce7f3", "#db2777"),
    ("#e0f2fe", "#0284c7"),
    ("#ede9fe", "#7c3aed"),
    ("#ffedd5", "#ea580c"),
    ("#ecfccb", "#65a30d"),
    ("#f1f5f9", "#475569"),
    ("#ccfbf1", "#0d9488"),
    ("#fae8ff", "#c026d3"),
    ("#fee2e2", "#dc2626"),
    ("#e7e5e4", "#78716c"),
    ("#dbeafe", "#1d4ed8"),
)
Told = Callable[[Sequence[int]], str]


def scene_of(
    graph: Drawable,
    targets: Vertex | Sequence[Vertex] | None = None,
    *,
    fold: int | None = None,
    direction: str = "right",
    width: float | None = None,
    opened: Collection[int] = (),
    told: Told | None = None,
) -> Scene:
    """Return the picture of a graph, or of what targets depend on.

    Parameters
    ----------
    graph, targets, fold, direction, width
        As for `Graph.draw`.
    opened : collection of int
        Places in ``graph.nodes``: a folded card that stands for one of them is drawn unfolded; of steps that are many, the one with
        the node.
    told : callable, optional
        Gives one more line for a card, of the places of its nodes.
    """
    nodes = nodes_of(graph, targets)
    items, counted = items_of(nodes)
    place = {node.index: k for k, node in enumerate(nodes)}
    at = [place[k] for k in opened if k in place]
    back = [node.index for node in nodes]

    def line(places: Sequence[int]) -> str:
        return told([back[k] for k in places]) if told else ""

    scene = compose(items, ROLES, counted, fold=fold, direction=direction, width=width, opened=at, told=line)
    if back == list(range(len(back))):
        return scene
    cards = [replace(c, key=back[c.key], nodes=tuple(back[k] for k in c.nodes)) for c in scene.cards]
    arrows = [replace(a, source=back[a.source], target=back[a.target]) for a in scene.arrows]
    return replace(scene, cards=tuple(cards), arrows=tuple(arrows))


def compose(
    items: Sequence[Item],
    roles: Palette,
    counted: str,
    *,
    fold: int | None,
    direction: str = "right",
    width: float | None = None,
    opened: Collection[int] = (),
    told: Told | None = None,
) -> Scene:
    """Fold items and lay them out; cards and arrows name items by their places."""
    one_of(direction, "direction", DIRECTIONS)
    longest = width = None if width is None else float(integer(width, "width", 200))
    boxes, edges = fold_items(items, FOLD if fold is None else integer(fold, "fold", 0), opened)
    if fold is None and len(boxes) > MANY:
        boxes, edges = fold_items(items, FEW, opened)
    if len(boxes) > MAX_BOXES:
        raise GraphError(
            f"{len(boxes)} boxes are too many for one picture (at most {MAX_BOXES}): draw a part of it, with targets=..."
        )
    scopes = [_common([items[i].scope for i in box.members]) for box in boxes]
    boxes = in_scopes(boxes, edges, scopes)
    texts = [_texts(items, box, told) for box in boxes]
    folded = f", drawn as {len(boxes)} cards" if len(boxes) < len(items) else ""
    found = {items[box.members[-1]].role: roles.get(items[box.members[-1]].role) for box in boxes}
    spare = cycle(pair for pair in SPARE if pair not in found.values())
    palette = {role: pair or next(spare) for role, pair in found.items()}
    tried = []
    for _ in range(6 if len(boxes) < 150 else 2):  # frames, and what lies beside the bands, take room as well
        scene = _laid_out(items, boxes, edges, texts, scopes, direction == "down", longest, palette, counted + folded)
        if width is None or longest is None or scene.width <= width:
            return scene
        tried.append(scene)
        longest = max(longest - max(24.0, scene.width - width), 0.75 * longest)
    return min(tried, key=lambda scene: scene.width * scene.height)


def _laid_out(
    items: Sequence[Item],
    boxes: Sequence[Box],
    edges: Sequence[Edge],
    texts: Sequence[tuple[str, tuple[str, ...]]],
    scopes: Sequence[tuple[str, ...]],
    down: bool,
    longest: float | None,
    palette: Palette,
    caption: str,
) -> Scene:
    deeper = max(0, max(map(len, scopes)) - 1)  # frames within frames
    sizes = [_size(box, *text, down) for box, text in zip(boxes, texts)]
    if down:
        flipped = [(h, w) for w, h in sizes]
        layout = _exchanged(
            lay_out(boxes if longest is None else in_rows(boxes, flipped, longest), edges, flipped, room=26.0 * deeper)
        )
    else:
        layout = lay_out(boxes, edges, sizes, longest, [scope[0] if scope else None for scope in scopes], 22.0 * deeper)
    cards = []
    for box, (title, lines), (x, y), (w, h) in zip(boxes, texts, layout.centres, sizes):
        role = items[box.members[-1]].role
        cards.append(Card(box.members[0], tuple(box.members), title, lines, role, len(box.members), x, y, w, h))
    arrows = []
    for edge, route in zip(edges, layout.routes):
        label = f"t-{edge.lag}" if edge.lag else boxes[edge.target].ports[edge.port]
        ends = boxes[edge.source].members[0], boxes[edge.target].members[0]
        arrows.append(Arrow(*ends, tuple(route), edge.count, label, edge.lag > 0))
    return _on_page(cards, arrows, _frames(cards, scopes), layout, palette, caption)


def _exchanged(layout: Layout) -> Layout:
    centres = [(v, u) for u, v in layout.centres]
    return Layout(centres, [[(v, u) for u, v in r] for r in layout.routes], layout.breadth, layout.length)


def _texts(items: Sequence[Item], box: Box, told: Told | None) -> tuple[str, tuple[str, ...]]:
    first, last = items[box.members[0]], items[box.members[-1]]
    more = told(box.members) if told else ""
    return _span(first.title, last.title), (*map(_span, first.lines, last.lines), *([more] if more else []))


def _span(first: str, last: str) -> str:
    """Write ``w0`` and ``w89`` as ``w0…89``."""
    if first == last:
        return shortened(first)
    ours, theirs = re.split(r"(\d+)", first), re.split(r"(\d+)", last)
    differ = [k for k, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    if len(ours) == len(theirs) and len(differ) == 1 and differ[0] % 2:
        k = differ[0]
        return shortened("".join([*ours[:k], f"{ours[k]}…{theirs[k]}", *ours[k + 1 :]]))
    return f"{shortened(first, 20)} … {shortened(last, 20)}"


def _size(box: Box, title: str, lines: Sequence[str], down: bool) -> tuple[float, float]:
    """Return the width and height of a card, from its text and its ports."""
    head = breadth(title, TITLE, bold=True) + (breadth(f"× {len(box.members):,}", LINE) + 20.0) * (len(box.members) > 1)
    wide = max(64.0, head, *(breadth(line, LINE) for line in lines)) + 20.0
    high = 12.0 + 17.0 + 14.0 * len(lines)
    gutter = max((breadth(port, SMALL) for port in box.ports), default=0.0)
    if down:
        room = max(PORT, gutter + 4.0) * len(box.ports)
        return max(wide, room + 8.0), high + (10.0 if gutter else 0.0)
    return wide + gutter, max(high, PORT * len(box.ports) + 8.0)


def _common(scopes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    low, high = min(scopes), max(scopes)
    same = 0
    while same < min(len(low), len(high)) and low[same] == high[same]:
        same += 1
    return low[:same]


def _frames(cards: Sequence[Card], scopes: Sequence[tuple[str, ...]]) -> list[Frame]:
    """Return the scopes around which a frame can be drawn: nothing else lies in it."""
    inside: dict[tuple[str, ...], list[int]] = {}
    for k, scope in enumerate(scopes):
        for depth in range(1, len(scope) + 1):
            inside.setdefault(scope[:depth], []).append(k)
    deepest = max((len(scope) for scope in inside), default=0)
    frames: list[tuple[tuple[str, ...], Frame]] = []
    for scope, those in sorted(inside.items(), key=lambda pair: (len(pair[0]), pair[0])):
        if len(those) < 2:
            continue
        pad = 7.0 + 4.0 * (deepest - len(scope))
        top = pad + FRAME * (1 + deepest - len(scope)) - 6.0
        low_x = min(cards[k].x - cards[k].width / 2 for k in those) - pad
        high_x = max(cards[k].x + cards[k].width / 2 + pile(cards[k]) for k in those) + pad
        low_y = min(cards[k].y - cards[k].height / 2 for k in those) - top
        high_y = max(cards[k].y + cards[k].height / 2 + pile(cards[k]) for k in those) + pad
        frame = Frame(
            legible(".".join(scope)), (low_x + high_x) / 2, (low_y + high_y) / 2, high_x - low_x, high_y - low_y
        )
        others: list[Card | Frame] = [c for k, c in enumerate(cards) if k not in set(those)]
        others += [f for other, f in frames if other != scope[: len(other)]]
        if not any(_meet(frame, other) for other in others):
            frames.append((scope, frame))
    return [frame for _, frame in frames]


def _meet(a: Card | Frame, b: Card | Frame) -> bool:
    return abs(a.x - b.x) < (a.width + b.width) / 2 and abs(a.y - b.y) < (a.height + b.height) / 2


def _on_page(
    cards: Sequence[Card],
    arrows: Sequence[Arrow],
    frames: Sequence[Frame],
    layout: Layout,
    palette: Palette,
    caption: str,
) -> Scene:
    """Move all to where the page begins at (0, 0), with room for the legend below."""
    left = min([0.0, *(f.x - f.width / 2 for f in frames)])
    top = min([0.0, *(f.y - f.height / 2 for f in frames)])
    right = max([layout.length, *(f.x + f.width / 2 for f in frames)])
    below = max([layout.breadth, *(f.y + f.height / 2 for f in frames)])
    used = right - left + 2 * MARGIN
    width = max(used, breadth(caption, LINE) + 2 * MARGIN, min(legend_width(palette), 380.0) + 2 * MARGIN)
    dx, dy = MARGIN - left + (width - used) / 2, MARGIN - top
    rows = legend_rows(palette, width)
    return Scene(
        tuple(replace(card, x=card.x + dx, y=card.y + dy) for card in cards),
        tuple(replace(arrow, points=tuple((x + dx, y + dy) for x, y in arrow.points)) for arrow in arrows),
        tuple(replace(frame, x=frame.x + dx, y=frame.y + dy) for frame in frames),
        width,
        below - top + 2.5 * MARGIN + 18.0 * (rows + 1),
        caption,
        palette,
    )
