"""Feeds that are dask arrays: their chunks of samples stay what they are, and are read by the tasks that need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed

from flowgrad.errors import FeedError
from flowgrad.graph import Graph, Variable
from flowgrad.jacobians import Factors
from flowgrad.program import Instr
from flowgrad.typing import Array

from ..feeds.check import Feeds, check_array, check_lengths, common_dtype, fed_variable
from .recipe import Recipe
from .whole import whole_of
from .work import Ends, factors_chunk


class Fed(NamedTuple):
    """What a task needs to know of a variable to check its feed."""

    name: str
    dim: int


@dataclass(frozen=True)
class ChunkedFeeds:
    """Feeds as dask arrays of the same chunks of samples.

    Attributes
    ----------
    arrays : dict
    lengths : tuple of int
        Samples of each chunk.
    dtype : numpy dtype
    """

    arrays: dict[Variable, Any]
    lengths: tuple[int, ...]
    dtype: np.dtype[Any]


def chunk_feeds(graph: Graph, feeds: Mapping[Any, Any], dtype: Any) -> ChunkedFeeds:
    """Bring feeds, some of which are dask arrays, to common chunks of samples. Entries are checked when chunks are read.

    Raises
    ------
    FeedError
        If a variable, a shape or a number of samples does not fit, or a dask array does not know its chunks' sizes.
    """
    arrays: dict[Variable, Any] = {}
    for key, value in feeds.items():
        v = fed_variable(graph, key)
        array = value if isinstance(value, da.Array) else da.from_array(np.asarray(value), chunks=-1)
        if any(np.isnan(n) for n in array.shape):
            raise FeedError(
                f"the feed for {v.name!r} is a dask array of unknown length: call compute_chunk_sizes() first"
            )
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != v.dim):
            raise FeedError(
                f"the feed for {v.name!r} has shape {array.shape}, but its dim is {v.dim}: give (N, {v.dim})"
            )
        arrays[v] = array
    check_lengths({v: int(a.shape[0]) for v, a in arrays.items()})
    finest = max((a.chunks[0] for v, a in arrays.items() if isinstance(feeds[v], da.Array)), key=len)
    common = {v: a.rechunk((finest, *(-1,) * (a.ndim - 1))) for v, a in arrays.items()}
    return ChunkedFeeds(common, finest, common_dtype((a.dtype for a in arrays.values()), dtype))


def chunked_factors(recipe: Recipe, feeds: ChunkedFeeds) -> list[Any]:
    """Return the factors of each chunk of samples of a scalar's derivative, as delayed values."""
    whole = whole_of(recipe)
    statics = recipe.values_now(Feeds(feeds.arrays, sum(feeds.lengths), feeds.dtype))
    given = [delayed(statics[k][1], name=f"value-{statics[k][0]}") if k in statics else None for k in whole.leaves]
    ends = Ends(whole.edges, tuple(recipe.sizes), 1, feeds.dtype, "")
    plan = delayed((whole.instrs, ends), traverse=False)
    pieces = {v: a.to_delayed().ravel() for v, a in feeds.arrays.items()}
    names = [None if k in statics else Fed(recipe.feeds[k].name, recipe.feeds[k].dim) for k in whole.leaves]
    parts = []
    starts = np.cumsum([0, *feeds.lengths]).tolist()
    for c, length in enumerate(feeds.lengths):
        leaves = [pieces[recipe.feeds[k]][c] if value is None else value for k, value in zip(whole.leaves, given)]
        parts.append(delayed(read_factors)(plan, names, starts[c], length, *leaves))
    return parts


def read_factors(
    plan: tuple[tuple[Instr, ...], Ends], names: list[Fed | None], first: int, samples: int, *leaves: Array
) -> list[Factors]:
    """Check the feeds of one chunk, whose samples begin with number `first`, and return its factors."""
    instrs, ends = plan
    found = [leaf if name is None else check_array(name, leaf, ends.dtype, first) for name, leaf in zip(names, leaves)]
    return factors_chunk(instrs, ends, np.ones((1, 1, 1), ends.dtype), samples, *found)
