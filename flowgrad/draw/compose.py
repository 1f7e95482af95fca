"""The picture of a graph: its items are folded, laid out, framed by their scopes, and put on a page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import cycle

from ..errors import GraphError
from ..inputs import integer, one_of
from .fold import Box, Edge, Item
from .fold import fold as fold_items
from .items import ROLES, Drawable, Vertex, items_of, legible, nodes_of, shortened
from .layout import Layout, in_rows, in_scopes, lay_out
from .scene import (
    LINE,
    MARGIN,
    SIGNS,
    SMALL,
    TITLE,
    Arrow,
    Card,
    Frame,
    Palette,
    Point,
    Scene,
    breadth,
    legend_rows,
    legend_width,
    pile,
)

FOLD, FEW = 12, 3  # alike siblings from which on they are folded: in small pictures, and in those of many cards
MANY, LAYERS = 40, 6  # cards of a picture, and layers of which the caption tells, at most
WIDTH = 1280
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
    texts = _texts(items, boxes, told)
    folded = f", drawn as {len(boxes)} cards" if len(boxes) < len(items) else ""
    shares = _shares(items)
    if breadth(counted + shares + folded, LINE) > (width or WIDTH) - 2 * MARGIN:
        shares = ""
    found = {items[box.members[-1]].role: roles.get(items[box.members[-1]].role) for box in boxes}
    spare = cycle(pair for pair in SPARE if pair not in found.values())
    palette = {role: pair or next(spare) for role, pair in found.items()}
    tried = []
    for _ in range(6 if len(boxes) < 150 else 2):  # frames, and what lies beside the bands, take room as well
        scene = _laid_out(
            items, boxes, edges, texts, scopes, direction == "down", longest, palette, counted + shares + folded
        )
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
    if down:
        boxes = [
            replace(box, apart=max([box.apart, *(breadth(port, SMALL) + 4.0 for port in box.ports)])) for box in boxes
        ]
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
        label = boxes[edge.target].ports[edge.port]
        ends = boxes[edge.source].members[0], boxes[edge.target].members[0]
        arrows.append(Arrow(*ends, tuple(route), edge.count, label, edge.lag > 0, edge.each))
    trained: Counter[tuple[str, ...]] = Counter()
    for item in items:
        for depth in range(1, len(item.scope) + 1):
            trained[item.scope[:depth]] += item.trained
    return _on_page(cards, arrows, _frames(cards, arrows, scopes, layout.bands, trained), layout, palette, caption)


def _exchanged(layout: Layout) -> Layout:
    centres = [(v, u) for u, v in layout.centres]
    return Layout(centres, [[(v, u) for u, v in r] for r in layout.routes], layout.breadth, layout.length, layout.bands)


def _texts(items: Sequence[Item], boxes: Sequence[Box], told: Told | None) -> list[tuple[str, tuple[str, ...]]]:
    """Return title and lines of each card."""
    found = []
    for box in boxes:
        n, first, last = len(box.members), items[box.members[0]], items[box.members[-1]]
        title = _span(first.title, last.title, n, names=True)
        lines = [_span(a, b, n) for a, b in zip(first.lines, last.lines)]
        if n > 1 and first.slots and first.lines[0] == last.lines[0]:
            lines[0] += " each"
        before = items[box.members[-2 % n]]
        odd = n > 2 and _form(first) == _form(before) != _form(last)  # as what a layer gives has the layer's name
        if odd:
            title = _span(first.title, before.title, n - 1, names=True)
        if odd or before.role != last.role:
            lines.append(
                f"the last: {shortened(last.title)}" + (f", the {last.role}" if before.role != last.role else "")
            )
        if told:
            lines.append(told(box.members))
        found.append((title, tuple(filter(None, lines))))
    names = Counter(title for title, _ in found)
    for k, (title, others) in enumerate(found):
        if names[title] > 1 and len(boxes[k].members) > 1:
            found[k] = f"{shortened(items[boxes[k].members[0]].title)} …", others
    return found


def _span(first: str, last: str, count: int, names: bool = False) -> str:
    """Write ``w0`` to ``w89``, if those are 90, as ``w0…89``, of names with gaps between what they have in common."""
    if first == last:
        return shortened(first)
    ours, theirs = (re.split(r"(\d{1,9})", text) for text in (first, last))
    if ours[::2] == theirs[::2]:
        parts = [
            a if a == b else f"{a}…{b}" if k % 2 and int(b) - int(a) == count - 1 else "…"
            for k, (a, b) in enumerate(zip(ours, theirs))
        ]
        if names or "…" not in parts:
            return shortened("".join(parts))
    return f"{shortened(first, 20)} … {shortened(last, 20)}"


def _form(item: Item) -> str:
    return re.sub(r"\d+", "0", item.title)


def _shares(items: Sequence[Item]) -> str:
    """Say what is trained in each outermost scope, and in what is in none, while those are a few."""
    shares: Counter[str] = Counter()
    for item in items:
        if item.trained:
            shares[item.scope[0] if item.scope else item.title] += item.trained
    told = ", ".join(f"{shortened(name, 20)} {number:,}" for name, number in shares.items())
    return f" ({told})" if 0 < len(shares) <= LAYERS else ""


def _size(box: Box, title: str, lines: Sequence[str], down: bool) -> tuple[float, float]:
    """Return the width and height of a card, from its text and its ports."""
    head = breadth(title, TITLE, bold=True) + (breadth(f"× {len(box.members):,}", LINE) + 20.0) * (len(box.members) > 1)
    wide = max(64.0, head, *(breadth(line, LINE) for line in lines)) + 20.0
    high = 12.0 + 17.0 + 14.0 * len(lines)
    gutter = max((breadth(port, SMALL) for port in box.ports), default=0.0)
    if down:
        return max(wide, box.apart * len(box.ports) + 8.0), high + (10.0 if gutter else 0.0)
    return wide + gutter, max(high, box.apart * len(box.ports) + 8.0)


def _common(scopes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    low, high = min(scopes), max(scopes)
    same = 0
    while same < min(len(low), len(high)) and low[same] == high[same]:
        same += 1
    return low[:same]


def _frames(
    cards: Sequence[Card],
    arrows: Sequence[Arrow],
    scopes: Sequence[tuple[str, ...]],
    bands: Sequence[int],
    trained: Mapping[tuple[str, ...], int],
) -> list[Frame]:
    """Return the scopes around which frames can be drawn, one in each band: nothing else lies in them."""
    pieces = [_box(arrow.points[k : k + 4]) for arrow in arrows for k in range(0, len(arrow.points) - 3, 3)]
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
        name = legible(".".join(scope))
        parts: list[Frame] = []
        for band in sorted({bands[k] for k in those}):
            here = [cards[k] for k in those if bands[k] == band]
            low_x = min(card.x - card.width / 2 for card in here) - pad
            high_x = max(card.x + card.width / 2 + pile(card) for card in here) + pad
            low_y = min(card.y - card.height / 2 for card in here) - top
            high_y = max(card.y + card.height / 2 + pile(card) for card in here) + pad
            title = f"{name} …" if parts else f"{name} · {trained[scope]:,} trained" if trained[scope] else name
            wide = high_x - low_x
            title = title if breadth(title, LINE) + 16.0 <= wide else name
            start = _beside(pieces, title, low_x, high_x, low_y)
            if start is None and deepest == 1:  # above what passes there, for no other frame is near
                low_y -= 14.0
                start = _beside(pieces, title, low_x, high_x, low_y)
            middle = (low_x + high_x) / 2, (low_y + high_y) / 2
            parts.append(Frame(name, title, low_x + 8.0 if start is None else start, *middle, wide, high_y - low_y))
        others: list[Card | Frame] = [c for k, c in enumerate(cards) if k not in set(those)]
        others += [f for other, f in frames if other != scope[: len(other)]]
        if not any(_meet(part, other) for part in parts for other in others):
            frames += [(scope, part) for part in parts]
    return [frame for _, frame in frames]


def _beside(
    pieces: Sequence[tuple[float, float, float, float]], title: str, left: float, right: float, top: float
) -> float | None:
    """Return where the title of a frame begins, most to the left, so that no arrow passes over it; None if there is no place."""
    passing = sorted((a, c) for a, b, c, d in pieces if b < top + 16.0 and d > top + 2.0 and a < right and c > left)
    long = breadth(title, LINE)
    places = [left + 8.0, *(c + 4.0 for _, c in passing if left + 4.0 < c < right - long - 12.0)]
    return next((x for x in places if not any(a < x + long + 3.0 and c > x - 3.0 for a, c in passing)), None)


def _box(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Return where a cubic piece lies: within its points."""
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs), max(ys)


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
    signs = _signs(cards, arrows, width - 2 * MARGIN)
    return Scene(
        tuple(replace(card, x=card.x + dx, y=card.y + dy) for card in cards),
        tuple(replace(arrow, points=tuple((x + dx, y + dy) for x, y in arrow.points)) for arrow in arrows),
        tuple(replace(frame, start=frame.start + dx, x=frame.x + dx, y=frame.y + dy) for frame in frames),
        width,
        below - top + 2.5 * MARGIN + 18.0 * (rows + 1) + SIGNS * len(signs),
        caption,
        palette,
        signs,
    )


def _signs(cards: Sequence[Card], arrows: Sequence[Arrow], width: float) -> tuple[str, ...]:
    """Return lines of so much width that tell the signs that occur."""
    many = next((card.count for card in cards if card.count > 1), 0)
    back = next((arrow.label.rpartition(": ")[2] for arrow in arrows if arrow.back), "")
    told = [
        (many, f"× {many:,}: so many alike"),
        (any(arrow.each for arrow in arrows), "double line: each reads its own"),
        (any(arrow.label[:1].isdigit() for arrow in arrows), "0, 1: order of operands"),
        (back, f"dashed, {back}: {'the step' if back == 't-1' else 'steps'} before"),
        (any("t = 0" in arrow.label for arrow in arrows), "t = 0: the first step"),
    ]
    lines: list[str] = []
    for word in [word for occurs, word in told if occurs]:
        if lines and breadth(f"{lines[-1]} · {word}", SMALL) <= width:
            lines[-1] += f" · {word}"
        else:
            lines.append(word)
    return tuple(lines)
