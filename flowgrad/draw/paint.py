"""A scene as a file: PNG and PDF by matplotlib, SVG and a page of HTML as they are."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..inputs import file_of
from .scene import (
    INNER,
    LINE,
    MARGIN,
    SMALL,
    TITLE,
    Card,
    Port,
    Scene,
    breadth,
    foot,
    pile,
    place_text,
    port_labels,
    readable_on,
    shaft,
    thickness,
    tip_points,
)

FORMATS = ("png", "svg", "pdf", "html")
SHARP = 2.0  # pixels of a PNG for one of the scene
MAX_PIXELS = 30_000  # per side
MAX_AREA = 120e6
INK, FAINT, FRAME_LINE = "#111827", "#4b5563", "#9ca3af"
POINTS = 0.72  # of a font or line, for a pixel, at 100 pixels an inch


def format_of(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Return the path of a picture file, and the format that its ending decides.

    Raises
    ------
    DataError
        When the ending is unknown, or matplotlib is needed and missing.
    """
    path = file_of(path)
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise DataError(f"cannot draw to {str(path)!r}: let the name end in .{', .'.join(FORMATS)}")
    return path, suffix


def write(path: Path, content: bytes) -> Path:
    """Write a file under another name and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot write {str(path)!r}: {error.strerror or error}: choose another place") from error
    finally:
        with suppress(OSError):  # such as that the folder is a file
            temporary.unlink(missing_ok=True)
    return path


def painted(scene: Scene, colours: Mapping[int, str], suffix: str) -> bytes:
    """Return a scene as PNG or PDF, without anything that depends on the hour."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(
            f"drawing .{suffix} needs matplotlib: pip install 'flowgrad[viz]'; .svg and .html need nothing"
        ) from error
    figure = Figure(figsize=(scene.width / 100, scene.height / 100), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.axis("off")
    _Painter(axes, scene).all(colours)
    w, h = scene.width, scene.height
    scale = min(SHARP, MAX_PIXELS / w, MAX_PIXELS / h, math.sqrt(MAX_AREA / (w * h)))
    file = BytesIO()
    undated: dict[str, Any] = {"CreationDate": None} if suffix == "pdf" else {}
    figure.savefig(file, format=suffix, dpi=100 * scale, metadata=undated)
    return file.getvalue()


class _Painter:
    """Paints what `svg_of` writes."""

    def __init__(self, axes: Any, scene: Scene) -> None:
        self.axes, self.scene = axes, scene

    def text(self, x: float, y: float, text: str, size: float, **look: Any) -> None:
        """Write a text as it is: a dollar sign in a name begins no formula."""
        look = {"va": "center_baseline", "color": INK, **look}
        self.axes.text(x, y, text, parse_math=False, fontsize=size * POINTS, **look)

    def rectangle(self, x: float, y: float, w: float, h: float, r: float, zorder: float = 2, **look: Any) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = f"round,pad=0,rounding_size={min(r, h / 2)}"
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, style, zorder=zorder, lw=1.2 * POINTS, **look))

    def all(self, colours: Mapping[int, str]) -> None:
        from matplotlib.patches import PathPatch, Polygon
        from matplotlib.path import Path as Curve

        scene = self.scene
        role_of = {card.key: card.role for card in scene.cards}
        for frame in scene.frames:
            x, y = frame.x - frame.width / 2, frame.y - frame.height / 2
            self.rectangle(x, y, frame.width, frame.height, 8, fc="none", ec=FRAME_LINE, ls=(0, (4, 3)), zorder=0)
            self.text(frame.start, y + 9, frame.title, LINE, color=FAINT, ha="left")
        for arrow in scene.arrows:
            line = scene.roles[role_of[arrow.source]][1]
            curve = Curve(shaft(arrow), [Curve.MOVETO] + [Curve.CURVE4] * (len(arrow.points) - 1))
            dashes = (0, (5, 2.5)) if arrow.back else "-"
            look = {"fc": "none", "ec": line, "lw": thickness(arrow) * POINTS, "alpha": 0.8, "ls": dashes}
            self.axes.add_patch(PathPatch(curve, zorder=1, **look))
            if arrow.each:
                self.axes.add_patch(PathPatch(curve, zorder=1, fc="none", ec="white", lw=INNER * POINTS))
            self.axes.add_patch(Polygon(tip_points(arrow.points), closed=True, fc=line, ec="none", zorder=1.5))
        labels = port_labels(scene)
        for card in scene.cards:
            self.card(card, labels[card.key], colours.get(card.key))
        samples, lines = foot(scene)
        for role, x, y in samples:
            fill, line = scene.roles[role]
            self.rectangle(x, y - 6, 18, 12, 3, fc=fill, ec=line)
            self.text(x + 24, y, role, LINE, color=FAINT, ha="left")
        for kind, line, y in lines:
            self.text(MARGIN, y, line, SMALL if kind == "sign" else LINE, color=FAINT, ha="left")

    def card(self, card: Card, ports: Sequence[Port], colour: str | None) -> None:
        fill, line = self.scene.roles[card.role]
        x, y = card.x - card.width / 2, card.y - card.height / 2
        for shift in (pile(card), pile(card) / 2, 0.0) if card.count > 1 else (0.0,):
            fc = colour if colour and not shift else fill
            self.rectangle(x + shift, y + shift, card.width, card.height, 7, fc=fc, ec=line)
        for text in place_text(card, ports):
            look: dict[str, Any] = {"ha": _ALIGN[text.anchor], "zorder": 4}
            if text.kind == "badge":
                long = breadth(text.text, LINE) + 10.0
                self.rectangle(text.x - long, text.y - 8, long, 16, 8, fc=line, ec="none", zorder=3)
                self.text(text.x - long / 2, text.y, text.text, LINE, color="white", ha="center", zorder=4)
            elif text.kind == "title":
                ink = readable_on(colour) if colour else INK
                self.text(text.x, text.y, text.text, TITLE, color=ink, fontweight="bold", **look)
            else:
                self.text(text.x, text.y, text.text, LINE, color=readable_on(colour) if colour else FAINT, **look)
        for port in ports:
            self.text(
                port.x,
                port.y,
                port.text,
                SMALL,
                color=readable_on(colour) if colour else line,
                ha=_ALIGN[port.anchor],
                zorder=4,
            )


_ALIGN = {"start": "left", "middle": "center", "end": "right"}
