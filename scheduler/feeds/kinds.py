"""What may be fed: any kind as an array of numbers, or refused in one line; every way of reading a feed comes through here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import dask
import numpy as np

from flowgrad.errors import FeedError
from flowgrad.typing import Array

from ..tasks import is_future

# Packages whose tables and columns hide what is missing from NumPy.
TABLES = ("pandas", "polars", "pyarrow")


class Named(Protocol):
    """A variable, or what stands for one where its feed is read."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def dim(self) -> int:
        """Entries of a sample."""

    @property
    def below(self) -> int | None:
        """Of which its entries must be integers below, because they pick rows of a table; None: they are any numbers."""


def as_array(v: Named, value: Any, first: int = 0) -> Array:
    """Return a feed, or a chunk of one that begins with sample `first`, as an array of numbers, not copied if it is one.

    Raises
    ------
    FeedError
        For what is no array of real numbers, or has holes; whether numbers are finite is not looked at.
    """
    package = type(value).__module__.partition(".")[0]
    if package in ("scipy", "sparse", "cupyx") and not isinstance(value, np.ndarray):
        raise FeedError(
            f"the feed for {v.name!r} is sparse, {package} {type(value).__name__}, and flowgrad reads dense arrays: "
            f"give its toarray() or todense(), shape (N, {v.dim})"
        )
    try:
        array = _table(v, value, first) if package in TABLES else _joined(v, value)
    except (FeedError, MemoryError):
        raise
    except Exception as error:  # whatever somebody's arrays and frames raise
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"cannot be read, {package} {type(value).__name__}: convert it to an array of float32 or float64,"
        if isinstance(value, (list, tuple)):
            what = "is ragged or no array: it must have"
        raise FeedError(f"the feed for {v.name!r} {what} shape (N, {v.dim}) ({reason[:200]})") from None
    if array.dtype == object and array.ndim == 0:
        raise _no_array(v, value)
    check_numbers(v, array.dtype)
    if np.ma.is_masked(array):
        raise FeedError(
            f"the feed for {v.name!r} is a masked array, and flowgrad knows no missing numbers: fill it or drop such samples"
        )
    return np.asarray(array)


def _no_array(v: Named, value: Any) -> FeedError:
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    return FeedError(f"the feed for {v.name!r} is no array but a {kind}: give an array or a list, shape (N, {v.dim})")


def check_numbers(v: Named, dtype: Any) -> None:
    """Raise an error if what has this dtype is no real numbers, or no integers where rows of a table are picked by them."""
    if dtype.kind not in "fiub":
        raise FeedError(
            f"the feed for {v.name!r} has dtype {dtype}, not numbers: convert it to float32 or float64, shape (N, {v.dim})"
        )
    if v.below is not None and dtype.kind not in "iu":
        raise FeedError(
            f"the feed for {v.name!r} has dtype {dtype}, but it picks rows of a table: "
            f"give integers from 0 to {v.below - 1}, shape (N, {v.dim})"
        )


def as_chunk(v: Named, value: Any, shape: Sequence[int], dtype: Any, first: int) -> Array:
    """Return a chunk of a feed as an array if it is what was told of it before it was there."""
    array = as_array(v, value, first)
    if array.shape != tuple(shape) or array.dtype.newbyteorder("=") != np.dtype(dtype).newbyteorder("="):
        raise FeedError(
            f"the feed for {v.name!r} is not what its chunks were said to be: from sample {first} on they have shape "
            f"{array.shape} and dtype {array.dtype}, not {tuple(shape)} and {dtype}: correct the meta, or the chunk"
        )
    return array


def _joined(v: Named, value: Any) -> Array:
    if isinstance(value, (list, tuple)) and value and (is_future(value[0]) or dask.is_dask_collection(value[0])):
        what = "futures" if is_future(value[0]) else "collections"
        raise FeedError(
            f"the feed for {v.name!r} is a list of dask's {what}, chunks or samples: give one array, as "
            f"da.concatenate([da.from_delayed(each, shape, dtype) for each in ...]), or client.gather(...)"
        )
    # NumPy leaves the masks of rows in a list behind.
    if isinstance(value, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in value):
        return np.ma.stack(value)
    return np.asanyarray(value)


def _table(v: Named, value: Any, first: int) -> Array:
    if hasattr(type(value), "collect"):  # a lazy frame
        value = value.collect()
    # Asked of types, for columns may be called anything.
    if hasattr(type(value), "get_columns"):
        columns = value.get_columns()
    elif hasattr(type(value), "iloc") and value.ndim == 2:
        if len(set(value.dtypes)) == 1 and isinstance(value.dtypes.iloc[0], np.dtype):
            return np.asarray(value)
        columns = [value.iloc[:, k] for k in range(value.shape[1])]
    elif hasattr(type(value), "column_names"):
        columns = value.columns
    elif hasattr(type(value), "dim_names"):  # of pyarrow's tensors
        return np.asarray(value.to_numpy())
    elif hasattr(type(value), "is_null") or hasattr(type(value), "isna"):
        return _column(v, value, first)
    else:
        raise _no_array(v, value)
    return np.stack([_column(v, column, first) for column in columns], axis=1)


def _column(v: Named, column: Any, first: int) -> Array:
    dtype = getattr(column, "dtype", None)
    if isinstance(dtype, np.dtype):
        check_numbers(v, dtype)
        return np.asarray(column)
    missing = column.is_null() if hasattr(column, "is_null") else column.isna()
    holes = np.flatnonzero(np.asarray(missing))
    if len(holes):
        package = type(column).__module__.partition(".")[0]
        raise FeedError(
            f"the feed for {v.name!r} has missing values (NA): sample {first + int(holes[0])} of "
            f"{package} {dtype or column.type}: drop such samples or fill them"
        )
    return np.asarray(column, dtype=getattr(dtype, "numpy_dtype", None))
