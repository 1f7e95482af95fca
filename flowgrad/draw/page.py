"""A picture as one page of HTML that needs no network: a click opens what is folded, pointing at a card tells of it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection
from html import escape

from ..errors import GraphError
from .scene import Card, Scene

MOST = 400  # cards of a picture that a click opens
PICTURES = 60  # in a page; piles in piles that would need more stay closed

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{color-scheme: light dark}}
body {{margin: 0; font: 14px system-ui, Helvetica, Arial, sans-serif; background: #fff; color: #111827}}
header {{padding: 10px 24px; display: flex; gap: 16px; align-items: center; min-height: 28px}}
h1 {{font-size: 15px; margin: 0}}
main {{overflow: auto}}
button {{font: inherit; padding: 3px 10px}}
.openable {{cursor: pointer}}
.openable:hover rect, .openable:focus-visible rect {{stroke-width: 2.4px}}
@media (prefers-color-scheme: dark) {{body {{background: #111827; color: #f3f4f6}}}}
</style></head><body>
<header><h1>{title}</h1><span id="told">{told}</span><button id="shut" hidden>Fold again</button></header>
<main id="stage">
"""
_SCRIPT = """
const stage = document.getElementById("stage"), shut = document.getElementById("shut"), opens = %s
const folded = stage.innerHTML
function show(inner) {
  stage.innerHTML = inner
  shut.hidden = inner === folded
  for (const card of stage.querySelectorAll(".card.folded")) {
    const nodes = card.dataset.nodes.split(" "), key = nodes[0] + "-" + nodes[nodes.length - 1]
    if (!(key in opens)) continue
    card.classList.add("openable")
    card.setAttribute("tabindex", "0")
    const open = () => show(document.getElementById("opened-" + opens[key]).innerHTML)
    card.addEventListener("click", open)
    card.addEventListener("keydown", event => { if (event.key === "Enter") open() })
  }
}
shut.addEventListener("click", () => show(folded))
document.addEventListener("keydown", event => { if (event.key === "Escape") show(folded) })
show(folded)
"""


def page(scene: Scene, open_at: Callable[[Collection[int]], Scene], write: Callable[[Scene], str]) -> str:
    """Return the page of a scene; `open_at` gives the one with cards unfolded, `write` writes one as SVG."""
    opens: dict[str, int] = {}
    pictures: list[str] = []
    waiting = deque([scene])
    while waiting:
        shown = waiting.popleft()
        for card in shown.cards:
            if card.count == 1 or _name(card) in opens or len(pictures) == PICTURES:
                continue
            try:
                other = open_at({card.nodes[0], card.nodes[-1]})
            except GraphError:  # too many for a picture
                continue
            if len(other.cards) <= MOST:
                pile = {node: found.count for found in other.cards for node in found.nodes}
                fell = [c for c in shown.cards if pile[c.nodes[0]] < c.count or pile[c.nodes[-1]] < c.count]
                opens.update({_name(c): len(pictures) for c in fell})
                pictures.append(write(other))
                if len(fell) == 1:  # a pile of siblings, and no step of many
                    waiting.append(other)
    told = "A click on a pile of cards opens it." if opens else ""
    templates = [f'<template id="opened-{k}">{svg}</template>' for k, svg in enumerate(pictures)]
    title = escape(scene.caption.partition(", drawn as")[0])
    parts = [_HEAD.format(title=title, told=told), write(scene), "</main>", *templates]
    return "\n".join([*parts, f"<script>{_SCRIPT % json.dumps(opens)}</script></body></html>\n"])


def _name(card: Card) -> str:
    return f"{card.nodes[0]}-{card.nodes[-1]}"
