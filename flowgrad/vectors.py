"""Vectors that a user gives, and values that nobody may change."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import FeedError, ShapeError
from .jacobians.base import Array


def frozen(array: Any) -> Array:
    """Return an array of float64 that cannot be written to; not copied if it is one."""
    array = np.asarray(array, dtype=np.float64)
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def vector(what: str, dim: int, value: Any) -> Array:
    """Check a user's vector and return it as a fresh array (1, dim) of float64."""
    if np.ma.isMaskedArray(value) or getattr(getattr(value, "dtype", None), "kind", "") == "c":
        raise FeedError(f"{what} is masked or complex: {brief(value)}; give {dim} real numbers")
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise FeedError(f"{what} is not an array of {dim} numbers: {brief(value)}") from None
    if array.shape not in ((dim,), (dim, 1)) and not (dim == 1 and array.shape == ()):
        hint = ": a matrix is laid out row by row, array.ravel()" if array.size == dim else ""
        raise ShapeError(f"{what} has shape {array.shape}; it must be ({dim},) or ({dim}, 1){hint}")
    array = array.reshape(1, dim)
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise FeedError(f"{what} is not finite: entry {bad} is {array[0, bad]}")
    return array


def brief(value: Any) -> str:
    """Return a value in few letters, for messages."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 40 else text[:37] + "..."
