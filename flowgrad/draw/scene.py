"""What a picture of a graph shows and where: cards, arrows and frames, in pixels, and the same as SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import cycle
from typing import Any, NamedTuple, Protocol

from ..errors import GraphError
from ..inputs import brief, count, integer, listed, one_of, times
from .fold import Box, Edge, Item
from .fold import fold as fold_items
from .layout import PORT, Layout, in_rows, in_scopes, lay_out

FOLD, FEW = 12, 3  # alike siblings from which on they are folded: in small pictures, and in those of many cards
MANY = 40
MAX_BOXES = 1500
MARGIN = 24.0
TITLE, LINE, SMALL = 13.0, 11.0, 9.5  # sizes of text
FRAME = 18.0  # between a frame and what is in it
DIRECTIONS = ("right", "down")
# Fill and line by role.
ROLES = {
    "trainable variable": ("#fef3c7", "#b45309"),
    "feed variable": ("#d1fae5", "#047857"),
    "constant": ("#f3f4f6", "#6b7280"),
    "op": ("#e0e7ff", "#4f46e5"),
    "result": ("#fce7f3", "#be185d"),
}
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
# From pale to dark, told apart by those who see no colours as well.
SHADES = ("#fef9c3", "#a7e0b5", "#41b6c4", "#2c6fb0", "#172a6e")
Palette = Mapping[str, tuple[str, str]]
Point = tuple[float, float]
Told = Callable[[Sequence[int]], str]


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


@dataclass(frozen=True)
class Card:
    """A node, or `count` of them folded, in a rectangle around (x, y).

    Attributes
    ----------
    key : int
        The first of `nodes`: as long as a node is the first of its card, the card is known by it.
    nodes : tuple of int
        Places in ``graph.nodes``.
    title, lines : str, tuple of str
        The node's own name, and what else is told: op and shape, then attributes.
    """

    key: int
    nodes: tuple[int, ...]
    title: str
    lines: tuple[str, ...]
    role: str
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Arrow:
    """From card `source` to card `target`, for `count` edges; one that is `back` reads a step before.

    Attributes
    ----------
    points : tuple of (x, y)
        The start, then three points for each cubic piece.
    label : str
        The slots, where they mean something; of an arrow back ``t-1``.
    """

    source: int
    target: int
    points: tuple[Point, ...]
    count: int
    label: str
    back: bool


@dataclass(frozen=True)
class Frame:
    """A scope: what is in it has names that begin with `name`; (x, y) is its middle."""

    name: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Scene:
    """A picture; lengths are CSS pixels, y goes down, `roles` are fill and line by role in their order of arrival."""

    cards: tuple[Card, ...]
    arrows: tuple[Arrow, ...]
    frames: tuple[Frame, ...]
    width: float
    height: float
    caption: str
    roles: Palette


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
    counted = f"{count(len(nodes), 'node')}, {count(numbers, 'trainable number')}"
    return [_item(node, scopes) for node in nodes], counted


def _item(node: Vertex, scopes: Collection[str]) -> Item:
    op, size, title = type(node).__name__, times(node.shape), node.name
    role = "op" if node.children else "result"
    if not node.parents:
        role = "trainable variable" if is_trained(node) else "feed variable"
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
    return Item(node, title, lines, role, node.parents, kind, like, scope=tuple(filter(None, inside.split("."))))


def attributes_of(node: Vertex) -> str:
    """Return what attributes say of an op, in a line; nothing if they only say how it is computed."""
    found = dict(node.attrs)
    ours = type(node).__module__.startswith("flowgrad.")
    words = []
    if ours and "start" in found and "stop" in found:
        words.append(f"[{found.pop('start')}:{found.pop('stop')}]")
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
    return _short(", ".join(words), 36)


def _plain(value: Any) -> str:
    """Write an attribute: 2 x 2 is 2 when both are alike, and so are paddings."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and value:
        parts = [_plain(part) for part in value]
        return parts[0] if len(parts) > 1 and len(set(parts)) == 1 else " x ".join(parts)
    return _short(str(value), 24)


def _short(text: str, longest: int = 34) -> str:
    text = legible(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def legible(text: str) -> str:
    """Return a text without what files cannot hold: control characters, and halves of pairs."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "�", text)


# -- composing ------------------------------------------------------------------------------------------------------


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
        return _short(first)
    ours, theirs = re.split(r"(\d+)", first), re.split(r"(\d+)", last)
    differ = [k for k, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    if len(ours) == len(theirs) and len(differ) == 1 and differ[0] % 2:
        k = differ[0]
        return _short("".join([*ours[:k], f"{ours[k]}…{theirs[k]}", *ours[k + 1 :]]))
    return f"{_short(first, 20)} … {_short(last, 20)}"


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


# Ems of letters that are not as others.
_EMS = {**dict.fromkeys(" .,:;|!'()[]ijltfrI·", 0.4), **dict.fromkeys("mwMW@%…×", 1.0)}


def breadth(text: str, size: float, bold: bool = False) -> float:
    """Return how broad a text is at most, in the usual fonts without serifs."""
    ems = sum(_EMS.get(c, 1.05 if c > "\u2e7f" else 0.74 if c.isupper() else 0.645) for c in text)
    return size * ems * (1.14 if bold else 1.0)


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


def pile(card: Card) -> float:
    """Return how far a folded card, which looks like a pile of them, goes on to the right and below."""
    return 6.0 if card.count > 1 else 0.0


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


def filled(scene: Scene, norms: Mapping[int, float], what: str) -> tuple[Scene, dict[int, str]]:
    """Return a fill for each card by the logarithm of a number, by key, and the scene with that told in its legend."""
    fills, marks = shades(norms)
    names = [f"{mark:.3g}" for mark in marks]
    roles = {**scene.roles, **{name: (SHADES[k],) * 2 for k, name in enumerate([f"{what} {names[0]}", *names[1:]])}}
    more = legend_rows(roles, scene.width) - legend_rows(scene.roles, scene.width)
    return replace(scene, roles=roles, height=scene.height + 18.0 * more), fills


def shades(numbers: Mapping[Any, float], decades: float = math.inf) -> tuple[dict[Any, str], list[float]]:
    """Return a colour for each number by its logarithm, and the numbers that `SHADES` stand for, one where all are alike.

    What is so many decades below the largest is as good as zero, and what is not finite as dark as can be.
    """
    known = sorted(math.log10(x) for x in numbers.values() if 0 < x < math.inf)
    if not known:
        return {k: SHADES[-1 if x else 0] for k, x in numbers.items()}, [0.0]
    high = max(known[-1], known[0] + 1e-9)
    low = max(known[0], high - decades)
    marks = [10 ** (low + (high - low) * k / 4) for k in (range(5) if known[-1] > known[0] else (0,))]

    def shade(x: float) -> str:
        part = 4 * (math.log10(max(x, 10**low)) - low) / (high - low) if math.isfinite(x) else 4.0
        k = min(int(part), 3)
        return mixed(SHADES[k], SHADES[k + 1], part - k)

    return {k: shade(x) for k, x in numbers.items()}, marks


def root_mean_square(numbers: Sequence[float]) -> float:
    """Return what a card has that stands for nodes with these numbers."""
    return math.hypot(*numbers) / math.sqrt(len(numbers))


def legend_width(roles: Palette) -> float:
    """Return how wide a legend of one row is."""
    return sum(breadth(role, LINE) + 44.0 for role in roles)


def legend_rows(roles: Palette, width: float) -> int:
    """Return how many rows a legend has."""
    return 1 + max((row for _, _, row in legend(roles, width)), default=0)


def legend(roles: Palette, width: float) -> list[tuple[str, float, int]]:
    """Return each role with where its sample begins: x, and the row."""
    found, x, row = [], MARGIN, 0
    for role in roles:
        long = breadth(role, LINE) + 44.0
        if x > MARGIN and x + long > width:
            x, row = MARGIN, row + 1
        found.append((role, x, row))
        x += long
    return found


# -- SVG ------------------------------------------------------------------------------------------------------------

_LIGHT = {"page": "#ffffff", "ink": "#111827", "faint": "#4b5563", "frame": "#9ca3af", "arrow": "#6b7280"}
_DARK = {"page": "#111827", "ink": "#f3f4f6", "faint": "#cbd5e1", "frame": "#6b7280", "arrow": "#9ca3af"}


def svg_of(
    scene: Scene,
    *,
    colours: Mapping[int, str] | None = None,
    hints: Mapping[int, str] | None = None,
) -> str:
    """Return a scene as SVG text, light or dark as the reader's system prefers.

    Each card is ``<g class="card" id="card-12" data-nodes="3 4 5">``, each arrow
    ``<path class="arrow" data-from="3" data-to="12">``.

    Parameters
    ----------
    scene : Scene
    colours, hints : mapping of int to str, optional
        By key of a card its fill, and what is told when one points at it.
    """
    colours, hints = colours or {}, hints or {}
    number = {role: _slug(role) for role in scene.roles}
    w, h = _n(scene.width), _n(scene.height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flowgrad" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        f'font-family="system-ui,Helvetica,Arial,sans-serif" role="img" aria-label="{escape(scene.caption)}">',
        f"<style>{_style(scene)}</style>",
        f'<rect class="page" width="{w}" height="{h}"/>',
    ]
    for frame in scene.frames:
        x, y = frame.x - frame.width / 2, frame.y - frame.height / 2
        parts.append(
            f'<g class="frame"><rect x="{_n(x)}" y="{_n(y)}" width="{_n(frame.width)}" height="{_n(frame.height)}" rx="8"/>'
            f'<text x="{_n(x + 8)}" y="{_n(y + 13)}">{escape(frame.name)}</text></g>'
        )
    role_of = {card.key: number[card.role] for card in scene.cards}
    for arrow in scene.arrows:
        ends = f'data-from="{arrow.source}" data-to="{arrow.target}"'
        back = " back" if arrow.back else ""
        thick = f' stroke-width="{_n(thickness(arrow))}"'
        parts.append(
            f'<path class="arrow{back} {role_of[arrow.source]}" {ends}{thick} d="{_path(arrow.points)}"/>'
            f'<path class="tip {role_of[arrow.source]}" {ends} d="{_tip(arrow.points)}"/>'
        )
    ports = port_labels(scene)
    for card in scene.cards:
        parts.append(_card(card, number[card.role], ports[card.key], colours.get(card.key), hints.get(card.key)))
    for x, y, label in back_labels(scene):
        parts.append(_text("back-label", label, x, y + 3.5, "middle"))
    base = scene.height - MARGIN - 18.0 * legend_rows(scene.roles, scene.width)
    for role, x, row in legend(scene.roles, scene.width):
        y = base + 18.0 * row
        parts.append(
            f'<g class="legend {number[role]}"><rect x="{_n(x)}" y="{_n(y - 6)}" width="18" height="12" rx="3"/>'
            f'<text x="{_n(x + 24)}" y="{_n(y + 4)}">{escape(role)}</text></g>'
        )
    parts.append(
        f'<text class="caption" x="{_n(MARGIN)}" y="{_n(scene.height - MARGIN + 4)}">{escape(scene.caption)}</text>'
    )
    return "\n".join([*parts, "</svg>"])


def _card(card: Card, role: str, ports: Sequence[Port], colour: str | None, hint: str | None) -> str:
    w, h = card.width, card.height
    x, y = card.x - w / 2, card.y - h / 2
    fill = f' style="fill:{escape(colour)}"' if colour else ""
    ink = f' style="fill:{readable_on(colour)}"' if colour else ""
    count = f" × {card.count:,}" if card.count > 1 else ""
    told = "\n".join([card.title + count, *card.lines, *([hint] if hint else [])])
    parts = [
        f'<g class="card {role}{" folded" if count else ""}" id="card-{card.key}" data-nodes="{" ".join(map(str, card.nodes))}">'
        f"<title>{escape(told)}</title>"
    ]
    for shift in (pile(card), pile(card) / 2, 0.0) if count else (0.0,):
        at = f'x="{_n(x + shift)}" y="{_n(y + shift)}"'
        parts.append(f'<rect {at} width="{_n(w)}" height="{_n(h)}" rx="7"{fill if not shift else ""}/>')
    for text in place_text(card, ports):
        if text.kind == "badge":
            long = breadth(text.text, LINE) + 10.0
            at = f'x="{_n(text.x - long)}" y="{_n(text.y - 8)}"'
            parts.append(f'<rect class="badge" {at} width="{_n(long)}" height="16" rx="8"/>')
            parts.append(_text("times", text.text, text.x - long / 2, text.y + 4, "middle"))
        else:
            parts.append(_text(text.kind, text.text, text.x, text.y + 4, text.anchor, ink))
    parts += [_text("port", port.text, port.x, port.y + 3.3, port.anchor, ink) for port in ports]
    return "".join([*parts, "</g>"])


def _text(kind: str, text: str, x: float, y: float, anchor: str = "start", more: str = "") -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


class Port(NamedTuple):
    """What is written where arrows come in."""

    text: str
    x: float
    y: float
    anchor: str


class Text(NamedTuple):
    """A line of a card: `kind` is title, line or badge, y its middle."""

    kind: str
    text: str
    x: float
    y: float
    anchor: str


def place_text(card: Card, ports: Sequence[Port]) -> list[Text]:
    """Return where the lines of a card go: beside its ports, or below them."""
    gutter = max((breadth(port.text, SMALL) for port in ports if port.anchor == "start"), default=0.0)
    head = 10.0 if any(port.anchor == "middle" for port in ports) else 0.0
    y = card.y + (head - 17.0 - 14.0 * len(card.lines)) / 2 + 8.5
    left, right = card.x - card.width / 2 + gutter + 8.0, card.x + card.width / 2 - 8.0
    x, anchor = ((left + right) / 2, "middle") if card.count == 1 else (left, "start")
    found = [Text("title", card.title, x, y, anchor)]
    found += [Text("line", line, x, y + 15.5 + 14.0 * k, anchor) for k, line in enumerate(card.lines)]
    return found + ([Text("badge", f"× {card.count:,}", right, y, "end")] if card.count > 1 else [])


def port_labels(scene: Scene) -> dict[int, list[Port]]:
    """Return by key of a card what is written in it where arrows come in."""
    found: dict[int, dict[tuple[float, float], Port]] = {card.key: {} for card in scene.cards}
    for arrow in scene.arrows:
        if arrow.label and not arrow.back:
            (x, y), (a, b) = arrow.points[-1], arrow.points[-2]
            down = abs(b - y) > abs(a - x)
            port = Port(arrow.label, x, y + 8.0, "middle") if down else Port(arrow.label, x + 4.0, y, "start")
            found[arrow.target].setdefault((round(x), round(y)), port)
    return {key: list(ports.values()) for key, ports in found.items()}


def back_labels(scene: Scene) -> list[tuple[float, float, str]]:
    """Return where arrows back are labelled: on their longest piece, near its middle, where fewest others pass."""
    found = []
    for arrow in scene.arrows:
        if arrow.back:
            others = [box for other in scene.arrows if other is not arrow for box in _boxes(other)]
            low_x, low_y, high_x, high_y = max(_boxes(arrow), key=lambda box: box[2] - box[0] + box[3] - box[1])
            parts = [0.5 + 0.05 * k * sign for k in range(8) for sign in (-1, 1)]
            spots = [(low_x + (high_x - low_x) * part, low_y + (high_y - low_y) * part) for part in parts]
            long, high = breadth(arrow.label, SMALL) / 2 + 2.0, SMALL
            passing = [
                sum(a < x + long and c > x - long and b < y + high and d > y - high for a, b, c, d in others)
                for x, y in spots
            ]
            found.append((*spots[passing.index(min(passing))], arrow.label))
    return found


def _boxes(arrow: Arrow) -> list[tuple[float, float, float, float]]:
    """Return where the cubic pieces of an arrow lie: each within its points."""
    pieces = [tuple(zip(*arrow.points[k : k + 4])) for k in range(0, len(arrow.points) - 3, 3)]
    return [(min(xs), min(ys), max(xs), max(ys)) for xs, ys in pieces]


def thickness(arrow: Arrow) -> float:
    """Return how thick an arrow is: by how many edges it stands for."""
    return 1.2 + 0.5 * min(3.0, len(str(arrow.count)) - 1)


def readable_on(colour: str) -> str:
    """Return black or white, whichever can be read on a colour ``#rrggbb``."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        return "#111827"
    r, g, b = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "#111827" if 0.3 * r + 0.59 * g + 0.11 * b > 140 else "#f9fafb"


def tip_points(points: Sequence[Point]) -> tuple[Point, Point, Point]:
    """Return the three corners of an arrow's head."""
    (x, y), (a, b) = points[-1], points[-2]
    long = ((x - a) ** 2 + (y - b) ** 2) ** 0.5 or 1.0
    u, v = (x - a) / long, (y - b) / long
    return (x, y), (x - 7 * u - 3 * v, y - 7 * v + 3 * u), (x - 7 * u + 3 * v, y - 7 * v - 3 * u)


def _tip(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in tip_points(points)) + "Z"


def _path(points: Sequence[Point]) -> str:
    rest = " ".join(f"{_n(x)} {_n(y)}" for x, y in points[1:])
    return f"M{_n(points[0][0])} {_n(points[0][1])}C{rest}"


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _slug(role: str) -> str:
    return "role-" + re.sub(r"\W+", "-", role)


def mixed(colour: str, other: str, part: float) -> str:
    """Return a colour with so much of another one in it."""
    pairs = zip(*([int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in (colour, other)))
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)


_RULES = f"""\
text {{fill: var(--ink); font-size: {LINE:g}px}}
.title {{font-size: {TITLE:g}px; font-weight: 700}}
.line, .caption, .legend text, .frame text {{fill: var(--faint)}}
.page {{fill: var(--page)}}
.port {{font-size: {SMALL:g}px; fill: var(--line)}}
.back-label {{font-size: {SMALL:g}px; paint-order: stroke; stroke: var(--page); stroke-width: 3px}}
.frame rect {{fill: none; stroke: var(--frame); stroke-dasharray: 4 3}}
.arrow {{fill: none; stroke: var(--line); opacity: .8}}
.back {{stroke-dasharray: 6 3}}
.tip {{fill: var(--line)}}
.card rect, .legend rect {{fill: var(--fill); stroke: var(--line); stroke-width: 1.2px}}
.card .badge {{fill: var(--line); stroke: none}}
.times {{fill: var(--page)}}"""


def _style(scene: Scene) -> str:
    """Return the rules: each begins with the class of pictures, for a page has more than those."""
    rules = re.sub(r"(^|, )(?=[.t])", r"\1.flowgrad ", _RULES, flags=re.MULTILINE)
    light, dark = [_variables(".flowgrad", _LIGHT)], [_variables(".flowgrad", _DARK)]
    for role, (fill, line) in scene.roles.items():
        name = f".flowgrad .{_slug(role)}"
        light.append(_variables(name, {"fill": fill, "line": line}))
        if fill != line:  # else it is a sample of what is filled
            fill, line = mixed(line, "#111827", 0.72), mixed(line, "#ffffff", 0.4)
        dark.append(_variables(name, {"fill": fill, "line": line}))
    return "\n".join([*light, "@media (prefers-color-scheme: dark) {", *dark, "}", rules])


def _variables(root: str, colours: Mapping[str, str]) -> str:
    return f"{root} {{{'; '.join(f'--{name}: {colour}' for name, colour in colours.items())}}}"
