"""What notebooks show of an object: a short table of what is known, for which nothing is computed and nothing raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from html import escape
from inspect import isroutine
from typing import Any

from ..inputs import times

LAST = 8  # rows of a table within the table
LONGEST = 300


class Shown:
    """Base of what is a table in notebooks."""

    def _shows(self) -> dict[str, Any]:
        """Return what is shown, by name: public attributes, those of settings one by one."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            settings = is_dataclass(value) and not isinstance(value, Shown)
            found |= vars(value) if settings else {name: value}
        return {name: value for name, value in found.items() if name[0] != "_" and not isroutine(value)}

    def _repr_html_(self) -> str | None:
        """Return the table; None, and notebooks show the text, where something of it cannot be had."""
        try:
            rows = [(name.replace("_", " "), cell(value)) for name, value in self._shows().items()]
            return table(type(self).__name__, rows)
        except Exception:
            return None


def table(title: str, rows: list[tuple[str, str]]) -> str:
    """Return an HTML table of names and cells that are HTML."""
    lines = [
        f'<tr><th style="text-align: left">{escape(name)}</th><td style="text-align: left">{inside}</td></tr>'
        for name, inside in rows
    ]
    return f'<table><caption style="text-align: left"><b>{escape(title)}</b></caption>{"".join(lines)}</table>'


def cell(value: Any) -> str:
    """Write a value as HTML: arrays by their shape, records as a table of the last ones.

    Examples
    --------
    >>> cell({"dot": 90, "add": 2}), cell(0.123456), cell(None)
    ('90 dot, 2 add', '0.1235', '–')
    """
    if value is None or (hasattr(value, "__len__") and not len(value)):
        return "–"
    if isinstance(value, list) and isinstance(value[0], Mapping):
        names = dict.fromkeys(name for record in value[-LAST:] for name in record)
        head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
        rows = ["".join(f"<td>{cell(record.get(name))}</td>" for name in names) for record in value[-LAST:]]
        left_out = f"{len(value) - LAST} before, then " if len(value) > LAST else ""
        return f"{left_out}<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    if isinstance(value, Mapping):
        counts = all(isinstance(n, int) and not isinstance(n, bool) for n in value.values())
        pairs = [f"{n:,} {escape(str(k))}" if counts else f"{escape(str(k))}: {cell(n)}" for k, n in value.items()]
        return (", " if counts else "<br>").join(pairs)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return escape(f"{times(value.shape) or 'number'}, {value.dtype}")
    if isinstance(value, float):
        return f"{value:.4g}"
    told = type(value).__name__ if type(value).__repr__ is object.__repr__ else repr(value)
    text = value if isinstance(value, str) else told
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
