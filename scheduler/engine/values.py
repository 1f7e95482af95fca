"""Values and mean gradients: lowered, run, and put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowgrad.errors import GraphError
from flowgrad.graph import Graph, Node, Variable
from flowgrad.optim import warn_independent
from flowgrad.typing import Array

from ..costs import blas_threads_of
from ..feeds import Feeds, check_feeds, check_nodes
from ..programs import Computation, check_grain, lower_forward, lower_gradient
from .session import Session, nodes_of


def grain_of(session: Session, grain: str | None) -> str:
    """Return the grain of a computation that is no training: a round is of optimizer steps."""
    chosen = check_grain(grain or session.grain)
    return "shard" if chosen in ("auto", "round") else chosen


def forward(session: Session, nodes: Node | Sequence[Node], feeds: Any) -> Any:
    """Compute values for every sample; see `Engine.forward`."""
    values = run(session, lower_values(session, nodes, feeds, None))
    return values[0] if isinstance(nodes, Node) else values


def forward_of(session: Session, targets: list[Node], graph: Graph, feeds: Feeds) -> list[Array]:
    """Compute values from feeds that are checked."""
    values: list[Array] = run(session, lower_forward(targets, graph, feeds, grain_of(session, None), session.shards))
    return values


def gradient(session: Session, target: Node, feeds: Any, wrt: Any) -> dict[Variable, Array]:
    """Compute the gradient of the mean of a scalar over the samples; see `Engine.gradient`."""
    gradients: dict[Variable, Array] = run(session, lower_mean_gradient(session, target, feeds, wrt, None))
    return gradients


def lower_values(session: Session, nodes: Any, feeds: Any, grain: str | None) -> Computation:
    """Check nodes and feeds, and lower the values."""
    graph, targets = check_nodes(nodes, "forward")
    checked = check_feeds(graph, feeds, session.dtype)
    return lower_forward(targets, graph, checked, grain_of(session, grain), session.shards)


def lower_mean_gradient(session: Session, target: Node, feeds: Any, wrt: Any, grain: str | None) -> Computation:
    """Check target and feeds, and lower the gradient."""
    graph, _ = check_nodes(target, "gradient")
    check_scalar(target, "target")
    checked = check_feeds(graph, feeds, session.dtype)
    if wrt is None:
        variables = [v for v in graph.nodes if isinstance(v, Variable) and v.trainable and v not in checked.arrays]
    else:
        variables = _variables(wrt, graph)
    warn_independent(target, variables)
    return lower_gradient(target, graph, checked, variables, grain_of(session, grain), session.shards)


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


def _variables(wrt: Any, graph: Graph) -> list[Variable]:
    variables = []
    for v in nodes_of(wrt, graph):
        if not isinstance(v, Variable):
            raise GraphError(f"gradients are by variables; {v} is computed from others: use jacobian")
        variables.append(v)
    return variables
