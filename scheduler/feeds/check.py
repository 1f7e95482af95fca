"""Checking feeds: arrays of samples by variable. Pure; nothing of the user's is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowgrad.errors import FeedError, GraphError
from flowgrad.graph import Constant, Graph, Node, Variable, named
from flowgrad.inputs import brief
from flowgrad.typing import Array

from ..executors import Executor
from .chunks import Chunked, Labels, Shape, check_told, chunked, flattened, gathered, is_chunked, is_dask_array, settled
from .kinds import as_array, as_chunk

# By so much rounding may lead out of the numbers that are labels.
ROUNDING = 1e-6
# Length from which on BLAS's own threads may take part in a scalar product.
BLAS_LENGTH = 10_000


@dataclass(frozen=True)
class Feeds:
    """Checked feeds.

    Attributes
    ----------
    arrays : dict
        ``(N, dim)`` by variable, of one float dtype; a `Chunked` where the feed stays where it is.
    samples : int
        N; 1 without feeds.
    """

    arrays: dict[Variable, Any]
    samples: int
    dtype: np.dtype[Any]


def check_feeds(
    graph: Graph,
    feeds: Mapping[Any, Any] | None,
    dtype: Any = None,
    lazy: bool = False,
    executor: Executor | None = None,
    what: str = "feeds",
) -> Feeds:
    """Check feeds against a graph and bring them to ``(N, dim)``.

    Parameters
    ----------
    feeds : mapping of Variable to array
        ``(N, dim)``; ``(N,)`` for ``dim == 1``; integers ``(N,)`` for ``dim > 1`` are class indices and become one-hot.
        What is dask's is computed.
    dtype : optional
        Of the result; by default that of the feeds (float64 for integers).
    lazy : bool
        Leave what is dask's, and memory-mapped files, where they are; their values are checked when they are read.
    executor : optional
        What computes for it; dask's default if not given.
    what : str
        What they are called in messages.

    Raises
    ------
    FeedError
        Names the variable, both sizes, and what to do.
    """
    if feeds is None:
        return Feeds({}, 1, np.dtype(dtype or np.float64))
    check_mapping(feeds, what)
    raw = read_feeds(graph, feeds, executor, lazy)
    samples = check_lengths({v: a.shape[0] for v, a in raw.items()})
    dtype = common_dtype((a.dtype for a in raw.values()), dtype)
    return Feeds({v: _fed(v, a, dtype, executor) for v, a in raw.items()}, samples, dtype)


def check_mapping(feeds: Any, what: str = "feeds") -> None:
    """Raise an error if feeds are no arrays by variable."""
    if feeds is not None and not isinstance(feeds, Mapping):
        raise FeedError(f"{what} must be a dict {{variable: array}} of inputs and labels, not {type(feeds).__name__}")


def settled_feeds(graph: Graph, feeds: Mapping[Any, Any], executor: Executor | None) -> dict[Variable, Any]:
    """Return feeds of which those that are dask's know their chunks; see `settled`."""
    given = {fed_variable(graph, key): a for key, a in feeds.items()}
    if len(given) < len(feeds):
        twice = next(v for v in given if v in feeds and v.name in feeds)
        raise FeedError(f"{twice.name!r} is fed twice, by its name and as a node: give one of them")
    return {v: settled(v, a, executor) for v, a in given.items()}


def read_feeds(
    graph: Graph, feeds: Mapping[Any, Any], executor: Executor | None, lazy: bool = True
) -> dict[Variable, Any]:
    """Return feeds of any kind as checked arrays; with `lazy` those in chunks as they are, their shapes and dtypes checked."""
    read = settled_feeds(graph, feeds, executor)
    for v, value in read.items():
        if lazy and is_chunked(value):
            check_told(v, value)
        else:
            read[v] = _numeric(v, gathered(v, value, executor) if is_dask_array(value) else value)
    return read


def check_array(variable: Any, array: Any, dtype: Any, first: int | Array = 0) -> Array:
    """Check one feed, of something with a ``name`` and a ``dim``, and bring it to ``(N, dim)`` of `dtype`; see `check_feeds`.

    Messages count samples from `first` on, or by the numbers in it.
    """
    return _shaped(variable, _numeric(variable, array, first), np.dtype(dtype), first)


def check_lengths(lengths: Mapping[Any, int]) -> int:
    """Return the number of samples, the same for all feeds and at least 1, or raise with what each has."""
    if len(set(lengths.values())) > 1:
        words = ", ".join(f"{v.name!r} has {n}" for v, n in lengths.items())
        raise FeedError(f"feeds differ in their number of samples: {words}; axis 0 is the samples")
    empty = [v.name for v, n in lengths.items() if n == 0]
    if empty:
        raise FeedError(f"the feed for {empty[0]!r} is empty: it has 0 samples, at least 1 is needed")
    return next(iter(lengths.values()), 1)


def common_dtype(dtypes: Iterable[Any], dtype: Any = None) -> np.dtype[Any]:
    """Return the dtype to compute in: as given, or that of the floating-point feeds."""
    if dtype is None:
        floats = [d for d in dtypes if d.kind == "f"]
        dtype = np.result_type(*floats) if floats else np.float64
        dtype = np.float32 if dtype == np.float16 else np.float64 if dtype == np.longdouble else dtype
    return np.dtype(dtype)


def check_nodes(nodes: Any, what: str) -> tuple[Graph, list[Node]]:
    """Check that `nodes` are nodes of one graph; return it and them."""
    sequence = list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]
    if not sequence:
        raise GraphError(f"{what}: no node was given")
    for node in sequence:
        if not isinstance(node, Node):
            hint = f": write graph[{node!r}]" if isinstance(node, str) else ""
            raise GraphError(f"{what}: {brief(node)} is not a node{hint}")
        if node.graph is not sequence[0].graph:
            raise GraphError(f"{what}: {sequence[0]} and {node} belong to two different graphs")
    return sequence[0].graph, sequence


def require_values(variables: list[Variable], feeds: Feeds, target: Node) -> None:
    """Raise for the first variable that is neither fed nor set."""
    for v in variables:
        if v not in feeds.arrays and v.value is None:
            raise FeedError(
                f"variable {v.name!r} (dim {v.dim}) has no value and no feed, and {target} needs it: "
                f"add {{{v.name}: array (N, {v.dim})}} to the feeds or call set_value"
            )


def fed_variable(graph: Graph, key: Any) -> Variable:
    """Return `key` if it can be fed, a variable of `graph`."""
    key = named(graph, key, "feeds")
    if not isinstance(key, Node):
        raise FeedError(f"feeds are given by variable or by its name; {brief(key)} is {type(key).__name__}, not a node")
    if not isinstance(key, Variable):
        raise FeedError(f"only variables can be fed; {key} is computed from its parents")
    if isinstance(key, Constant):
        raise FeedError(f"only variables can be fed; {key} keeps its value")
    if key.graph is not graph:
        raise FeedError(f"the feed for {key} belongs to another graph")
    return key


def _numeric(v: Variable, value: Any, first: int | Array = 0) -> Array:
    array = flattened(v, as_array(v, value))
    check_told(v, array)
    if v.dim > 1 and array.shape[1:] in ((), (1,)):  # class indices
        array = array.reshape(-1)
        _check_labels(v, array, first)
    if v.below is not None:
        _check_rows(v, array, v.below, first)
    if array.dtype.kind == "f" and not _all_finite(array):
        sample, *rest = np.argwhere(~np.isfinite(array))[0]
        raise FeedError(
            f"the feed for {v.name!r} is not finite: sample {_number(first, sample)} holds {array[(sample, *rest)]}; "
            f"remove or impute such samples"
        )
    return array


def _all_finite(array: Array) -> bool:
    """Whether all numbers are finite; they are where their squares' sums are."""
    if array.ndim == 2 and array.shape[1] < BLAS_LENGTH:
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.vecdot(array, array)
        if np.isfinite(sums).all():
            return True
    return array.size == 0 or bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def _fed(v: Variable, value: Any, dtype: np.dtype[Any], executor: Executor | None) -> Any:
    if not is_chunked(value):
        return _shaped(v, value, dtype)
    chunks = chunked(v, value, dtype, executor)
    return _shaped(v, _numeric(v, chunks), dtype) if isinstance(chunks, np.ndarray) else chunks


def _check_labels(v: Variable, array: Array, first: int | Array) -> None:
    if array.size and (array.min() < 0 or array.max() >= v.dim):
        bad = int(np.flatnonzero((array < 0) | (array >= v.dim))[0])
        raise FeedError(
            f"label out of range: sample {_number(first, bad)} of the feed for {v.name!r} has class {array[bad]}, "
            f"but its dim {v.dim} allows 0 to {v.dim - 1}"
        )


def _check_rows(v: Variable, array: Array, below: int, first: int | Array) -> None:
    if array.size and (array.min() < 0 or array.max() >= below):
        sample, *rest = np.argwhere((array < 0) | (array >= below))[0]
        raise FeedError(
            f"row out of range: sample {_number(first, sample)} of the feed for {v.name!r} holds {array[(sample, *rest)]}, "
            f"but the table that it picks from has rows 0 to {below - 1}"
        )


def _shaped(v: Variable, array: Array, dtype: np.dtype[Any], first: int | Array = 0) -> Array:
    if array.ndim == 1 and v.dim > 1:
        hot = np.zeros((len(array), v.dim), dtype)
        hot[np.arange(len(array)), array] = 1
        return hot
    with np.errstate(over="ignore"):
        shaped = np.ascontiguousarray(array.reshape(len(array), v.dim), dtype=dtype)
    if shaped.dtype != array.dtype and not np.isfinite(shaped).all():
        sample, entry = np.argwhere(~np.isfinite(shaped))[0]
        value = array.reshape(len(array), v.dim)[sample, entry]
        advice = "use float64" if abs(value) <= np.finfo(np.float64).max else "scale it"
        raise FeedError(
            f"the feed for {v.name!r} holds {value!s} at sample {_number(first, sample)}, more than {dtype} can: {advice}"
        )
    return shaped


def check_batch_size(batch_size: int, feeds: Feeds, accumulate: int = 1) -> None:
    """Raise an error if there are fewer samples than one update takes."""
    samples = feeds.samples
    if not feeds.arrays and batch_size * accumulate > 1:
        raise FeedError(
            f"nothing is fed, which makes one sample, but the batch size is {batch_size * accumulate}: "
            f"give {{variable: array (N, dim)}}, or choose batch size 1"
        )
    if samples < batch_size * accumulate:
        times = f" times accumulate {accumulate} = {batch_size * accumulate}" if accumulate > 1 else ""
        raise FeedError(
            f"the batch size {batch_size}{times} is larger than the data: {samples} samples; "
            f"choose at most {max(1, samples // accumulate)}"
        )


def check_labels(feeds: Feeds, labels: Mapping[Variable, Labels]) -> Feeds:
    """Return feeds of which some are labels, whose numbers are checked; of those in chunks, when they are read.

    Raises
    ------
    FeedError
        Names the variable, the sample, the number and the loss.
    """
    arrays = dict(feeds.arrays)
    for v, wanted in labels.items():
        feed = arrays[v]
        if isinstance(feed, Chunked):
            arrays[v] = replace(feed, form=replace(feed.form, labels=wanted))
        else:
            _within(v.name, feed, wanted)
    return replace(feeds, arrays=arrays)


def _within(name: str, array: Array, labels: Labels, first: int | Array = 0) -> Array:
    least, most = labels.least - ROUNDING, labels.most + ROUNDING
    if array.size and (array.min() < least or array.max() > most):
        sample, *rest = np.argwhere((array < least) | (array > most))[0]
        raise FeedError(
            f"the feed for {name!r} holds {array[(sample, *rest)]!s} at sample {_number(first, sample)}, no {labels.kind}: "
            f"{labels.advice}"
        )
    return array


def _number(first: int | Array, sample: int) -> int:
    return int(first[sample]) if isinstance(first, np.ndarray) else first + sample


def rows_of(
    source: Any, told: tuple[tuple[int, ...], Any], rows: Array, form: Shape, start: int, length: int, salt: str
) -> Array:
    """Return some rows of a chunk, which is given or loaded, checked and as they are fed; the rest of the chunk is let go.

    The chunk begins with row `start` of all and has `length` of them; `salt` tells one asking from another.
    """
    chunk = as_chunk(form, source() if callable(source) else source, (length, *told[0]), told[1], start)
    array = check_array(form, chunk[rows], form.dtype, start + rows)
    return array if form.labels is None else _within(form.name, array, form.labels, start + rows)
