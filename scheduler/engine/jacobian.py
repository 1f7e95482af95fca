"""What an engine knows about derivatives beside gradients: Jacobians, per-sample gradients, products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
from dask import is_dask_collection

from flowgrad.errors import GraphError
from flowgrad.graph import Node
from flowgrad.inputs import integer
from flowgrad.typing import Array

from .. import derivatives
from ..derivatives import (
    Made,
    Parts,
    PerSampleGradients,
    Recipe,
    Request,
    cheaper_mode,
    factors_block,
    join,
    lower_push,
    lower_reverse,
)
from ..executors import Lost
from ..feeds import KnownFeeds, check_nodes
from ..tasks import Ref
from .session import Kept

# Bytes of a Jacobian from which on it matters how much memory is free; asking takes a third of a millisecond.
CHECKED = 64 << 20


Lower = Callable[[Request, int, int], Ref]


class Derivatives(Kept):
    """Base of `Engine`: derivatives that are kept, reused and exact."""

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
            budget = integer(memory_budget, "memory_budget")
        else:
            budget = int(psutil.virtual_memory().available) // 2 if size > CHECKED else CHECKED
        if compute and size > budget:
            found = derivatives.lazy_jacobian(recipe, known, budget)
        else:
            forward = mode == "forward" or (mode == "auto" and cheaper_mode(recipe) == "forward")
            lower = lower_push if forward else lower_reverse
            found = None
            with suppress(Lost):
                found = self._run_jacobian(recipe, known, lower, compute)
            if found is None:  # what was kept is gone with a worker: begin anew
                with self.cache.lock:
                    self.cache.lost()
                found = self._run_jacobian(recipe, known, lower, compute)
        return found[nodes[0]] if isinstance(wrt, Node) else found

    def _run_jacobian(self, recipe: Recipe, known: KnownFeeds, lower: Lower, compute: bool) -> dict[Node, Any]:
        with self.cache.lock:
            request = Request(recipe, known, self.cache)
            blocks = [lower(request, start, stop) for start, stop in self._blocks(known.feeds.samples)]
            wanted = blocks
            if not compute:
                wanted = [request.task("join", join, blocks, k) for k in range(len(recipe.wrt))]
            handles = self._submit(request, wanted, len(blocks) == 1)
        if compute:
            parts = self._gather(handles)
            return {node: join(parts, k) for k, node in enumerate(recipe.wrt)}
        futures = [self.executor.future(h) for h in handles]
        if not self.executor.remote:
            self.executor.release(handles)
        return dict(zip(recipe.wrt, futures))

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

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, -1.0])
        ...     y = fg.Dot(w, x)
        >>> feeds = {x: [[3.0, 1.0], [5.0, 5.0]]}
        >>> gradients = fg.Engine("sync").per_sample_gradients(y, feeds)
        >>> gradients.array(w).tolist(), gradients.mean()[w].tolist()
        ([[3.0, 1.0], [5.0, 5.0]], [4.0, 3.0])
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
        lengths = [stop - start for start, stop in self._blocks(known.feeds.samples)]
        again = self._again(recipe, known, seed) if self.executor.remote else None
        parts = Parts(self._factors(recipe, known, seed), lengths, again)
        return PerSampleGradients(self.executor, recipe.wrt, recipe.place, recipe.sizes, parts, known.feeds.dtype)

    def _again(self, recipe: Recipe, known: KnownFeeds, seed: Array | None) -> Callable[[], Made]:
        """Return what makes the same factors once more, after values were lost."""
        set_now = recipe.tokens_now(known.feeds)

        def again() -> Made:
            if recipe.tokens_now(known.feeds) != set_now or not known.unchanged():
                raise Lost(
                    "factors are gone with a worker, and variables or feeds have changed since: call per_sample_gradients again"
                )
            with self.cache.lock:
                self.cache.lost()
            return self._factors(recipe, known, seed)

        return again

    def _factors(self, recipe: Recipe, known: KnownFeeds, seed: Array | None) -> Made:
        blocks = self._blocks(known.feeds.samples)
        here = len(blocks) == 1 and not self.executor.remote
        with self.cache.lock:
            request = Request(recipe, known, self.cache, seed, self.executor.threads if here else 1)
            ends = recipe.ends(len(request.seed), known.feeds.dtype)
            keys = []
            for start, stop in blocks:
                refs = request.refs(start, stop, recipe.end_reads)
                reads = [refs[var] for var in recipe.end_reads]
                keys.append(request.task("factors", factors_block, ends, stop - start, *reads))
            handles = self._submit(request, keys, len(blocks) == 1)
        if self.executor.remote:
            return Made([self.executor.future(h) for h in handles], partial(self.executor.release, handles))
        return Made(self._gather(handles))

    def _chunked(self, target: Node, feeds: Any, wrt: Any) -> PerSampleGradients:
        graph, _ = check_nodes(target, "per_sample_gradients")
        chunked = derivatives.chunk_feeds(graph, feeds, self.dtype)
        recipe = self._recipe_of(target, self._wrt(graph, feeds, wrt), chunked.arrays)
        parts = Parts(Made(derivatives.chunked_factors(recipe, chunked)), chunked.lengths)
        return PerSampleGradients(self.executor, recipe.wrt, recipe.place, recipe.sizes, parts, chunked.dtype)
