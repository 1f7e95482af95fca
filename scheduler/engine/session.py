"""What an engine keeps from one derivative to the next, and how it asks for what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowgrad.errors import GraphError
from flowgrad.graph import Graph, Node
from flowgrad.inputs import integer

from ..derivatives import Cache, CacheInfo, Recipe, RecipeBook, Request
from ..executors import Executor, Handle
from ..feeds import FeedMemory, KnownFeeds, check_nodes
from ..machine import clear_arrays
from ..programs import cut_samples
from ..tasks import Ref


class Kept:
    """Base of engines: recipes by node, feeds seen before, and values by content."""

    executor: Executor
    dtype: Any
    grain: str
    shards: int | None
    cache: Cache
    memory: FeedMemory
    recipes: RecipeBook

    def _begin(self, cache_bytes: int) -> None:
        self.cache = Cache(self.executor, integer(cache_bytes, "cache_bytes", 0))
        self.memory = FeedMemory(self.executor.remote, cache_bytes > 0, self.cache.forget, self.cache.lock)
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
        """Drop all values that are kept, and forget feeds and graphs; the counts start again.

        The memory of large results, which is used again when the caller has let go of them, goes too.
        """
        with self.cache.lock:
            self.cache.clear()
            self.memory.clear()
            self.recipes.clear()
        clear_arrays()

    # -- how it runs --------------------------------------------------------------------------------------------

    def _recipe(self, result: Node, wrt: Any, feeds: Any, what: str) -> tuple[Recipe, KnownFeeds]:
        graph, _ = check_nodes(result, what)
        nodes = self._wrt(graph, feeds, wrt)
        known = self.memory.check(graph, feeds, self.dtype)
        return self._recipe_of(result, nodes, known.feeds.arrays), known

    def _wrt(self, graph: Graph, feeds: Any, wrt: Any) -> list[Node]:
        if wrt is None:
            with self.cache.lock:
                return self.recipes.trained(graph, feeds if isinstance(feeds, Mapping) else ())
        return nodes_of(wrt, graph)

    def _recipe_of(self, result: Node, nodes: list[Node], fed: Any) -> Recipe:
        with self.cache.lock:
            recipe = self.recipes.get(result, nodes, fed, self.grain)
        if recipe.independent:
            names = ", ".join(repr(n.name) for n in recipe.independent[:5])
            more = ", ..." if len(recipe.independent) > 5 else ""
            warnings.warn(f"{result} does not depend on {names}{more}: that derivative is zero", stacklevel=5)
        return recipe

    def _blocks(self, samples: int) -> list[tuple[int, int]]:
        return cut_samples(samples, self.grain, self.shards)

    def _submit(self, request: Request, refs: Sequence[Ref], alone: bool) -> list[Handle]:
        """Submit a request; what it computed on the way is kept."""
        kept = list(request.sizes) if self.cache.limit else []
        keys = [*(ref.key for ref in refs), *kept]
        if alone and self.grain != "node":
            handles = self.executor.submit_line(request.records, keys, one_blas_thread=request.threads > 1)
        else:
            handles = self.executor.submit(request.records, keys)
        for handle in handles[len(refs) :]:
            call = request.known.call if handle.key in request.fed else None
            self.cache.add(handle, request.sizes[handle.key], call)
        self.cache.trim()
        return handles[: len(refs)]

    def _gather(self, handles: Sequence[Handle]) -> list[Any]:
        try:
            return self.executor.result(handles)
        finally:
            self.executor.release(handles)


def nodes_of(wrt: Any, graph: Any) -> list[Node]:
    """Return the nodes to differentiate by, each once."""
    found: dict[Node, None] = {}
    for node in [wrt] if isinstance(wrt, Node) or not isinstance(wrt, Iterable) else wrt:
        if not isinstance(node, Node):
            raise GraphError(f"derivatives are by nodes; {node!r} is not one")
        if node.graph is not graph:
            raise GraphError(f"{node} belongs to another graph")
        found[node] = None
    return list(found)
