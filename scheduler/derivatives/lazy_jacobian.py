"""Jacobians larger than the memory they may take: dask arrays, chunked over samples and rows. Nothing is computed here."""

from __future__ import annotations

from typing import Any

import dask.array as da
from dask import delayed

from flowgrad.errors import GraphError
from flowgrad.graph import Node

from ..feeds.memory import KnownFeeds
from ..programs.work import cut_rows
from ..tasks.records import token
from .recipe import Recipe
from .units import combine
from .whole import whole_of
from .work import Ends, jacobian_chunk


def chunk_sizes(samples: int, rows: int, forward: int, row: int, budget: int, what: str) -> tuple[int, int]:
    """Return how many samples and how many rows make a block that fits `budget`.

    Parameters
    ----------
    samples, rows : int
        Of the whole result.
    forward, row : int
        Bytes that one sample's values take, and one row of it.
    budget : int
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


def lazy_jacobian(recipe: Recipe, known: KnownFeeds, budget: int) -> dict[Node, Any]:
    """Return the Jacobians as dask arrays ``(N, V, dim)``; see `Derivatives.jacobian`."""
    whole, dtype = whole_of(recipe), known.feeds.dtype
    statics = recipe.values_now(known.feeds)
    types = recipe.program.types
    values = [t for t in types if not t.cotangent and t.batched]
    moving = [t for t in types if t.cotangent]
    samples, rows = known.feeds.samples, recipe.result.dim
    forward = dtype.itemsize * sum(t.dim for t in values)
    row = dtype.itemsize * (sum(t.dim for t in moving) + max(n.dim for n in recipe.wrt))
    n, v = chunk_sizes(samples, rows, forward, row, budget, str(recipe.result))
    ends = Ends(whole.edges, tuple(recipe.sizes), rows, dtype, "")
    given = [statics[k][0] if k in statics else known.tokens[recipe.feeds[k]] for k in whole.leaves]
    work = [(i.verb, i.op, i.attrs, i.slot, i.arity, i.args) for i in whole.instrs]
    told = combine(*given, token(work, [(e.wrt, e.start, e.entries, e.pull[2:]) for e in whole.edges]))
    own = [delayed(statics[k][1], name=f"value-{statics[k][0]}") if k in statics else None for k in whole.leaves]
    over = [(a, min(a + n, samples)) for a in range(0, samples, n)]
    down = [(a, min(a + v, rows)) for a in range(0, rows, v)]
    unit = delayed(whole.instrs, name=f"program-{token(recipe.ends(rows, dtype).token, told)}", traverse=False)
    found = {}
    for node, place in zip(recipe.wrt, recipe.place):
        grid = []
        for start, stop in over:
            leaves = [
                array if array is not None else cut_rows(known.feeds.arrays[recipe.feeds[k]], start, stop)
                for k, array in zip(whole.leaves, own)
            ]
            line = []
            for pair in down:
                name = token(told, recipe.ends(rows, dtype).token, repr(place), start, stop, pair)
                chunk = delayed(jacobian_chunk)(
                    unit, ends, place, pair, stop - start, *leaves, dask_key_name=f"jacobian-{name}"
                )
                line.append([da.from_delayed(chunk, (stop - start, pair[1] - pair[0], node.dim), dtype)])
            grid.append(line)
        found[node] = da.block(grid) if len(grid) * len(grid[0]) > 1 else grid[0][0][0]
    return found
