"""Feeds that are not in the client's memory: dask arrays and memory-mapped files, chunk by chunk, rows when they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np

from flowgrad.graph import Variable
from flowgrad.typing import Array

from ..tasks import row_chunks

# Rows of a file are read by tasks that cover about so much of it.
FILE_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class FileRows:
    """Rows of a file of numbers, which every worker can open; called, it maps them without reading.

    Attributes
    ----------
    offset : int
        Of the first row, in bytes.
    """

    name: str
    dtype: str
    offset: int
    shape: tuple[int, ...]

    def __call__(self) -> Array:
        """Map the rows."""
        return np.memmap(self.name, self.dtype, "r", self.offset, self.shape)


@dataclass(frozen=True)
class Shape:
    """What rows become: ``(n, dim)`` of a dtype.

    Attributes
    ----------
    name : str
        Of the variable, for messages.
    """

    name: str
    dim: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Chunked:
    """A feed in chunks.

    Attributes
    ----------
    starts : tuple of int
        First row of each chunk, and the number of rows.
    chunks : list
        Each an array, a future of dask's, or something to call that loads it.
    nbytes : int
        Of all chunks as they are.
    """

    form: Shape
    starts: tuple[int, ...]
    chunks: list[Any]
    nbytes: int

    def __len__(self) -> int:
        return self.starts[-1]


def is_chunked(value: Any) -> bool:
    """Return whether a feed is a dask array or a memory-mapped file."""
    if isinstance(value, np.memmap):
        mapped = value.flags.c_contiguous and getattr(value, "_mmap", None) is not None and value.ndim > 0
        return mapped and value.mode != "c"  # what was written to such a map is in memory alone
    return is_dask_array(value)


def is_dask_array(value: Any) -> bool:
    """Return whether a feed is a dask array."""
    return bool(dask.is_dask_collection(value)) and hasattr(value, "chunks") and hasattr(value, "dtype")


def gathered(value: Any) -> Array:
    """Compute a dask array chunk by chunk and put it together here: no worker needs to have room for all of it.

    Masked chunks give a masked array.
    """
    if any(math.isnan(n) for n in value.shape):
        return np.asarray(value)
    blocks = value.to_delayed()
    grid = np.empty(blocks.shape, object)
    masked = False
    for place, block in zip(np.ndindex(blocks.shape), dask.compute(*blocks.ravel())):
        masked = masked or isinstance(block, np.ma.MaskedArray)
        grid[place] = np.asarray(block)
    array = np.asarray(np.block(grid.tolist()))
    return np.ma.array(array) if masked else array


def chunked(v: Variable, value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a dask array or a memory map, its shape checked, as a `Chunked` of `dtype`; as an array if the client has it all."""
    form = Shape(v.name, v.dim, dtype)
    if isinstance(value, np.memmap):
        chunks: list[Any] = list(file_rows(value))
        sizes = [piece.shape[0] for piece in chunks]
    else:
        chunks, sizes = row_chunks(value), value.chunks[0]
        if all(isinstance(c, np.ndarray) for c in chunks):
            return np.concatenate(chunks)
    starts = (0, *(int(n) for n in np.cumsum(sizes)))
    return Chunked(form, starts, chunks, int(value.nbytes))


def file_rows(x: np.memmap[Any, Any]) -> list[FileRows]:
    """Return the rows of a memory-mapped file in pieces that any process can map."""
    root = x
    while isinstance(root.base, np.memmap):
        root = root.base
    offset = int(root.offset) + x.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    row = x.nbytes // max(1, len(x))
    step = max(1, FILE_CHUNK_BYTES // max(1, row))
    return [
        FileRows(
            str(root.filename), x.dtype.str, offset + start * row, (min(start + step, len(x)) - start, *x.shape[1:])
        )
        for start in range(0, len(x), step)
    ]


def join_rows(parts: list[Array], places: list[Array]) -> Array:
    """Put rows that come from several chunks into the order in which they are wanted."""
    if len(parts) == 1 and np.array_equal(places[0], np.arange(len(parts[0]))):
        return parts[0]
    out = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
    for part, place in zip(parts, places):
        out[place] = part
    return out
