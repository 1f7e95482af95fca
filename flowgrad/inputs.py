"""Checks of single numbers that a user gives: settings, sizes, seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .errors import GraphError


def whole(value: Any, what: str, least: int = 1) -> int:
    """Return an integer of at least `least`, NumPy's too, as Python's.

    Raises
    ------
    GraphError
        If it is something else; True and False are no numbers.

    Examples
    --------
    >>> whole(np.int64(3), "patience")
    3
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise GraphError(f"{what} must be an integer from {least} on, not {value!r}")
    return int(value)


def finite(value: Any, what: str, least: float = -math.inf, above: bool = False) -> float:
    """Return a finite number of at least `least`, or `above` it, as Python's: NumPy's would lift single precision to double.

    Raises
    ------
    GraphError
        If it is something else; True and False are no numbers.

    Examples
    --------
    >>> finite(np.float32(0.5), "momentum", 0)
    0.5
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not _is_finite(value) or value < least or (above and value == least):
        kind = "a finite number" if least == -math.inf else f"a number {'above' if above else 'from'} {least:g}"
        kind += "" if above or least == -math.inf else " on"
        raise GraphError(f"{what} must be {kind}, not {value!r}")
    return float(value)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False
