"""What an engine keeps from one derivative to the next, and how it asks for what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

from flowgrad.errors import GraphError, warn
from flowgrad.graph import Graph, Node, Variable, named
from flowgrad.inputs import brief, integer, listed
from flowgrad.program import Program, verify
from flowgrad.tangents import linearize

from ..derivatives import Recipe, Request, ValueCache
from ..executors import Executor, Handle
from ..feeds import FeedMemory, Feeds, RememberedFeeds, check_nodes
from ..kernels import forget_kernels
from ..machine import clear_room, without_collection
from ..programs import (
    choose_by_size,
    compile_forward,
    compile_gradient,
    cut_samples,
    prune,
    require_inputs,
)
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
        self.memory = FeedMemory(executor, cache_bytes, self.cache.forget)
        self.recipes = lru_cache(REMEMBERED)(self._made_recipe)
        self._forward = lru_cache(REMEMBERED)(self._made_forward)
        self._gradients = lru_cache(REMEMBERED)(self._made_gradient)
        self._tangents = lru_cache(REMEMBERED)(self._made_tangents)
        # By graph: how many nodes it had, and which of them are variables. Nodes themselves would keep the graph alive.
        self.variables: WeakKeyDictionary[Graph, tuple[int, list[int]]] = WeakKeyDictionary()

    def clear(self) -> None:
        """Drop all values that are kept, and forget feeds and graphs."""
        with self.cache.lock:
            self.cache.clear()
            self.memory.clear()
            for programs in (self.recipes, self._forward, self._gradients, self._tangents):
                programs.cache_clear()
        clear_room()
        forget_kernels()

    def check(self, graph: Graph, feeds: Any) -> RememberedFeeds:
        """Return checked feeds, with what stands for their content."""
        with self.cache.lock:
            return self.memory.check(graph, feeds, self.dtype)

    # -- programs, made once for the rules that there are now ---------------------------------------------------

    def forward_program(
        self, targets: Sequence[Node], feeds: Feeds, grain: str, params: Sequence[Variable] = ()
    ) -> Program:
        """Return what computes the values of nodes; `params` lie in a vector of their own."""
        rules = targets[0].graph._rules_token()
        program = self._forward(rules, tuple(targets), frozenset(feeds.arrays), tuple(params), grain)
        return self._known(program, targets[0], feeds)

    @without_collection
    def _made_forward(
        self, rules: str, targets: tuple[Node, ...], fed: frozenset[Variable], params: tuple[Variable, ...], grain: str
    ) -> Program:
        return choose_by_size(compile_forward(targets, fed, params, grain), grain, self.kernel)

    def gradient_program(
        self, target: Node, feeds: Feeds, wrt: Sequence[Variable], grain: str
    ) -> tuple[Program, list[tuple[str, list[Variable]]]]:
        """Return what computes the mean gradient; see `compile_gradient`."""
        rules = target.graph._rules_token()
        program, named = self._gradients(rules, target, frozenset(feeds.arrays), tuple(wrt), grain)
        return self._known(program, target, feeds), named

    @without_collection
    def _made_gradient(
        self, rules: str, target: Node, fed: frozenset[Variable], wrt: tuple[Variable, ...], grain: str
    ) -> Any:
        program, named = compile_gradient(target, fed, wrt, grain)
        return choose_by_size(program, grain, self.kernel), named

    def tangent_program(self, program: Program, moving: Mapping[int, bool], output: str) -> Program | None:
        """Return what computes the tangent of an output, for tangents of some inputs; None if it is zero."""
        return self._tangents(program, tuple(moving.items()), output)

    @without_collection
    def _made_tangents(self, program: Program, moving: tuple[tuple[int, bool], ...], output: str) -> Program | None:
        made = linearize(program, dict(moving), [output])
        return choose_by_size(verify(prune(made)), self.grain, self.kernel) if made.outputs else None

    def _known(self, program: Program, target: Node, feeds: Feeds) -> Program:
        require_inputs(program, target, feeds)
        return program

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
                fed = {graph._named.get(key, key) for key in feeds} if isinstance(feeds, Mapping) else ()
                variables = (cast(Variable, nodes[k]) for k in known[1])
                return [v for v in variables if v.trainable and v not in fed]
        return nodes_of(wrt, graph)

    @without_collection
    def _made_recipe(self, rules: str, *about: Any) -> Recipe:
        return Recipe(*about)

    def recipe_of(self, result: Node, nodes: list[Node], fed: Any) -> Recipe:
        """Return how the derivative is computed; warn of nodes that the result does not depend on."""
        with self.cache.lock:
            rules = result.graph._rules_token()
            recipe = self.recipes(rules, result, tuple(nodes), frozenset(fed), self.grain, self.kernel)
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
        keys = [*(ref.key for ref in refs), *(request.known[name].key for name in kept)]
        if alone and self.grain != "node":
            handles = self.executor.submit_line(request.records, keys, one_blas_thread=request.threads > 1)
        else:
            handles = self.executor.submit(request.records, keys)
        for name, handle in zip(kept, handles[len(refs) :]):
            call = request.feeds.call if name in request.fed else None
            self.cache.add(name, handle, request.sizes[name], call)
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
    several = listed(wrt)
    for node in (named(graph, key, "derivatives") for key in ([wrt] if several is None else several)):
        if not isinstance(node, Node):
            raise GraphError(f"derivatives are by nodes; {brief(node)} is not one")
        if node.graph is not graph:
            raise GraphError(f"{node} belongs to another graph")
        nodes[node] = None
    return list(nodes)
