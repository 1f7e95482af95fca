"""Checks of what a user gives: single numbers, and vectors, which nobody may change afterwards."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np

from .errors import FeedError, GraphError, ShapeError
from .typing import Array


def integer(value: Any, what: str, least: int = 1) -> int:
    """Return an integer of at least `least`, NumPy's too, as Python's.

    Raises
    ------
    GraphError
        If it is something else; True and False are no numbers.

    Examples
    --------
    >>> integer(np.int64(3), "patience")
    3
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise GraphError(f"{what} must be an integer from {least} on, not {value!r}")
    return int(value)


def real(value: Any, what: str, least: float = -math.inf, above: bool = False) -> float:
    """Return a finite number of at least `least`, or `above` it, as Python's: NumPy's would lift single precision to double.

    Raises
    ------
    GraphError
        If it is something else; True and False are no numbers.

    Examples
    --------
    >>> real(np.float32(0.5), "momentum", 0)
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


def frozen(array: Any) -> Array:
    """Return an array of float64 that cannot be written to; not copied if it is one."""
    array = np.asarray(array, dtype=np.float64)
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def real_array(what: str, value: Any, dtype: Any = np.float64) -> Array:
    """Check numbers that a user gives and return them as a fresh array.

    Raises
    ------
    FeedError
        If they are no numbers, complex or masked, or not finite as `dtype`.
    """
    try:
        kind = getattr(getattr(value, "dtype", None), "kind", None)
        if kind == "c" or np.ma.isMaskedArray(value) or (kind is None and np.iscomplexobj(value)):
            raise FeedError(f"{what} is masked or complex: {brief(value)}; give real numbers")
        with nullcontext() if dtype is np.float64 else np.errstate(over="ignore"):
            array = np.array(value, dtype=dtype)
    except FeedError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise FeedError(f"{what} is not an array of numbers: {brief(value)}") from None
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        raise FeedError(f"{what} is not finite: entry {', '.join(map(str, place))} is {array[tuple(place)]}")
    return array


def vector(what: str, dim: int, value: Any) -> Array:
    """Check a user's vector and return it as a fresh array (1, dim) of float64."""
    array = real_array(what, value)
    if array.shape not in ((dim,), (dim, 1)) and not (dim == 1 and array.shape == ()):
        hint = ": a matrix is laid out row by row, array.ravel()" if array.size == dim else ""
        raise ShapeError(f"{what} has shape {array.shape}; it must be ({dim},) or ({dim}, 1){hint}")
    return array.reshape(1, dim)


def brief(value: Any, most: int = 40) -> str:
    """Return a value in few letters, for messages."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= most else text[: most - 3] + "..."
