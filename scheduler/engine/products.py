"""Products of derivatives with vectors by forward mode, what is given for any product, and the root of a loss's Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from flowgrad.errors import FeedError, GraphError
from flowgrad.graph import Graph, Node, Variable, named
from flowgrad.inputs import real_array
from flowgrad.ops import LogisticCrossEntropy, MeanSquaredError
from flowgrad.ops.loss import softmax
from flowgrad.program import Program
from flowgrad.typing import Array

from ..derivatives import hvp_block, jvp_block
from ..feeds import Feeds, check_nodes
from ..programs import JobInputs, input_var
from .session import Session
from .values import check_scalar, grain_of


def jvp(session: Session, result: Node, tangents: Mapping[Variable, Any], feeds: Mapping[Any, Any] | None) -> Array:
    """Multiply the Jacobian by tangents: ``J · tangent`` for each sample, one sweep of forward mode; see `Engine.jvp`."""
    graph, _ = check_nodes(result, "jvp")
    checked = session.check(graph, feeds)
    moved = tangents_of(graph, tangents, checked)
    program = session.forward_program(
        [result], checked, grain_of(session, None), [v for v in moved if v not in checked.arrays]
    )
    shares = _swept(session, program, "0", graph, checked, moved, "jvp", jvp_block)
    return np.concatenate(shares) if shares else np.zeros((checked.samples, result.dim), checked.dtype)


def hvp(
    session: Session, loss: Node, direction: Mapping[Variable, Any], feeds: Mapping[Any, Any] | None
) -> dict[Variable, Array]:
    """Multiply the Hessian of the mean loss by a direction, by forward mode over reverse mode; see `Engine.hvp`."""
    graph, _ = check_nodes(loss, "hvp")
    check_scalar(loss, "loss")
    checked = session.check(graph, feeds)
    moved = tangents_of(graph, direction, checked)
    fed = [v for v in moved if v in checked.arrays]
    if fed:
        raise GraphError(f"hvp: {fed[0]} is fed; a direction is given for variables that all samples share")
    program, named = session.gradient_program(loss, checked, list(moved), "shard")
    out = {v: np.zeros(v.dim, checked.dtype) for v in moved}
    for name, _ in named:  # one, of all variables
        shares = _swept(session, program, name, graph, checked, moved, "hvp", hvp_block, name, checked.samples)
        total = reduce(np.add, shares) if shares else np.zeros(program.size("param"), checked.dtype)
        out |= {v: total[slice(*program.layout[v.index][1:])].copy() for v in moved if v.index in program.layout}
    return out


def _swept(
    session: Session,
    program: Program,
    output: str,
    graph: Graph,
    feeds: Feeds,
    moved: Mapping[Variable, Array],
    prefix: str,
    *work: Any,
) -> list[Array]:
    """Push tangents to an output; return what ``work``, a function and its arguments, makes of each shard, none if it is zero."""
    tangents = flat_tangents(program, moved, feeds.dtype)
    moving = session.tangent_program(program, {var: len(t) > 1 for var, t in tangents.items()}, output)
    if moving is None:
        return []
    placed = JobInputs(moving, graph, feeds, session.grain, session.shards)
    held = placed.graph.data("program", moving)
    func, *args = work
    keys = []
    for start, stop in placed.bounds:
        values = placed.inputs(start, stop).values()
        rows = [t[None, start:stop] if len(t) == feeds.samples > 1 else t[None] for t in tangents.values()]
        keys.append(placed.graph.task(prefix, func, held, *args, stop - start, len(values), *values, *rows).key)
    return session.executor.run(placed.graph.records, keys, line=len(keys) == 1)


def hessian_root(loss: Node, outputs: Array, labels: Array) -> Array:
    """Return ``S`` as a seed ``(V, N, dim)``, one row per column of it, with ``S Sᵀ`` the loss's Hessian by its first operand."""
    samples, dim = outputs.shape
    eye = np.eye(dim, dtype=outputs.dtype)[:, None, :]
    if isinstance(loss, MeanSquaredError):
        return np.array(np.broadcast_to(eye * np.sqrt(2.0 / dim).astype(eye.dtype), (dim, samples, dim)))
    if isinstance(loss, LogisticCrossEntropy):
        e = np.exp(-np.abs(outputs))
        return eye * (np.sqrt(e) / (1 + e))
    p = softmax(outputs)
    weight = np.sqrt(p.T * labels.sum(axis=1))[..., None]  # (dim, N, 1)
    return weight * (eye - p)


def vectors_of(what: str, node: Node, value: Any, feeds: Feeds) -> Array:
    """Return a vector that is given for a node, ``(1, dim)`` or ``(N, dim)``, checked."""
    array = real_array(f"{what} for {node}", value, feeds.dtype)
    if array.shape == (node.dim,):
        return array[None]
    if array.shape != (feeds.samples, node.dim):
        raise FeedError(
            f"{what} for {node} has shape {array.shape}; it must be ({node.dim},) or ({feeds.samples}, {node.dim})"
        )
    return array


def tangents_of(graph: Any, directions: Any, feeds: Feeds) -> dict[Variable, Array]:
    """Return directions by variable, checked."""
    if not isinstance(directions, Mapping) or not directions:
        raise FeedError("directions are given as a dict {variable: array (dim,)} of at least one variable")
    tangents = {}
    for v, value in ((named(graph, key, "directions"), value) for key, value in directions.items()):
        if not isinstance(v, Variable) or v.graph is not graph:
            raise FeedError(f"a direction is given for a variable of the graph, not for {v!r}")
        tangents[v] = vectors_of("the direction", v, value, feeds)
        if len(tangents[v]) > 1 and v not in feeds.arrays:
            raise FeedError(f"{v} is shared by all samples: its direction must be ({v.dim},), not {tangents[v].shape}")
    return tangents


def flat_tangents(program: Program, moved: Mapping[Variable, Array], dtype: Any) -> dict[int, Array]:
    """Return the tangents of the program's inputs, by variable."""
    param = input_var(program, "param")
    by_place = {} if param is None else {param: np.zeros((1, program.types[param].dim), dtype)}
    for v, tangent in moved.items():
        fed = input_var(program, "feed", v.index)
        if fed is not None:
            by_place[fed] = tangent
        elif param is not None and v.index in program.layout:
            by_place[param][:, slice(*program.layout[v.index][1:])] = tangent
    return by_place
