"""What an engine keeps from one derivative to the next, and how it asks for what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

from flowgrad.errors import GraphError, warn
from flowgrad.graph import Graph, Node, Variable
from flowgrad.inputs import integer

from ..derivatives import Recipe, Request, ValueCache
from ..executors import Executor, Handle
from ..feeds import FeedMemory, RememberedFeeds, check_nodes
from ..kernels import forget_kernels
from ..machine import clear_room
from ..programs import cut_samples
from ..tasks import Ref

# Recipes that an engine remembers.
REMEMBERED = 64


class Session:
    """What an engine runs on, and what it keeps: recipes by node, feeds that were seen before, and values by content.

    Parameters
    ----------
    dtype : optional
        Of results; by default that of the feeds.
    cache_bytes : int
        Bytes of values that are kept for later calls; 0 keeps nothing.
    """

    def __init__(self, executor: Executor, dtype: Any, grain: str, shards: int | None, kernel: str, cache_bytes: int):
        self.executor, self.dtype, self.grain, self.shards, self.kernel = executor, dtype, grain, shards, kernel
        self.cache = ValueCache(executor, integer(cache_bytes, "cache_bytes", 0))
        self.memory = FeedMemory(executor.remote, cache_bytes, self.cache.forget)
        self.recipes = lru_cache(REMEMBERED)(Recipe)
        # By graph: how many nodes it had, and which of them are variables. Nodes themselves would keep the graph alive.
        self.variables: WeakKeyDictionary[Graph, tuple[int, list[int]]] = WeakKeyDictionary()

    def clear(self) -> None:
        """Drop all values that are kept, and forget feeds and graphs."""
        with self.cache.lock:
            self.cache.clear()
            self.memory.clear()
            self.recipes.cache_clear()
        clear_room()
        forget_kernels()

    def check(self, graph: Graph, feeds: Any) -> RememberedFeeds:
        """Return checked feeds, with what stands for their content."""
        with self.cache.lock:
            return self.memory.check(graph, feeds, self.dtype)

    def recipe(self, result: Node, wrt: Any, feeds: Any, what: str) -> tuple[Recipe, RememberedFeeds]:
        """Return how the derivative of a node by others is computed, and the checked feeds; `what` is for messages."""
        graph, _ = check_nodes(result, what)
        nodes = self.nodes(graph, feeds, wrt)
        checked = self.check(graph, feeds)
        return self.recipe_of(result, nodes, checked.arrays), checked

    def nodes(self, graph: Graph, feeds: Any, wrt: Any) -> list[Node]:
        """Return the nodes to differentiate by: those given, or all trainable variables that are not fed."""
        if wrt is None:
            with self.cache.lock:
                nodes, known = graph._nodes, self.variables.get(graph)
                if known is None or known[0] != len(nodes):
                    known = self.variables[graph] = (len(nodes), [n.index for n in nodes if isinstance(n, Variable)])
                fed = feeds if isinstance(feeds, Mapping) else ()
                variables = (cast(Variable, nodes[k]) for k in known[1])
                return [v for v in variables if v.trainable and v not in fed]
        return nodes_of(wrt, graph)

    def recipe_of(self, result: Node, nodes: list[Node], fed: Any) -> Recipe:
        """Return how the derivative is computed; warn of nodes that the result does not depend on."""
        with self.cache.lock:
            recipe = self.recipes(result, tuple(nodes), frozenset(fed), self.grain, self.kernel)
        if recipe.independent:
            names = ", ".join(repr(n.name) for n in recipe.independent[:5])
            more = ", ..." if len(recipe.independent) > 5 else ""
            warn(f"{result} does not depend on {names}{more}: that derivative is zero")
        return recipe

    def blocks(self, samples: int) -> list[tuple[int, int]]:
        """Return the ranges of samples that are computed one by one."""
        return cut_samples(samples, self.grain, self.shards)

    def submit(self, request: Request, refs: Sequence[Ref], alone: bool) -> list[Handle]:
        """Submit a request; what it computed on the way is kept."""
        kept = list(request.sizes) if self.cache.limit else []
        keys = [*(ref.key for ref in refs), *kept]
        if alone and self.grain != "node":
            handles = self.executor.submit_line(request.records, keys, one_blas_thread=request.threads > 1)
        else:
            handles = self.executor.submit(request.records, keys)
        for handle in handles[len(refs) :]:
            call = request.feeds.call if handle.key in request.fed else None
            self.cache.add(handle, request.sizes[handle.key], call)
        self.cache.trim(self.memory.nbytes)
        return handles[: len(refs)]

    def gather(self, handles: Sequence[Handle]) -> list[Any]:
        """Bring values here and let go of them."""
        try:
            return self.executor.result(handles)
        finally:
            self.executor.release(handles)


def nodes_of(wrt: Any, graph: Any) -> list[Node]:
    """Return the nodes to differentiate by, each once."""
    nodes: dict[Node, None] = {}
    for node in [wrt] if isinstance(wrt, Node) or not isinstance(wrt, Iterable) else wrt:
        if not isinstance(node, Node):
            raise GraphError(f"derivatives are by nodes; {node!r} is not one")
        if node.graph is not graph:
            raise GraphError(f"{node} belongs to another graph")
        nodes[node] = None
    return list(nodes)
