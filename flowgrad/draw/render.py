"""Boxes and arrows on paper, with matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..inputs import file_of
from .fold import Box, Edge
from .layout import Layout, lay_out, port_offset

FORMATS = ("png", "svg", "pdf")
MARGIN = 0.35
LEGEND = 0.55
MAX_PIXELS = 30_000  # per side
MAX_AREA = 120e6
INK = "#1f2937"
FAINT = "#6b7280"
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

Palette = Mapping[str, tuple[str, str]]


def palette_of(known: Palette, roles: Sequence[str]) -> Palette:
    """Return fill and line colour by role; unknown roles get spare pairs in their order of arrival."""
    found = {role: known.get(role) for role in roles}
    spare = cycle(pair for pair in SPARE if pair not in found.values())
    return {role: pair or next(spare) for role, pair in found.items()}


def box_size(box: Box) -> tuple[float, float]:
    """Return the width and height of a box, in inches, from its text and its ports."""
    title = 0.092 * len(box.title) + (0.085 * len(f"× {box.count}") + 0.22 if box.count > 1 else 0.0)
    gutter = 0.12 + (0.055 * max(map(len, box.ports)) if any(box.ports) else 0.0)
    width = max(0.8, title + 0.3, 0.068 * len(box.detail) + 0.24) + gutter
    height = 0.5 if box.detail else 0.36
    return width, max(height, 0.15 * len(box.ports) + 0.12)


def render(
    path: str | os.PathLike[str],
    boxes: Sequence[Box],
    edges: Sequence[Edge],
    colours: Palette,
    caption: str,
) -> Path:
    """Draw a picture file, whose ending decides the format, with a line of text below; return its path.

    Raises
    ------
    DataError
        When matplotlib is missing, the ending is unknown, or the file cannot be written.
    """
    path = file_of(path)
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise DataError(f"cannot draw to {str(path)!r}: let the name end in .{', .'.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("drawing needs matplotlib: pip install 'flowgrad[viz]'") from error
    sizes = [box_size(box) for box in boxes]
    layout = lay_out(boxes, edges, sizes)
    palette = palette_of(colours, [box.role for box in boxes])
    legend = sum(0.054 * len(role) + 0.48 for role in palette)
    width = max(layout.width, legend, 0.055 * len(caption)) + 2 * MARGIN
    height = layout.height + 2 * MARGIN + LEGEND
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    left = (width - layout.width) / 2
    axes.set(xlim=(-left, width - left), ylim=(height - MARGIN, -MARGIN))
    axes.axis("off")
    for edge, route in zip(edges, layout.routes):
        _draw_edge(axes, route, edge, palette[boxes[edge.source].role][1])
    for box, centre, size in zip(boxes, layout.centres, sizes):
        _draw_box(axes, box, centre, size, palette[box.role])
    _draw_legend(axes, layout, palette, caption, left)
    dpi = min(160.0, MAX_PIXELS / width, MAX_PIXELS / height, math.sqrt(MAX_AREA / (width * height)))
    _save(figure, path, suffix, dpi)
    return path


def _write(axes: Any, x: float, y: float, text: str, **look: Any) -> None:
    """Write a text as it is: a dollar sign in a name begins no formula."""
    axes.text(x, y, text, parse_math=False, **look)


def _draw_edge(axes: Any, route: Sequence[tuple[float, float]], edge: Edge, colour: str) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    points, codes = [route[0]], [Curve.MOVETO]
    for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(route)):
        if i % 2:  # straight across a column, curved between columns
            points.append((x1, y1))
            codes.append(Curve.LINETO)
        else:
            bend = (x1 - x0) / 2
            points += [(x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
            codes += [Curve.CURVE4] * 3
    axes.add_patch(
        FancyArrowPatch(
            path=Curve(points, codes),
            arrowstyle="-|>,head_length=4.5,head_width=2.2",
            linewidth=0.9 + 0.5 * math.log10(edge.count),
            color=colour,
            alpha=0.75,
            shrinkA=0,
            shrinkB=0,
            joinstyle="miter",
            zorder=1,
        )
    )


def _draw_box(
    axes: Any, box: Box, centre: tuple[float, float], size: tuple[float, float], colours: tuple[str, str]
) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height), (fill, line) = centre, size, colours
    for layer in (2, 1, 0) if box.count > 1 else (0,):  # a folded box looks like a pile of cards
        shift = 0.045 * layer
        style = f"round,pad=0,rounding_size={min(0.1, height / 4)}"
        corner = (x - width / 2 + shift, y - height / 2 - shift)
        axes.add_patch(FancyBboxPatch(corner, width, height, style, fc=fill, ec=line, lw=1.1, zorder=2))
    gutter = 0.0
    if any(box.ports):
        gutter = 0.05 + 0.055 * max(map(len, box.ports))
        for port, label in enumerate(box.ports):
            spot = (x - width / 2 + 0.06, y + port_offset(box, port))
            _write(axes, *spot, label, fontsize=5.5, color=line, ha="left", va="center_baseline", zorder=3)
    middle = x + gutter / 2
    rows = (-0.085, 0.105) if box.detail else (0.0, 0.0)
    title = {"fontsize": 9, "fontweight": "bold", "color": INK, "va": "center", "zorder": 3}
    if box.count > 1:
        badge = {"boxstyle": "round,pad=0.18", "fc": line, "ec": "none"}
        right = x + width / 2 - 0.09
        _write(axes, x - width / 2 + gutter + 0.1, y + rows[0], box.title, ha="left", **title)
        many = {**title, "fontsize": 7.5, "color": "white", "bbox": badge}
        _write(axes, right, y + rows[0], f"× {box.count}", ha="right", **many)
    else:
        _write(axes, middle, y + rows[0], box.title, ha="center", **title)
    if box.detail:
        _write(axes, middle, y + rows[1], box.detail, fontsize=7, color="#4b5563", ha="center", va="center", zorder=3)


def _draw_legend(axes: Any, layout: Layout, palette: Palette, caption: str, left: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    y = layout.height + 0.35
    x = -left + MARGIN
    for role, (fill, line) in palette.items():
        axes.add_patch(
            FancyBboxPatch((x, y - 0.06), 0.18, 0.12, "round,pad=0,rounding_size=0.03", fc=fill, ec=line, lw=0.9)
        )
        _write(axes, x + 0.26, y, role, fontsize=7, color=FAINT, ha="left", va="center")
        x += 0.054 * len(role) + 0.48
    _write(axes, -left + MARGIN, y + 0.24, caption, fontsize=7, color=FAINT, ha="left", va="center")


def _save(figure: Any, path: Path, suffix: str, dpi: float) -> None:
    """Write to a temporary file and rename it, without anything that depends on the hour."""
    import matplotlib

    temporary = path.with_name(f".{path.name}.partial")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[suffix]
    try:
        with matplotlib.rc_context({"svg.hashsalt": "flowgrad"}):
            figure.savefig(temporary, format=suffix, dpi=dpi, metadata=undated)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot write {str(path)!r}: {error.strerror or error}: choose another place") from error
    finally:
        with suppress(OSError):  # such as that the folder is a file
            temporary.unlink(missing_ok=True)
