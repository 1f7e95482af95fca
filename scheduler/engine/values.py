"""Values and mean gradients: lowered, run, and put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flowgrad.errors import GraphError
from flowgrad.graph import Graph, Node, Variable
from flowgrad.optim import warn_independent
from flowgrad.typing import Array

from ..costs import blas_threads_of
from ..feeds import Feeds, check_feeds, check_nodes, owned
from ..programs import Computation, check_grain, lower_forward, lower_gradient
from .session import Session


def grain_of(session: Session, grain: str | None) -> str:
    """Return the grain of a computation that is no training: a round is of optimizer steps."""
    chosen = check_grain(session.grain if grain is None else grain)
    return "shard" if chosen in ("auto", "round", "collective") else chosen


def forward_of(session: Session, targets: list[Node], graph: Graph, feeds: Feeds) -> list[Array]:
    """Compute values from feeds that are checked."""
    return run(session, _lower_forward(session, targets, graph, feeds, None))


def _lower_forward(
    session: Session, targets: Sequence[Node], graph: Graph, feeds: Feeds, grain: str | None
) -> Computation:
    chosen = grain_of(session, grain)
    return lower_forward(session.forward_program(targets, feeds, chosen), graph, feeds, chosen, session.shards)


def lower_values(
    session: Session, nodes: Any, feeds: Any, grain: str | None = None, later: bool = False
) -> Computation:
    """Check nodes and feeds, and lower the values: of a single node one array, else a list.

    What is to be run `later` reads copies of the feeds.
    """
    graph, targets = check_nodes(nodes, "forward")
    checked = check_feeds(graph, feeds, session.dtype, executor=session.executor)
    checked = owned(checked, feeds) if later else checked
    job = _lower_forward(session, targets, graph, checked, grain)
    return replace(job, finish=partial(_only, job.finish)) if isinstance(nodes, Node) else job


def _only(finish: Callable[[list[Any]], list[Array]], values: list[Any]) -> Array:
    return finish(values)[0]


def lower_mean_gradient(
    session: Session, target: Any, feeds: Any, wrt: Any, grain: str | None = None, later: bool = False
) -> Computation:
    """Check target and feeds, and lower the gradient ``{variable: (dim,)}``; see `lower_values` for `later`."""
    if isinstance(target, (list, tuple)):
        raise GraphError("a gradient is of one scalar node, not of a list")
    graph, _ = check_nodes(target, "gradient")
    check_scalar(target, "target")
    checked = check_feeds(graph, feeds, session.dtype, executor=session.executor)
    checked = owned(checked, feeds) if later else checked
    variables: list[Variable] = []
    for v in session.nodes(graph, checked.arrays, wrt):
        if not isinstance(v, Variable):
            raise GraphError(f"gradients are by variables; {v} is computed from others: use jacobian")
        variables.append(v)
    warn_independent(target, variables)
    chosen = grain_of(session, grain)
    program, named = session.gradient_program(target, checked, variables, chosen)
    return lower_gradient(program, named, graph, checked, variables, chosen, session.shards)


def run(session: Session, job: Computation) -> Any:
    """Run a computation and return its result."""
    executor = session.executor
    blas_threads = 1 if executor.remote else blas_threads_of(job, executor.threads)  # workers have their own
    keys = [ref.key for ref in job.keys]
    return job.finish(executor.run(job.graph.records, keys, blas_threads=blas_threads))


def check_scalar(node: Any, what: str) -> None:
    """Raise an error if a node is no scalar."""
    if isinstance(node, Node) and node.dim != 1:
        raise GraphError(
            f"the {what} {node} is not a scalar: it has dim {node.dim}, it must have dim 1; jacobian takes any node"
        )
