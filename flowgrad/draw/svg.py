"""A scene as SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from .scene import (
    INNER,
    LINE,
    MARGIN,
    SMALL,
    TITLE,
    Card,
    Point,
    Port,
    Scene,
    breadth,
    foot,
    mixed,
    pile,
    place_text,
    port_labels,
    readable_on,
    shaft,
    thickness,
    tip_points,
)

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
            f'<text x="{_n(frame.start)}" y="{_n(y + 13)}">{escape(frame.title)}</text></g>'
        )
    role_of = {card.key: number[card.role] for card in scene.cards}
    for arrow in scene.arrows:
        ends = f'data-from="{arrow.source}" data-to="{arrow.target}"'
        back = " back" if arrow.back else ""
        inner = f'<path class="inner" d="{_path(shaft(arrow))}"/>' if arrow.each else ""
        thick = f' stroke-width="{_n(thickness(arrow))}"'
        parts.append(
            f'<path class="arrow{back} {role_of[arrow.source]}" {ends}{thick} d="{_path(shaft(arrow))}"/>'
            f'{inner}<path class="tip {role_of[arrow.source]}" {ends} d="{_tip(arrow.points)}"/>'
        )
    ports = port_labels(scene)
    for card in scene.cards:
        parts.append(_card(card, number[card.role], ports[card.key], colours.get(card.key), hints.get(card.key)))
    samples, lines = foot(scene)
    for role, x, y in samples:
        parts.append(
            f'<g class="legend {number[role]}"><rect x="{_n(x)}" y="{_n(y - 6)}" width="18" height="12" rx="3"/>'
            f'<text x="{_n(x + 24)}" y="{_n(y + 4)}">{escape(role)}</text></g>'
        )
    parts += [_text(kind, line, MARGIN, y + 4) for kind, line, y in lines]
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


def _tip(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in tip_points(points)) + "Z"


def _path(points: Sequence[Point]) -> str:
    rest = " ".join(f"{_n(x)} {_n(y)}" for x, y in points[1:])
    return f"M{_n(points[0][0])} {_n(points[0][1])}C{rest}"


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _slug(role: str) -> str:
    return "role-" + re.sub(r"\W+", "-", role)


_RULES = f"""\
text {{fill: var(--ink); font-size: {LINE:g}px}}
.title {{font-size: {TITLE:g}px; font-weight: 700}}
.line, .caption, .sign, .legend text, .frame text {{fill: var(--faint)}}
.sign {{font-size: {SMALL:g}px}}
.page {{fill: var(--page)}}
.port {{font-size: {SMALL:g}px; fill: var(--line)}}
.frame rect {{fill: none; stroke: var(--frame); stroke-dasharray: 4 3}}
.arrow {{fill: none; stroke: var(--line); opacity: .8}}
.back {{stroke-dasharray: 6 3}}
.inner {{fill: none; stroke: var(--page); stroke-width: {INNER:g}px}}
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
