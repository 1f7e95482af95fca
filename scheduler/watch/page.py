"""The page of a watched step: the picture of the graph, what happened and the numbers, and what plays them."""

from __future__ import annotations

import html
import json
from functools import cache
from importlib.resources import files
from typing import Any

from flowgrad.draw import scene_of, svg_of
from flowgrad.graph import Constant, Node, Variable

from .numbers import Numbers, summary_of
from .run import Course

# More alike siblings than this are one card; the width to which a picture is wrapped, in pixels.
FOLD, WIDTH = 6, 1100


def write_page(numbers: Numbers, course: Course, about: str = "") -> str:
    """Return the page; `about` says which sample it is."""
    scene = scene_of(numbers.result.graph, numbers.result, fold=FOLD, width=WIDTH)
    told = {
        "result": numbers.result.index,
        "nodes": {n.index: _about(n) | numbers.nodes[n.index] for n in numbers.needed},
        "events": [
            [int(e.back), e.node, e.slots, _ticks(e.end), [(_ticks(s.start), _ticks(s.end), s.lane) for s in e.spans]]
            for e in course.events
        ],
        "lanes": course.lanes,
        "leftOut": [numbers.left_out, numbers.cap],
    }
    title = f"{numbers.result.name}: one sample, forward and back, without an update"
    data = json.dumps(told, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    page = _template()
    for mark, text in {
        "@TITLE@": html.escape(title),
        "@ABOUT@": html.escape(about),
        "@PICTURE@": svg_of(scene),
        "@DATA@": data,
    }.items():
        page = page.replace(mark, text)
    return page


@cache
def _template() -> str:
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _ticks(seconds: float) -> int:
    return round(seconds * 1e6)


def _about(node: Node) -> dict[str, Any]:
    op = type(node)
    formula = getattr(op, "formula", None)
    return {
        "name": node.name,
        "op": op.__name__,
        "shape": list(node.shape),
        "parents": [p.index for p in node.parents],
        "formula": formula if formula and len(formula) < 80 else "",
        "summary": "" if isinstance(node, Variable) else summary_of(op),
        "fed": isinstance(node, Variable) and not isinstance(node, Constant) and not node.trainable,
    }
