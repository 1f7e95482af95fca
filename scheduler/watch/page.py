"""The page of a watched step: the picture of the graph, what happened and the numbers, and what plays them."""

from __future__ import annotations

import html
import inspect
import json
from functools import cache
from importlib.resources import files
from typing import Any

from flowgrad.draw import scene_of, svg_of
from flowgrad.graph import Node, Variable

from .numbers import Numbers
from .run import Course

# More alike siblings than this are one card; the width to which a picture is wrapped, in pixels.
FOLD, WIDTH = 6, 1100


def write_page(numbers: Numbers, course: Course) -> str:
    """Return the page."""
    scene = scene_of(numbers.result.graph, numbers.result, fold=FOLD, width=WIDTH)
    told = {
        "result": numbers.result.index,
        "nodes": {n.index: _about(n) | numbers.nodes[n.index] for n in numbers.needed},
        "events": [
            [int(e.back), e.node, list(e.slots), round(e.start * 1e6), round(e.end * 1e6), e.lane]
            for e in course.events
        ],
        "lanes": course.lanes,
        "tasks": course.tasks,
        "leftOut": [numbers.left_out, numbers.cap],
    }
    title = f"One step of {numbers.result.name}"
    data = json.dumps(told, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    page = _template()
    for mark, text in (("@TITLE@", html.escape(title)), ("@PICTURE@", svg_of(scene)), ("@DATA@", data)):
        page = page.replace(mark, text)
    return page


@cache
def _template() -> str:
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _about(node: Node) -> dict[str, Any]:
    op = type(node)
    formula = getattr(op, "formula", None)
    summary = (inspect.getdoc(op) or "").partition("\n\n")[0].replace("\n", " ")
    return {
        "name": node.name,
        "op": op.__name__,
        "shape": list(node.shape),
        "parents": [p.index for p in node.parents],
        "formula": formula if formula and len(formula) < 80 else "",
        "summary": "" if isinstance(node, Variable) else summary,
    }
