"""The expressions that ops state for compiled kernels, with names and numbers in their places."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def filled(text: str, entries: Sequence[str], attrs: Iterable[tuple[str, Any]], **named: str) -> str:
    """Return an expression with the names of entries, and the attributes that are numbers, in their places; see `Op.expr`.

    Raises
    ------
    KeyError, IndexError, TypeError, ValueError
        If it names something else.

    Examples
    --------
    >>> filled("{0} * F({c}) + {y}", ["a"], {"c": -2.0}.items(), y="b")
    'a * F((-2.0)) + b'
    """
    return text.format(
        *entries, **named, **{k: _literal(v) for k, v in attrs if isinstance(v, (int, float, np.number))}
    )


def _literal(value: Any) -> str:
    number = int(value) if isinstance(value, (int, np.integer)) else float(value)
    if isinstance(number, float) and not math.isfinite(number):
        return "np.nan" if math.isnan(number) else f"({'-' if number < 0 else ''}np.inf)"
    return repr(number) if number >= 0 else f"({number!r})"
