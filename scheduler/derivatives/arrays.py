"""Feeds in chunks: dask arrays and memory-mapped files stay where they are, and are read by the tasks that need them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask import delayed

from flowgrad.errors import GraphError
from flowgrad.graph import Node, Variable
from flowgrad.inputs import without_underflow
from flowgrad.jacobians import Factors
from flowgrad.program import Program
from flowgrad.typing import Array

from .. import executors
from ..feeds import (
    Feeds,
    RememberedFeeds,
    Shape,
    check_array,
    check_lengths,
    common_dtype,
    file_rows,
    guarded,
    is_chunked,
)
from ..programs import cut_rows
from ..tasks import combine, token
from .recipe import Recipe
from .work import LastEdges, factors_block, jacobian_chunk, run_all


@without_underflow
def as_task(work: Callable[..., Any], *args: Any) -> Any:
    """Run the work of a task that is no record; on a worker as records are run."""
    return executors.run_task(work, *args) if "distributed" in sys.modules else work(*args)


def chunk_feeds(feeds: Mapping[Variable, Any], dtype: Any) -> tuple[Feeds, tuple[int, ...]]:
    """Return feeds that are read, some of them in chunks, as dask arrays of common chunks, and the samples of each.

    Entries are checked when chunks are read.

    Raises
    ------
    FeedError
        If a number of samples does not fit.
    """
    arrays = {v: guarded(v, value if isinstance(value, da.Array) else _as_chunks(value)) for v, value in feeds.items()}
    samples = check_lengths({v: int(a.shape[0]) for v, a in arrays.items()})
    finest = max((a.chunks[0] for v, a in arrays.items() if is_chunked(feeds[v])), key=len)
    common = {v: a.rechunk((finest, *(-1,) * (a.ndim - 1))) for v, a in arrays.items()}
    return Feeds(common, samples, common_dtype((a.dtype for a in arrays.values()), dtype)), finest


def _as_chunks(value: Any) -> Any:
    """Return an array as a dask array; of a memory-mapped file, each chunk is mapped where it is read."""
    if not is_chunked(value):
        return da.from_array(value, chunks=-1)
    pieces = file_rows(value)
    name = f"rows-{token([vars(piece) for piece in pieces])}"
    return da.concatenate(
        [
            da.from_delayed(delayed(piece, name=f"{name}-{k}", traverse=False)(), piece.shape, value.dtype)
            for k, piece in enumerate(pieces)
        ]
    )


def _plan(recipe: Recipe, feeds: Feeds, rows: int) -> tuple[list[tuple[int, Any]], tuple[Program, LastEdges]]:
    """Return everything as one task: what it reads, with delayed values of what is set; a program and last edges."""
    task, statics = recipe.as_one_task(), recipe.values_now(feeds)
    own = {k: delayed(value, name=f"value-{name}") for k, (name, value) in statics.items() if k in task.leaves}
    identity = token(task.program, task.edges, recipe.sizes, rows, feeds.dtype.str)
    ends = LastEdges(task.edges, tuple(recipe.sizes), rows, feeds.dtype, identity)
    return [(k, own.get(k)) for k in task.leaves], (task.program, ends)


def chunked_factors(recipe: Recipe, feeds: Feeds, lengths: Sequence[int]) -> list[Any]:
    """Return the factors of each chunk of samples of a scalar's derivative, as delayed values."""
    leaves, work = _plan(recipe, feeds, 1)
    plan = delayed(work, traverse=False)
    pieces = {v: a.to_delayed().ravel() for v, a in feeds.arrays.items()}
    fed = {k: Shape.of(v, feeds.dtype) for k, v in recipe.feeds.items()}
    forms = [fed[k] if own is None else None for k, own in leaves]
    parts = []
    starts = np.cumsum([0, *lengths]).tolist()
    for c, length in enumerate(lengths):
        given = [pieces[recipe.feeds[k]][c] if own is None else own for k, own in leaves]
        parts.append(delayed(as_task)(read_factors, plan, forms, starts[c], length, *given))
    return parts


def read_factors(
    plan: tuple[Program, LastEdges], forms: list[Shape | None], first: int, samples: int, *leaves: Array
) -> list[Factors]:
    """Check the feeds of one chunk, whose samples begin with number `first`, and return its factors."""
    program, ends = plan
    arrays = [leaf if form is None else check_array(form, leaf, form.dtype, first) for form, leaf in zip(forms, leaves)]
    return factors_block(ends, samples, *run_all(program, *arrays, np.ones((1, 1, 1), ends.dtype)))


def check_chunks(feeds: Feeds, lengths: Sequence[int], compute: Callable[[Any], Any]) -> None:
    """Raise an error for the first sample of the first feed that cannot be used, as calls do that read feeds one by one."""
    starts = np.cumsum([0, *lengths]).tolist()
    for v, array in feeds.arrays.items():
        form = Shape(v.name, v.dim, feeds.dtype)
        for start, piece in zip(starts, array.to_delayed().ravel()):
            compute(delayed(as_task)(_check_chunk, form, piece, start))


def _check_chunk(form: Shape, piece: Array, first: int) -> None:
    check_array(form, piece, form.dtype, first)


def rows(
    func: Callable[..., Any],
    parts: Sequence[Any],
    lengths: Sequence[int],
    tail: tuple[int, ...],
    dtype: Any,
    *args: Any,
) -> Any:
    """Return ``func(part, *args)`` of every block, one below the other."""
    blocks = [delayed(as_task)(func, part, *args) for part in parts]
    return da.concatenate([da.from_delayed(block, (n, *tail), dtype) for block, n in zip(blocks, lengths)])


def total(func: Callable[..., Any], parts: Sequence[Any], size: int, dtype: Any, *args: Any) -> Any:
    """Return the sum of ``func(part, *args)`` over all blocks."""
    return da.stack([da.from_delayed(delayed(as_task)(func, part, *args), (size,), dtype) for part in parts]).sum(
        axis=0
    )


def pairs(
    func: Callable[..., Any],
    left: Sequence[Any],
    right: Sequence[Any] | None,
    n: Sequence[int],
    m: Sequence[int],
    dtype: Any,
) -> Any:
    """Return ``func(a, b)`` of all pairs of blocks as one matrix.

    Without `right` it is symmetric, with ``func(a, None)`` on the diagonal.
    """
    grid: list[list[Any]] = []
    for i, a in enumerate(left):
        if right is not None:
            grid.append([delayed(as_task)(func, a, b) for b in right])
        else:
            above = [delayed(np.transpose)(grid[j][i]) for j in range(i)]
            grid.append(
                [*above, delayed(as_task)(func, a, None), *(delayed(as_task)(func, a, b) for b in left[i + 1 :])]
            )
    return da.block(
        [[da.from_delayed(x, (n[i], m[j]), dtype) for j, x in enumerate(line)] for i, line in enumerate(grid)]
    )


def chunk_sizes(samples: int, rows: int, forward: int, row: int, budget: int, what: str) -> tuple[int, int]:
    """Return how many samples and how many rows make a block that fits `budget`.

    Parameters
    ----------
    samples, rows : int
        Of the whole result.
    forward, row : int
        Bytes that one sample's values take, and one row of it.
    what : str
        For the message.

    Raises
    ------
    GraphError
        If one row of one sample does not fit.

    Examples
    --------
    >>> chunk_sizes(100, 10, forward=50, row=10, budget=600, what="y")
    (4, 10)
    >>> chunk_sizes(100, 10, forward=50, row=10, budget=100, what="y")
    (1, 5)
    """
    if forward + row > budget:
        raise GraphError(
            f"memory_budget of {budget:,} bytes is too small for one row of one sample of the Jacobian of {what}: "
            f"it takes {forward + row:,} bytes ({forward:,} for values, {row:,} for the row); give at least that"
        )
    together = budget // (forward + rows * row)
    return (min(samples, together), rows) if together else (1, min(rows, (budget - forward) // row))


def lazy_jacobian(recipe: Recipe, feeds: RememberedFeeds, budget: int) -> dict[Node, Any]:
    """Return the Jacobians as dask arrays ``(N, V, dim)``; see `Engine.jacobian`."""
    dtype, types = feeds.dtype, recipe.program.types
    samples, rows = feeds.samples, recipe.result.dim
    forward = dtype.itemsize * sum(t.dim for t in types if t.batched and not t.cotangent)
    row = dtype.itemsize * (sum(t.dim for t in types if t.cotangent) + max(n.dim for n in recipe.wrt))
    n, v = chunk_sizes(samples, rows, forward, row, budget, str(recipe.result))
    leaves, work = _plan(recipe, feeds, rows)
    tokens = [feeds.tokens[recipe.feeds[k]] if own is None else own.key for k, own in leaves]
    identity = combine(work[1].token, *tokens)
    plan = delayed(work, name=f"program-{identity}", traverse=False)
    over = [(a, min(a + n, samples)) for a in range(0, samples, n)]
    down = [(a, min(a + v, rows)) for a in range(0, rows, v)]
    blocks = {}
    for node, span in zip(recipe.wrt, recipe.spans):
        grid = []
        for start, stop in over:
            given = [cut_rows(feeds.arrays[recipe.feeds[k]], start, stop) if own is None else own for k, own in leaves]
            line = []
            for pair in down:
                name = f"jacobian-{token(identity, span, start, stop, pair)}"
                chunk = delayed(as_task)(jacobian_chunk, plan, span, pair, stop - start, *given, dask_key_name=name)
                line.append([da.from_delayed(chunk, (stop - start, pair[1] - pair[0], node.dim), dtype)])
            grid.append(line)
        blocks[node] = da.block(grid) if len(grid) * len(grid[0]) > 1 else grid[0][0][0]
    return blocks
