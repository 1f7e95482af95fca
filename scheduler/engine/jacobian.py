"""Jacobians and per-sample gradients: out of what a session keeps, and once more where that is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import psutil

from flowgrad.graph import Node
from flowgrad.inputs import flag, integer, one_of
from flowgrad.typing import Array

from .. import derivatives
from ..derivatives import (
    Blocks,
    PerSampleGradients,
    Recipe,
    Request,
    cheaper_mode,
    join,
    lower_factors,
    lower_push,
    lower_reverse,
)
from ..executors import Lost
from ..feeds import Feeds, RememberedFeeds, check_nodes, is_chunked, read_feeds, settled_feeds
from ..tasks import Ref
from .session import Session
from .values import check_scalar

# Bytes of a Jacobian from which on it matters how much memory is free; asking takes a third of a millisecond.
CHECKED = 64 << 20

Lower = Callable[[Request, int, int], Ref]


def jacobian(
    session: Session,
    result: Node,
    wrt: Node | Sequence[Node],
    feeds: Mapping[Any, Any] | None,
    compute: bool,
    memory_budget: int | None,
    mode: str,
) -> Any:
    """Compute the Jacobian of `result` by other nodes; see `Engine.jacobian`."""
    one_of(mode, "mode", ("auto", "reverse", "forward"))
    compute = flag(compute, "compute")
    recipe, checked = session.recipe(result, wrt, feeds, "jacobian")
    nodes = recipe.wrt
    size = checked.samples * result.dim * sum(n.dim for n in nodes) * checked.dtype.itemsize
    if memory_budget is not None:
        budget = integer(memory_budget, "memory_budget")
    else:
        budget = int(psutil.virtual_memory().available) // 2 if size > CHECKED else CHECKED
    if compute and size > budget:
        arrays = derivatives.lazy_jacobian(recipe, checked, budget)
    else:
        forward = mode == "forward" or (mode == "auto" and cheaper_mode(recipe) == "forward")
        lower = lower_push if forward else lower_reverse
        try:
            arrays = _run_jacobian(session, recipe, checked, lower, compute)
        except Lost:  # what was kept is gone with a worker: begin anew
            with session.cache.lock:
                session.cache.lost()
            arrays = _run_jacobian(session, recipe, checked, lower, compute)
    return arrays[nodes[0]] if isinstance(wrt, (Node, str)) else arrays


def _run_jacobian(
    session: Session, recipe: Recipe, feeds: RememberedFeeds, lower: Lower, compute: bool
) -> dict[Node, Any]:
    with session.cache.lock:
        request = Request(recipe, feeds, session.cache)
        blocks = [lower(request, start, stop) for start, stop in session.blocks(feeds.samples)]
        wanted = blocks
        if not compute:
            wanted = [request.task("join", join, blocks, k) for k in range(len(recipe.wrt))]
        handles = session.submit(request, wanted, len(blocks) == 1)
    if compute:
        parts = session.gather(handles)
        return {node: join(parts, k) for k, node in enumerate(recipe.wrt)}
    futures = [session.executor.future(h) for h in handles]
    if not session.executor.remote:
        session.executor.release(handles)
    return dict(zip(recipe.wrt, futures))


def per_sample_gradients(session: Session, target: Node, feeds: Any, wrt: Any) -> PerSampleGradients:
    """Compute the gradient of a scalar for each sample, as factors; see `Engine.per_sample_gradients`."""
    check_scalar(target, "target")
    graph, _ = check_nodes(target, "per_sample_gradients")
    if isinstance(feeds, Mapping):
        feeds = settled_feeds(graph, feeds, session.executor)
    if isinstance(feeds, Mapping) and any(map(is_chunked, feeds.values())):
        read = read_feeds(graph, feeds, session.executor)
        chunked, lengths = derivatives.chunk_feeds(read, session.dtype)
        recipe = session.recipe_of(target, session.nodes(graph, feeds, wrt), chunked.arrays)
        blocks = derivatives.chunked_factors(recipe, chunked, lengths), read.clear  # until then they hold futures
        return _gradients(
            session, recipe, chunked, lengths, blocks, None, partial(derivatives.check_chunks, chunked, lengths)
        )
    recipe, checked = session.recipe(target, wrt, feeds, "per_sample_gradients")
    return keep_factors(session, recipe, checked)


def keep_factors(
    session: Session, recipe: Recipe, feeds: RememberedFeeds, seed: Array | None = None
) -> PerSampleGradients:
    """Return the factors of ``seedᵀ d result``; `seed` ``(V, N, result.dim)`` may be left out for a scalar."""
    blocks, remote = session.blocks(feeds.samples), session.executor.remote
    alone = len(blocks) == 1

    def make() -> Blocks:
        with session.cache.lock:
            threads = session.executor.threads if alone and not remote else 1
            request = Request(recipe, feeds, session.cache, seed, threads)
            handles = session.submit(request, [lower_factors(request, start, stop) for start, stop in blocks], alone)
        if remote:
            return [session.executor.future(h) for h in handles], partial(session.executor.release, handles)
        return session.gather(handles), None

    def tokens() -> list[str]:
        return [name for name, _ in recipe.values_now(feeds).values()]

    def again() -> Blocks:
        if tokens() != then or not feeds.unchanged():
            raise Lost(
                "factors are gone with a worker, and variables or feeds have changed since: call per_sample_gradients again"
            )
        with session.cache.lock:
            session.cache.lost()
        return make()

    then = tokens() if remote else []
    lengths = [stop - start for start, stop in blocks]
    return _gradients(session, recipe, feeds, lengths, make(), again if remote else None)


def _gradients(session: Session, recipe: Recipe, feeds: Feeds, *blocks: Any) -> PerSampleGradients:
    return PerSampleGradients(session.executor, recipe.wrt, recipe.spans, recipe.sizes, feeds.dtype, *blocks)
