"""A picture as data: cards, arrows and frames in pixels, where text goes, and colours; whatever paints it reads this."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

MARGIN = 24.0
TITLE, LINE, SMALL = 13.0, 11.0, 9.5  # sizes of text
INNER = 1.4  # between the two of a double line
SIGNS = 15.0  # between lines that tell signs
# From pale to dark, told apart by those who see no colours as well.
SHADES = ("#fef9c3", "#a7e0b5", "#41b6c4", "#2c6fb0", "#172a6e")
Palette = Mapping[str, tuple[str, str]]
Point = tuple[float, float]


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
        The slots, where they mean something, and where steps read the one before, ``t-1``, and of the first ``t = 0``.
    each : bool
        Whether both are piles, and each card reads one of its own.
    """

    source: int
    target: int
    points: tuple[Point, ...]
    count: int
    label: str
    back: bool
    each: bool


@dataclass(frozen=True)
class Frame:
    """A scope, or the part of it in a row: what is in it has names that begin with `name`; (x, y) is its middle.

    `title`, with how many numbers are trained in it, is written at the top, from `start` on.
    """

    name: str
    title: str
    start: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Scene:
    """A picture; lengths are CSS pixels, y goes down.

    `roles` are fill and line by role in their order of arrival, `signs` lines that tell the other signs that occur.
    """

    cards: tuple[Card, ...]
    arrows: tuple[Arrow, ...]
    frames: tuple[Frame, ...]
    width: float
    height: float
    caption: str
    roles: Palette
    signs: tuple[str, ...]


# Ems of letters that are not as others.
_EMS = {**dict.fromkeys(" .,:;|!'()[]ijltfrI·", 0.4), **dict.fromkeys("mwMW@%…×", 1.0)}


def breadth(text: str, size: float, bold: bool = False) -> float:
    """Return how broad a text is at most, in the usual fonts without serifs."""
    ems = sum(_EMS.get(c, 1.05 if c > "\u2e7f" else 0.74 if c.isupper() else 0.645) for c in text)
    return size * ems * (1.14 if bold else 1.0)


def pile(card: Card) -> float:
    """Return how far a folded card, which looks like a pile of them, goes on to the right and below."""
    return 6.0 if card.count > 1 else 0.0


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


def foot(scene: Scene) -> tuple[list[tuple[str, float, float]], list[tuple[str, str, float]]]:
    """Return what is below a picture: each role with where its sample begins, and lines, a sign or the caption, with y."""
    base = scene.height - MARGIN
    lines = [("sign", sign, base - SIGNS * (len(scene.signs) - k)) for k, sign in enumerate(scene.signs)]
    top = base - SIGNS * len(scene.signs) - 18.0 * legend_rows(scene.roles, scene.width)
    samples = [(role, x, top + 18.0 * row) for role, x, row in legend(scene.roles, scene.width)]
    return samples, [*lines, ("caption", scene.caption, base)]


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
        if arrow.label:
            (x, y), (a, b) = arrow.points[-1], arrow.points[-2]
            down = abs(b - y) > abs(a - x)
            port = Port(arrow.label, x, y + 8.0, "middle") if down else Port(arrow.label, x + 4.0, y, "start")
            found[arrow.target].setdefault((round(x), round(y)), port)
    return {key: list(ports.values()) for key, ports in found.items()}


def thickness(arrow: Arrow) -> float:
    """Return how thick an arrow is: by how many edges it stands for; a double line with the gap of `INNER` in it."""
    return INNER + 2.2 if arrow.each else 1.2 + 0.5 * min(3.0, len(str(arrow.count)) - 1)


def shaft(arrow: Arrow) -> tuple[Point, ...]:
    """Return the points of an arrow's line: a double one ends in its head, which is narrower than it at the end."""
    (x, y), (a, b) = arrow.points[-1], arrow.points[-2]
    cut = min(5.0 / (math.hypot(x - a, y - b) or 1.0), 1.0) if arrow.each else 0.0
    return (*arrow.points[:-1], (x + (a - x) * cut, y + (b - y) * cut))


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


def mixed(colour: str, other: str, part: float) -> str:
    """Return a colour with so much of another one in it."""
    pairs = zip(*([int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in (colour, other)))
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)
