"""Feeds that are not in the client's memory: of dask and in files, chunk by chunk, rows when they are wanted."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
from dask.base import tokenize
from dask.delayed import Delayed, delayed

from flowgrad.errors import FeedError
from flowgrad.graph import Variable, reach
from flowgrad.ops import CrossEntropyWithSoftMax
from flowgrad.typing import Array

from ..executors import Executor
from ..tasks import futures_in, is_future, partitions, row_chunks
from .kinds import Named, as_array, as_chunk, check_numbers

# Rows of a file are read by tasks that cover about so much of it.
FILE_CHUNK_BYTES = 64 << 20
# By so much of its rows a file is known again, and by so many at least, where the system does not tell which one is mapped.
COMPARED_BYTES, COMPARED_ROWS = 1 << 20, 64
# Copies of fed files in other places: what each was when this process read it first.
_copies: dict[tuple[str, FileState], FileState] = {}


class FileState(NamedTuple):
    """What tells a file from one that takes its place, and from itself when it is written to.

    Attributes
    ----------
    place : str
        Where its name leads to this file: a machine, or a container on it; others have copies, or the same by other numbers.
    """

    place: str
    inode: int
    size: int
    changed: int


@dataclass(frozen=True)
class FileRows:
    """Rows of a file of numbers, which every worker can open; called, it maps them without reading.

    Attributes
    ----------
    offset : int
        Of the first row, in bytes.
    state : FileState
        When it was fed.
    """

    name: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    state: FileState

    def __call__(self) -> Array:
        """Map the rows.

        Raises
        ------
        FeedError
            If they are not there, or no longer those that were fed.
        """
        try:
            with open(self.name, "rb") as file:
                found = _state(file.fileno())
                rows = np.memmap(file, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise FeedError(
                f"the file {self.name} of a feed cannot be read where its rows are wanted ({error}): "
                f"put it where all workers find it, or feed an array"
            ) from None
        same_place = found.place == self.state.place
        if found != (self.state if same_place else _copies.setdefault((self.name, self.state), found)):
            raise FeedError(
                f"the file {self.name} of a feed has been written to or replaced since it was fed: "
                f"call again with what it holds now, or feed an array"
            )
        return rows


class Labels(NamedTuple):
    """Numbers that may be fed, such as a loss takes for labels: from `least` to `most`; what others are none of, and what to do."""

    least: float
    most: float
    kind: str
    advice: str


@dataclass(frozen=True)
class Shape:
    """What rows become: ``(n, dim)`` of a dtype.

    Attributes
    ----------
    name : str
        Of the variable, for messages.
    below : int, optional
        Rows of the table that its integers pick from.
    labels : Labels, optional
        What numbers there may be.
    """

    name: str
    dim: int
    dtype: np.dtype[Any]
    below: int | None = None
    labels: Labels | None = None

    @classmethod
    def of(cls, v: Variable, dtype: Any) -> Shape:
        """Return what the rows that are fed to a variable become."""
        return cls(v.name, v.dim, np.dtype(dtype), v.below)


@dataclass(frozen=True, eq=False)
class Chunked:
    """A feed in chunks.

    Attributes
    ----------
    starts : tuple of int
        First row of each chunk, and the number of rows.
    told : tuple
        What is known of chunks before they are there: the shape of a sample, and the dtype.
    chunks : list
        Each an array, a future of dask's, or something to call that loads it.
    nbytes : int
        Of all chunks as they are.
    """

    form: Shape
    starts: tuple[int, ...]
    told: tuple[tuple[int, ...], np.dtype[Any]]
    chunks: list[Any]
    nbytes: int

    def __len__(self) -> int:
        return self.starts[-1]


def is_chunked(value: Any) -> bool:
    """Return whether a feed, as `settled` returns it, is a dask array or a memory-mapped file."""
    return is_dask_array(value) or isinstance(value, np.memmap)


def is_dask_array(value: Any) -> bool:
    """Return whether a feed is a dask array."""
    # Asked of the type, for a frame's column may be called so.
    return bool(dask.is_dask_collection(value)) and all(hasattr(type(value), a) for a in ("chunks", "to_delayed"))


def is_elsewhere(value: Any) -> bool:
    """Return whether a feed is dask's: a collection or a future."""
    return is_future(value) or bool(dask.is_dask_collection(value))


def settled(v: Variable, value: Any, executor: Executor | None) -> Any:
    """Return what is dask's as a dask array whose chunks' sizes are known, or as an array; anything else as it is.

    Nothing is brought here that an executor can leave where it is: on a cluster that is all that lies there. Memory maps are only
    what others can map too.
    """
    if isinstance(value, np.memmap):
        if value.mode != "r":
            value.flush()  # for who reads the file elsewhere; and now it has the time of the last change
        value = flattened(v, value if _can_be_mapped(value) else np.asarray(value))
    if not is_elsewhere(value):
        return value
    futures = [value] if is_future(value) else futures_in(value)
    foreign = bool(futures) and not (executor is not None and all(map(executor.holds, futures)))
    where = futures[0].client if foreign else executor
    if is_dask_array(value):
        x = value
    elif not is_future(value) and np.ndim(getattr(value, "_meta", 0)):
        x = _array_of_frame(v, value, where)
    elif not (is_future(value) or isinstance(value, Delayed)):
        raise FeedError(
            f"the feed for {v.name!r} is a dask {type(value).__name__}, not an array: "
            f"give a dask array or frame, shape (N, {v.dim})"
        )
    elif foreign or executor is None or not executor.remote:
        return as_array(v, _computed([value], where)[0]).copy()  # it may be what the user holds
    else:
        x = _array_of_future(v, value if is_future(value) else executor.start([value])[0], executor)
    x = flattened(v, x)
    check_told(v, x)
    x = _of_known_sizes(x, where)
    return gathered(v, x, where) if foreign else x


def flattened(v: Named, x: Any) -> Any:
    """Return an array of whatever kind, whose samples may have the variable's axes, with a row for each sample."""
    axes = getattr(v, "shape", ())
    if len(axes) < 2 or tuple(x.shape[1:]) != axes:
        return x
    if not is_dask_array(x):
        return x.reshape(len(x), v.dim)
    x = x.rechunk({k: -1 for k in range(1, x.ndim)})
    meta, dropped = np.empty((0, 0), x.dtype), list(range(2, x.ndim))
    return x.map_blocks(_flat, chunks=(x.chunks[0], (v.dim,)), drop_axis=dropped, dtype=x.dtype, meta=meta)


def _flat(block: Any) -> Any:
    return block.reshape(len(block), -1)


def gathered(v: Variable, x: Any, where: Any) -> Array:
    """Compute a dask array and bring it here, chunk by chunk: no worker needs to have room for all of it."""
    blocks = x.to_delayed()
    grid = np.empty(blocks.shape, object)
    starts = [0, *accumulate(x.chunks[0])]
    for place, block in zip(np.ndindex(blocks.shape), _computed(blocks.ravel().tolist(), where)):
        shape = [sizes[k] for sizes, k in zip(x.chunks, place)]
        grid[place] = as_chunk(v, block, shape, x.dtype, starts[place[0]])
    return np.asarray(np.block(grid.tolist()))


def check_told(v: Named, x: Any) -> None:
    """Raise an error if an array, of whatever kind, cannot be fed to a variable by its shape and dtype."""
    check_numbers(v, x.dtype)
    labels = v.dim > 1 and v.below is None and x.dtype.kind in "iu" and x.shape[1:] in ((), (1,))
    known = x.ndim != 2 or not math.isnan(x.shape[1])
    if x.ndim == 0 or x.ndim > 2 or (x.ndim == 2 and known and x.shape[1] != v.dim and not labels):
        raise FeedError(f"the feed for {v.name!r} has shape {x.shape}, but its dim is {v.dim}: give (N, {v.dim})")
    if labels and x.shape == (v.dim,) and isinstance(v, Variable) and not _is_label(v):
        raise FeedError(
            f"the feed for {v.name!r} has shape {x.shape}, one sample or {v.dim} class indices, and {v.name!r} is no label of a "
            f"cross entropy: give a sample as array[None], shape (1, {v.dim}), or one-hot rows, np.eye({v.dim})[indices]"
        )
    if x.ndim == 1 and v.dim > 1 and not labels:
        raise FeedError(
            f"the feed for {v.name!r} has shape {x.shape}, but its dim is {v.dim}: "
            f"give (N, {v.dim}){', or integer class indices (N,)' if v.below is None else ''}"
        )


def _is_label(v: Variable) -> bool:
    """Whether a variable is the label of a cross entropy, as it is or smoothed, or read by nothing."""
    reached = reach([v], lambda n: [child for child in n.children if child.dim == v.dim])
    edges = [edge for node in reached for edge in node._edges]
    return not edges or any(slot == 1 and isinstance(child, CrossEntropyWithSoftMax) for child, slot in edges)


def chunked(v: Variable, value: Any, dtype: np.dtype[Any], executor: Executor | None) -> Any:
    """Return a dask array or a memory map, its shape checked, as a `Chunked` of `dtype`; as an array if the client has it all."""
    form = Shape.of(v, dtype)
    if isinstance(value, np.memmap):
        chunks: list[Any] = list(file_rows(value))
        sizes = [piece.shape[0] for piece in chunks]
    else:
        x = value if value.ndim == 1 or len(value.chunks[1]) == 1 else guarded(v, value).rechunk({1: -1})
        chunks, sizes = row_chunks(x), x.chunks[0]
        if executor is not None and futures_in(x) and not all(map(is_future, chunks)):
            chunks = row_chunks(executor.persist(x))  # a task that loads a chunk knows of no other one
        if all(isinstance(c, np.ndarray) for c in chunks):
            return gathered(v, x, executor)
    starts = (0, *(int(n) for n in np.cumsum(sizes)))
    return Chunked(form, starts, (value.shape[1:], value.dtype), chunks, int(value.nbytes))


def guarded(v: Variable, x: Any) -> Any:
    """Return a dask array of which every chunk is checked before anything is done with it."""
    meta = np.empty((0,) * x.ndim, x.dtype)
    form = Shape.of(v, x.dtype)
    return x.map_blocks(_guard, dtype=x.dtype, meta=meta, form=form, sizes=x.chunks)


def _guard(block: Any, form: Shape, sizes: Any, block_id: tuple[int, ...]) -> Array:
    shape = [each[k] for each, k in zip(sizes, block_id)]
    return as_chunk(form, block, shape, form.dtype, sum(sizes[0][: block_id[0]]))


def _computed(values: Sequence[Any], where: Any) -> list[Any]:
    """Compute dask's collections and futures: by an executor, by the client that holds what they need, or as dask does."""
    if where is None:
        return list(dask.compute(*values))
    if isinstance(where, Executor):
        return where.compute_all(values)
    return list(where.gather(where.compute(list(values))))


def _of_known_sizes(x: Any, where: Any) -> Any:
    """Return a dask array with the sizes of its chunks; the user's own stays as it is."""
    if not any(math.isnan(n) for n in x.shape):
        return x
    blocks = x.to_delayed().reshape(x.numblocks)
    edge = [blocks[k, ...].ravel()[0] for k in range(len(blocks))]
    edge += [] if x.ndim == 1 else list(blocks[0])
    shapes = _computed([delayed(np.shape)(block) for block in edge], where)
    sizes: list[Any] = [tuple(shape[0] if shape else 0 for shape in shapes[: len(blocks)])]
    if x.ndim == 2:
        sizes.append(tuple(shape[1] if len(shape) > 1 else 0 for shape in shapes[len(blocks) :]))
    return type(x)(x.dask, x.name, tuple(sizes), dtype=x.dtype, meta=x._meta)


def _array_of_frame(v: Variable, frame: Any, where: Any) -> Any:
    da = import_module("dask.array")  # slow, and nobody has needed it before
    try:
        told = as_array(v, frame._meta)
    except FeedError:  # of categories, say, dask may know nothing before they are there
        told = as_array(v, _computed([delayed(_none_of)(frame.to_delayed()[0])], where)[0])
    lengths = _computed([delayed(len)(part) for part in frame.to_delayed()], where)
    name = f"feed-{tokenize(frame)}"
    sizes = (tuple(lengths), *((n,) for n in told.shape[1:]))
    return da.Array(partitions(frame, name, told.ndim), name, sizes, dtype=told.dtype, meta=told)


def _none_of(frame: Any) -> Any:
    return frame.iloc[:0]


def _array_of_future(v: Variable, future: Any, executor: Executor) -> Any:
    da = import_module("dask.array")
    form = Shape.of(v, np.float64)
    ((shape, dtype),) = executor.compute_all([delayed(_told)(form, future)])
    name = f"feed-{future.key}"
    return da.Array({(name, *(0,) * len(shape)): future}, name, tuple((n,) for n in shape), dtype=dtype)


def _told(form: Shape, value: Any) -> tuple[tuple[int, ...], Any]:
    array = as_array(form, value)
    return array.shape, array.dtype


def file_rows(x: np.memmap[Any, Any]) -> list[FileRows]:
    """Return the rows of a memory-mapped file in pieces that any process can map."""
    root = x
    while isinstance(root.base, np.memmap):
        root = root.base
    offset = int(root.offset) + x.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    row = x.nbytes // max(1, len(x))
    step = max(1, FILE_CHUNK_BYTES // max(1, row))
    name = str(root.filename)
    state = _state(name)
    return [
        FileRows(name, x.dtype.str, offset + start * row, (min(start + step, len(x)) - start, *x.shape[1:]), state)
        for start in range(0, len(x), step)
    ]


def _state(file: str | int) -> FileState:
    about = os.stat(file)
    return FileState(_place(), about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1)
def _place() -> str:
    with suppress(OSError):  # Linux: this boot of this kernel, and what is mounted
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/mnt")
    return platform.node()


def _mapped(x: Array) -> str:
    """Return device and inode of the file that is mapped where an array lies, as Linux has them; elsewhere nothing."""
    address = x.__array_interface__["data"][0]
    with suppress(OSError), open("/proc/self/maps") as lines:
        for line in lines:
            span, _, _, device, inode = line.split()[:5]
            start, stop = (int(end, 16) for end in span.split("-"))
            if start <= address < stop:
                return f"{device} {inode}"
    return ""


def _can_be_mapped(x: np.memmap[Any, Any]) -> bool:
    """Whether a map's file holds its rows where it is found by name; what was written to some maps is in memory alone."""
    if not x.flags.c_contiguous or getattr(x, "_mmap", None) is None or x.ndim == 0 or x.mode == "c" or not x.size:
        return False
    if x.dtype.kind not in "fiub" or x.filename is None or not os.path.isfile(x.filename):
        return False
    count = max(COMPARED_ROWS, COMPARED_BYTES // (x.nbytes // len(x)))
    some = np.linspace(0, len(x) - 1, min(len(x), count)).astype(int)
    try:
        first = file_rows(x)[0]
        found = np.memmap(first.name, x.dtype, "r", first.offset, x.shape)
    except (OSError, ValueError):
        return False
    return _mapped(found) == _mapped(x) and found[some].tobytes() == np.asarray(x)[some].tobytes()


def join_rows(parts: list[Array], places: list[Array]) -> Array:
    """Put rows that come from several chunks into the order in which they are wanted."""
    if len(parts) == 1 and np.array_equal(places[0], np.arange(len(parts[0]))):
        return parts[0]
    out = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
    for part, place in zip(parts, places):
        out[place] = part
    return out
