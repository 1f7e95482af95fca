"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def ms(seconds: float) -> str:
    """Return milliseconds with as many digits as matter.

    Examples
    --------
    >>> ms(0.0001234), ms(0.01234), ms(1.234)
    ('0.12', '12.3', '1,234')
    """
    value = seconds * 1e3
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def idle(few: int, workers: int) -> str:
    """Return that so many workers have nothing to do.

    Examples
    --------
    >>> idle(1, 2), idle(2, 3)
    ('1 of 2 workers stands idle', '2 of 3 workers stand idle')
    """
    return f"{few} of {workers} workers {'stands' if few == 1 else 'stand'} idle"


def ratio(ratio: float) -> str:
    """Return how many times as long something takes.

    Examples
    --------
    >>> ratio(0.0123), ratio(1.5), ratio(1234.5)
    ('0.012x', '1.5x', '1,234x')
    """
    return f"{ratio:.2g}x" if ratio < 10 else f"{ratio:,.0f}x"


def short(n: float) -> str:
    """Return a large number in words.

    Examples
    --------
    >>> short(950), short(2.5e6), short(3.1e10)
    ('950', '2.5 million', '31.0 billion')
    """
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if n >= size:
            return f"{n / size:,.1f} {name}"
    return f"{n:.0f}"


def about(n: int) -> int:
    """Return a number to two digits.

    Examples
    --------
    >>> about(1937)
    1900
    """
    digits = max(0, len(str(n)) - 2)
    return int(round(n, -digits))


def columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Return rows as lines of aligned columns; those whose number is in `right` are aligned to the right."""
    right = set(right)
    wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(n) if k in right else cell.ljust(n) for k, (cell, n) in enumerate(zip(row, wide))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
