"""The graph on the page: a scene painted by bokeh, whose piles open by a click."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bokeh.models import Bezier, ColumnDataSource, CustomJS, HoverTool, Patches, Rect, TapTool, Text
from bokeh.plotting import figure

from flowgrad.draw import Scene
from flowgrad.draw.scene import (
    INNER,
    LINE,
    SMALL,
    TITLE,
    Card,
    breadth,
    mixed,
    place_text,
    port_labels,
    readable_on,
    root_mean_square,
    shades,
    shaft,
    thickness,
    tip_points,
)

from .graph import Took
from .look import DARK, LIGHT

# What cards may be filled by: place in a node's numbers, and what they are.
BY = {"kind": None, "value norm": 0, "cotangent norm": 1, "time": 2}
HOVER = """<div style="max-width: 420px; font: 12px/1.5 system-ui, sans-serif; padding: 6px 10px; margin: -6px;
background: var(--fg-card); color: var(--fg-ink)"><b>@title</b> <span>@count</span><div>@lines</div>
<div><code>@formula</code></div><div style="color: var(--fg-faint)">@numbers</div><div>@kept</div>
<div style="color: var(--fg-faint); white-space: pre-line">@key</div></div>"""
# Other cards are under the mouse, and what pointed at one would stay until the mouse moves.
MOVED = """
document.body.classList.add("moved")
document.addEventListener("pointermove", () => document.body.classList.remove("moved"), {once: true})
"""
# Marks of cards, by what is kept; white can be read on them.
KEPT = {"value": "#0f766e", "Jacobian": "#7c3aed"}
# Edges back of a node whose keys are told.
EDGES = 3
# Powers of ten that colours tell apart: what is smaller is as good as zero.
DECADES = 6.0
# Roles of what nobody changes; cotangents of labels are huge, and would have most of the colours for themselves.
UNLEARNT = ("feed", "constant")
MARK = 12.0  # height of a mark
_ANCHOR = {"start": "left", "middle": "center", "end": "right"}


class Picture:
    """A figure whose pixels are those of a scene."""

    def __init__(self) -> None:
        self.frames, self.arrows, self.tips, self.piles, self.cards, self.badges, self.texts = (
            ColumnDataSource() for _ in range(7)
        )
        self.figure = fig = figure(
            width=800,
            height=200,
            x_range=(0, 800),
            y_range=(200, 0),
            tools="",
            toolbar_location=None,
            min_border=0,
            sizing_mode="fixed",
            name="graph",
        )
        fig.axis.visible = fig.grid.visible = False
        fig.min_border_left = fig.min_border_right = fig.min_border_top = fig.min_border_bottom = 0
        box = {"x": "x", "y": "y", "width": "w", "height": "h", "fill_color": "fill", "line_color": "line"}
        fig.add_glyph(self.frames, _rect(8, **{**box, "fill_color": None}, line_dash=[4, 3]))
        ends = {name: name for name in ("x0", "y0", "x1", "y1", "cx0", "cy0", "cx1", "cy1")}
        fig.add_glyph(
            self.arrows, Bezier(**ends, line_color="line", line_width="wide", line_alpha="alpha", line_dash="dash")
        )
        fig.add_glyph(self.tips, Patches(xs="xs", ys="ys", fill_color="line", line_color=None))
        plain = _rect(7, **box, line_width=1.2)
        fig.add_glyph(self.piles, plain)
        self.shown = fig.add_glyph(self.cards, plain, selection_glyph=plain, nonselection_glyph=plain)
        fig.add_glyph(self.badges, _rect(8, **{**box, "line_color": None}))
        style = {"text_font_size": "size", "text_font_style": "style", "text_color": "ink", "text_align": "align"}
        font = {"value": "system-ui, Helvetica, Arial, sans-serif"}
        fig.add_glyph(self.texts, Text(x="x", y="y", text="text", text_baseline="middle", text_font=font, **style))
        place = {"attachment": "vertical", "show_arrow": False}
        fig.add_tools(HoverTool(renderers=[self.shown], tooltips=HOVER, **place))
        fig.js_on_change("height", CustomJS(code=MOVED))
        fig.add_tools(TapTool(renderers=[self.shown]))
        for source, names in (
            (self.frames, "x y w h line"),
            (self.arrows, "x0 y0 x1 y1 cx0 cy0 cx1 cy1 line wide alpha dash"),
            (self.tips, "xs ys line"),
            (self.piles, "x y w h fill line"),
            (self.cards, "x y w h fill line title count lines formula numbers kept key nodes"),
            (self.badges, "x y w h fill"),
            (self.texts, "x y text size style ink align"),
        ):
            source.data = {name: [] for name in names.split()}

    def paint(self, scene: Scene, rows: Sequence[Any], told: Told, dark: bool) -> None:
        """Paint all of a scene."""
        c = DARK if dark else LIGHT
        roles = {role: _dark(pair[1]) if dark else pair for role, pair in scene.roles.items()}
        fig, w, h = self.figure, math.ceil(scene.width), _height(scene)
        if (fig.width, fig.height) != (w, h):
            fig.update(width=w, height=h)
            fig.x_range.update(start=0, end=w)
            fig.y_range.update(start=h, end=0)
        role_of = {card.key: card.role for card in scene.cards}
        texts: list[tuple[Any, ...]] = []
        frames = []
        for f in scene.frames:
            frames.append((f.x, f.y, f.width, f.height, c["faint"]))
            at = f.start, f.y - f.height / 2 + 9
            texts.append((*at, f.title, f"{LINE}px", "normal", c["faint"], "left"))
        arrows, tips = [], []
        for arrow in scene.arrows:
            line, p = roles[role_of[arrow.source]][1], shaft(arrow)
            for stroke in [(line, thickness(arrow), 0.8), (c["card"], INNER, 1.0)][: 1 + arrow.each]:
                for k in range(0, len(p) - 3, 3):
                    ends = (*p[k], *p[k + 3], *p[k + 1], *p[k + 2])
                    arrows.append((*ends, *stroke, [6, 3] if arrow.back else []))
            corners = tip_points(arrow.points)
            tips.append(([x for x, _ in corners], [y for _, y in corners], line))
        ports = port_labels(scene)
        piles, cards, badges = [], [], []
        for card in scene.cards:
            fill, line = roles[card.role]
            fill = told.fills.get(card.key, fill)
            ink = readable_on(fill) if card.key in told.fills else None
            look = (card.width, card.height, fill, line)
            piles += [(card.x + s, card.y + s, *look) for s in (6.0, 3.0) if card.count > 1]
            count = f"\N{MULTIPLICATION SIGN} {card.count:,}, a click opens them" if card.count > 1 else ""
            formula = rows[card.nodes[0]][7]
            numbers, marks = told.numbers(card.nodes), told.marks(card.nodes)
            kept = "".join(f"{what} kept on the cluster" + f" of {n:,}" * (card.count > 1) + ". " for what, n in marks)
            hints = (card.title, count, " · ".join(card.lines), formula, numbers, kept, told.keys(card.nodes))
            cards.append((card.x, card.y, *look, *hints, list(card.nodes)))
            for x, y, long, text, colour in place_marks(card, marks):
                badges.append((x, y, long, MARK, colour))
                texts.append((x, y, text, f"{SMALL}px", "normal", "#ffffff", "center"))
            for t in place_text(card, ports[card.key]):
                if t.kind == "badge":
                    long = breadth(t.text, LINE) + 10.0
                    badges.append((t.x - long / 2, t.y, long, 16.0, line))
                    texts.append((t.x - long / 2, t.y, t.text, f"{LINE}px", "normal", c["card"], "center"))
                    continue
                title = t.kind == "title"
                font = (f"{TITLE if title else LINE}px", "bold" if title else "normal")
                texts.append((t.x, t.y, t.text, *font, ink or c["ink" if title else "faint"], _ANCHOR[t.anchor]))
            for port in ports[card.key]:
                texts.append((port.x, port.y, port.text, f"{SMALL}px", "normal", ink or line, _ANCHOR[port.anchor]))
        for source, found in (
            (self.frames, frames),
            (self.arrows, arrows),
            (self.tips, tips),
            (self.piles, piles),
            (self.cards, cards),
            (self.badges, badges),
            (self.texts, texts),
        ):
            columns = zip(*found) if found else [[] for _ in source.data]
            source.data = {name: list(column) for name, column in zip(source.data, columns)}


def place_marks(card: Card, marks: Sequence[tuple[str, int]]) -> list[tuple[float, float, float, str, str]]:
    """Return where marks of a card go, side by side on its lower edge, below all text: centre, breadth, text and colour."""
    texts = [f"{what} × {n:,}" if card.count > 1 else what for what, n in marks]
    longs = [breadth(text, SMALL) + 10.0 for text in texts]
    x, y = card.x - (sum(longs) + 3.0 * (len(longs) - 1)) / 2, card.y + card.height / 2 + 2.0
    placed = []
    for (what, _), text, long in zip(marks, texts, longs):
        placed.append((x + long / 2, y, long, text, KEPT[what]))
        x += long + 3.0
    return placed


class Told:
    """What the numbers of a run say of cards: fills, by what is chosen, and words.

    Parameters
    ----------
    key : str
        Of the latest task that computed steps, in which all nodes were.
    took : mapping, optional
        By place of a row what its own tasks took, where nodes have tasks of their own.
    kept : mapping, optional
        Places of rows by what is kept of them.
    """

    def __init__(
        self,
        scene: Scene | None,
        rows: Sequence[Any],
        values: dict[int, Any],
        by: str,
        key: str,
        took: Mapping[int, Took] | None = None,
        kept: Mapping[str, Collection[int]] | None = None,
    ):
        self.rows, self.values, self.key = rows, values, key
        self.took, self.kept = took or {}, kept or {}
        self.fills: dict[int, str] = {}
        self.least, self.most, self.clipped = math.nan, math.nan, False
        place = BY.get(by)
        if scene is None or place is None:
            return
        cards = [card for card in scene.cards if place != BY["cotangent norm"] or card.role not in UNLEARNT]
        found = {card.key: self._number(card.nodes, place) for card in cards}
        if any(x > 0 for x in found.values()):
            self.fills, marks = shades(found, DECADES)
            self.least, self.most = marks[0], marks[-1]
            self.clipped = min(found.values()) < self.least * (1 - 1e-9)

    def _number(self, nodes: Sequence[int], place: int) -> float:
        """Return what a card has: of several nodes the root of the mean square, of times the sum."""
        if place == BY["time"]:
            return math.fsum(self._times(nodes))
        those = [self.values[self.rows[k][0]][place] for k in nodes if self.rows[k][0] in self.values]
        return root_mean_square(those) if those else 0.0

    def _times(self, nodes: Sequence[int]) -> tuple[float, float]:
        """Return the microseconds of nodes, forward and back: of their tasks, or of the interpreter, which tells none back."""
        if self.took:
            tasks = [self.took[k] for k in nodes if k in self.took]
            return math.fsum(t.forward for t in tasks), math.fsum(t.back for t in tasks)
        return math.fsum(self.values[self.rows[k][0]][2] for k in nodes if self.rows[k][0] in self.values), 0.0

    def numbers(self, nodes: Sequence[int]) -> str:
        """Return what is said of nodes: norms, the least and the largest, and their time."""
        those = [self.values[self.rows[k][0]] for k in nodes if self.rows[k][0] in self.values]
        said = []
        for place, what in enumerate(("value", "cotangent") if those else ()):
            low, high = min(t[place] for t in those), max(t[place] for t in those)
            said.append(f"|{what}| {low:.3g}" + (f" to {high:.3g}" if low != high else ""))
        times = [f"{t:,.0f} µs {way}" for t, way in zip(self._times(nodes), ("forward", "back")) if t]
        by = " by dask's tasks" if self.took and times else ""
        return " · ".join([*said, *([", ".join(times) + by] if times else [])])

    def keys(self, nodes: Sequence[int]) -> str:
        """Return the keys of the latest tasks of a node, of several of the first; where it has none, of the step's."""
        took = next((self.took[k] for k in nodes if k in self.took), None)
        if took is None:
            return f"computed in tasks such as {self.key}" if self.key else ""
        more = [f"and {len(took.edges) - EDGES:,} more edges back"] if len(took.edges) > EDGES else []
        return "\n".join([*filter(None, [took.value]), *took.edges[:EDGES], *more])

    def marks(self, nodes: Sequence[int]) -> list[tuple[str, int]]:
        """Return what is kept of nodes, and of how many."""
        found = [(what, sum(k in places for k in nodes)) for what, places in self.kept.items()]
        return [(what, n) for what, n in found if n]


def _height(scene: Scene) -> int:
    """Return the height without the legend, which the page has elsewhere."""
    lowest = [card.y + card.height / 2 for card in scene.cards] + [f.y + f.height / 2 for f in scene.frames]
    return math.ceil(max([*lowest, *(y for arrow in scene.arrows for _, y in arrow.points)])) + 14


def _rect(radius: int, **look: Any) -> Rect:
    """Return a rectangle, with round corners where bokeh has them."""
    return Rect(**look, **({"border_radius": radius} if hasattr(Rect, "border_radius") else {}))


def _dark(line: str) -> tuple[str, str]:
    return mixed(line, DARK["card"], 0.72), mixed(line, "#ffffff", 0.4)
