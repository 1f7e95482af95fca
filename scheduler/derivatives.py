"""What an engine knows about derivatives beside gradients: Jacobians, per-sample gradients, products with vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import psutil
from dask import is_dask_collection

from flowgrad.errors import GraphError
from flowgrad.graph import Graph
from flowgrad.jacobian import Array
from flowgrad.node import Node

from . import buffers
from .cache import Cache, CacheInfo
from .executors import Executor, Handle, Lost
from .feeds import check_nodes
from .forward_mode import cheaper_mode, lower_push
from .known import FeedMemory, KnownFeeds
from .per_sample import PerSampleGradients
from .recipe import Recipe, RecipeBook
from .request import Request
from .steps import factors_block, jacobian_block, join
from .tasks import Ref
from .tree import bounds

# Samples in one block if no number of shards is given, and blocks at most.
BLOCK_SAMPLES = 4096
# Bytes of a Jacobian from which on it matters how much memory is free; asking takes a third of a millisecond.
CHECKED = 64 << 20
MAX_BLOCKS = 16


Lower = Callable[[Request, int, int], Ref]


def lower_reverse(request: Request, start: int, stop: int) -> Ref:
    """Add the task that runs the last edges back for samples ``start:stop``."""
    recipe = request.recipe
    ends = recipe.ends(len(request.seed), request.known.feeds.dtype)
    refs = request.refs(start, stop, recipe.end_reads)
    reads = [refs[var] for var in recipe.end_reads]
    return request.task("jacobian", jacobian_block, ends, recipe.place, stop - start, *reads)


class Derivatives:
    """Base of `Engine`: derivatives that are kept, reused and exact."""

    executor: Executor
    dtype: Any
    grain: str
    shards: int | None
    cache: Cache
    memory: FeedMemory
    recipes: RecipeBook

    def _begin(self, cache_bytes: int) -> None:
        if isinstance(cache_bytes, bool) or not isinstance(cache_bytes, (int, np.integer)) or cache_bytes < 0:
            raise GraphError(f"cache_bytes is a number of bytes, 0 or more, not {cache_bytes!r}")
        self.cache = Cache(self.executor, int(cache_bytes))
        self.memory = FeedMemory(self.executor.remote, cache_bytes > 0, self.cache.forget)
        self.recipes = RecipeBook()

    # -- the cache ----------------------------------------------------------------------------------------------

    def cache_info(self) -> CacheInfo:
        """Return what the cache of intermediate values and cotangents did: hits, misses, bytes, limit, values.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, [1.0, 2.0])
        ...     y = fg.Exp(x * x)
        >>> engine = fg.Engine("sync")
        >>> _ = engine.jacobian(y, x), engine.jacobian(y, x)
        >>> engine.cache_info().hits > 0
        True
        """
        return self.cache.info()

    def clear_cache(self) -> None:
        """Drop all values that are kept, and forget the feeds seen; the counts start again.

        The memory of large results, which is used again when the caller has let go of them, goes too.
        """
        self.cache.clear()
        self.memory.clear()
        buffers.clear()

    # -- Jacobians ----------------------------------------------------------------------------------------------

    def jacobian(
        self,
        result: Node,
        wrt: Node | Sequence[Node],
        feeds: Mapping[Any, Any] | None = None,
        compute: bool = True,
        memory_budget: int | None = None,
        mode: str = "auto",
    ) -> Any:
        """Compute the Jacobian of `result` by other nodes, for every sample.

        Forward values and cotangents stay where they were computed, under keys that name their content: a second call computes
        only what is new. See `cache_info`.

        Parameters
        ----------
        result : Node
            Vector or scalar.
        wrt : Node or list of Node
            Variables or inner nodes; cotangents that they share are computed once.
        feeds : dict, optional
            ``{variable: array (N, dim)}``.
        compute : bool
            False: return futures. On a cluster these are dask Futures; without one, objects whose ``result()`` is there.
        memory_budget : int, optional
            Bytes that the result, and one block of work, may take; half of the free memory if not given. A larger result comes
            back as a dask array, chunked over samples and, if need be, rows, and nothing is computed yet.
        mode : str
            ``"reverse"``, ``"forward"``, or ``"auto"``: whichever takes fewer operations; forward pays where `wrt` has fewer
            entries than `result`. The numbers are the same up to rounding.

        Returns
        -------
        ndarray or dask array (N, result.dim, wrt.dim), or for a list a dict of them
            Zeros, with a warning, where the result does not depend on a node.

        Raises
        ------
        GraphError
            If a node is of another graph, or one row of one sample does not fit the memory budget.
        FeedError
            If a feed is missing or cannot be used.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, trainable=False)
        ...     y = x * x
        >>> fg.Engine("sync").jacobian(y, x, {x: [[1.0, 3.0]]}).tolist()
        [[[2.0, 0.0], [0.0, 6.0]]]
        """
        if mode not in ("auto", "reverse", "forward"):
            raise GraphError(f"unknown mode {mode!r}: choose auto, reverse or forward")
        recipe, known = self._recipe(result, wrt, feeds, "jacobian")
        nodes = recipe.wrt
        size = known.feeds.samples * result.dim * sum(n.dim for n in nodes) * known.feeds.dtype.itemsize
        if memory_budget is not None:
            budget = _positive(memory_budget, "memory_budget")
        else:
            budget = int(psutil.virtual_memory().available) // 2 if size > CHECKED else CHECKED
        if compute and size > budget:
            found = _late("lazy_jacobian").lazy_jacobian(recipe, known, budget)
        else:
            forward = mode == "forward" or (mode == "auto" and cheaper_mode(recipe) == "forward")
            lower = lower_push if forward else lower_reverse
            found = {}
            with suppress(Lost):
                found = self._run_jacobian(recipe, known, lower, compute)
            if not found:  # what was kept is gone with a worker: begin anew
                self.cache.lost()
                found = self._run_jacobian(recipe, known, lower, compute)
        return found[nodes[0]] if isinstance(wrt, Node) else found

    def _run_jacobian(self, recipe: Recipe, known: KnownFeeds, lower: Lower, compute: bool) -> dict[Node, Any]:
        request = Request(recipe, known, self.cache)
        blocks = [lower(request, start, stop) for start, stop in self._blocks(known.feeds.samples)]
        if not compute:
            joined = [request.task("join", join, blocks, k) for k in range(len(recipe.wrt))]
            handles = self._submit(request, joined, len(blocks) == 1)
            futures = [self.executor.future(h) for h in handles]
            if not self.executor.remote:
                self.executor.release(handles)
            return dict(zip(recipe.wrt, futures))
        parts = self._gather(request, blocks)
        return {node: join(parts, k) for k, node in enumerate(recipe.wrt)}

    # -- per-sample gradients -----------------------------------------------------------------------------------

    def per_sample_gradients(
        self, target: Node, feeds: Mapping[Any, Any] | None = None, wrt: Node | Sequence[Node] | None = None
    ) -> PerSampleGradients:
        """Compute the gradient of a scalar for each sample, as factors: norms, scalar products and sums need no more.

        Parameters
        ----------
        target : Node
            Of dim 1.
        feeds : dict, optional
            NumPy arrays; or dask arrays, which may be larger than memory: their chunks are read when a result needs them.
        wrt : Node or list of Node, optional
            All trainable variables that are not fed, if not given.

        Returns
        -------
        PerSampleGradients

        Raises
        ------
        GraphError
            If the target is not scalar.
        FeedError
            If a feed is missing or cannot be used.
        """
        return self._per_sample(target, feeds, wrt, None)

    def _per_sample(self, target: Node, feeds: Any, wrt: Any, seed: Array | None) -> PerSampleGradients:
        """Return the factors of ``seedᵀ d target``; `seed` ``(V, N, target.dim)`` may be left out for a scalar."""
        if seed is None and isinstance(target, Node) and target.dim != 1:
            raise GraphError(
                f"the target {target} is not a scalar: it has dim {target.dim}, a gradient needs dim 1; use jacobian"
            )
        if seed is None and isinstance(feeds, Mapping) and any(is_dask_collection(a) for a in feeds.values()):
            return self._chunked(target, feeds, wrt)
        recipe, known = self._recipe(target, wrt, feeds, "per_sample_gradients")
        blocks = self._blocks(known.feeds.samples)
        here = len(blocks) == 1 and not self.executor.remote
        request = Request(recipe, known, self.cache, seed, self.executor.threads if here else 1)
        ends = recipe.ends(len(request.seed), known.feeds.dtype)
        keys = []
        for start, stop in blocks:
            refs = request.refs(start, stop, recipe.end_reads)
            reads = [refs[var] for var in recipe.end_reads]
            keys.append(request.task("factors", factors_block, ends, stop - start, *reads))
        handles = self._submit(request, keys, len(blocks) == 1)
        release: Any = None
        if self.executor.remote:
            parts, release = [self.executor.future(h) for h in handles], partial(self.executor.release, handles)
        else:
            parts = self.executor.result(handles)
            self.executor.release(handles)
        lengths = [stop - start for start, stop in blocks]
        places = recipe.place
        return PerSampleGradients(
            self.executor, recipe.wrt, places, recipe.sizes, parts, lengths, known.feeds.dtype, release
        )

    def _chunked(self, target: Node, feeds: Any, wrt: Any) -> PerSampleGradients:
        graph, _ = check_nodes(target, "per_sample_gradients")
        late = _late("chunked")
        chunked = late.chunk_feeds(graph, feeds, self.dtype)
        recipe = self._recipe_of(target, self._wrt(graph, feeds, wrt), chunked.arrays)
        parts = late.chunked_factors(recipe, chunked)
        places = recipe.place
        return PerSampleGradients(
            self.executor, recipe.wrt, places, recipe.sizes, parts, chunked.lengths, chunked.dtype
        )

    # -- how it runs --------------------------------------------------------------------------------------------

    def _recipe(self, result: Node, wrt: Any, feeds: Any, what: str) -> tuple[Recipe, KnownFeeds]:
        graph, _ = check_nodes(result, what)
        nodes = self._wrt(graph, feeds, wrt)
        known = self.memory.check(graph, feeds, self.dtype)
        return self._recipe_of(result, nodes, known.feeds.arrays), known

    def _wrt(self, graph: Graph, feeds: Any, wrt: Any) -> list[Node]:
        if wrt is None:
            return self.recipes.trained(graph, feeds if isinstance(feeds, Mapping) else ())
        return nodes_of(wrt, graph)

    def _recipe_of(self, result: Node, nodes: list[Node], fed: Any) -> Recipe:
        recipe = self.recipes.get(result, nodes, fed, self.grain)
        if recipe.independent:
            names = ", ".join(repr(n.name) for n in recipe.independent[:5])
            more = ", ..." if len(recipe.independent) > 5 else ""
            warnings.warn(f"{result} does not depend on {names}{more}: that derivative is zero", stacklevel=5)
        return recipe

    def _blocks(self, samples: int) -> list[tuple[int, int]]:
        if self.grain == "sample":
            return bounds(samples, samples)
        return bounds(samples, self.shards or min(MAX_BLOCKS, -(-samples // BLOCK_SAMPLES)))

    def _submit(self, request: Request, refs: Sequence[Ref], alone: bool) -> list[Handle]:
        """Submit a request; what it computed on the way is kept."""
        kept = list(request.sizes) if self.cache.limit else []
        keys = [*(ref.key for ref in refs), *kept]
        if alone and self.grain != "node":
            handles = self.executor.submit_line(request.records, keys, one_blas_thread=request.threads > 1)
        else:
            handles = self.executor.submit(request.records, keys)
        for handle in handles[len(refs) :]:
            its = request.known if handle.key in request.fed else None
            self.cache.add(handle, request.sizes[handle.key], its)
        self.cache.trim()
        return handles[: len(refs)]

    def _gather(self, request: Request, refs: Sequence[Ref]) -> list[Any]:
        handles = self._submit(request, refs, len(refs) == 1)
        try:
            return self.executor.result(handles)
        finally:
            self.executor.release(handles)


def _late(name: str) -> Any:
    """Load a module that works with dask arrays, which take a while to import."""
    return import_module(f".{name}", __package__)


def nodes_of(wrt: Any, graph: Any) -> list[Node]:
    """Return the nodes to differentiate by, each once."""
    found: dict[Node, None] = {}
    for node in [wrt] if isinstance(wrt, Node) else list(wrt):
        if not isinstance(node, Node):
            raise GraphError(f"derivatives are by nodes; {node!r} is not one")
        if node.graph is not graph:
            raise GraphError(f"{node} belongs to another graph")
        found[node] = None
    return list(found)


def _positive(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise GraphError(f"{what} must be a positive integer, not {value!r}")
    return int(value)
