"""What layers have in common: their names, their activations, and how their weights are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import ops
from ..errors import GraphError
from ..graph import Node, node_of, outside_scopes, scope, scope_name, scoped, whole
from ..inputs import brief, integer, meant
from ..op import Op

ACTIVATIONS: dict[str, type[Op]] = {
    op.__name__.lower(): op
    for op in (
        ops.Abs,
        ops.Exp,
        ops.GELU,
        ops.LeakyReLU,
        ops.Logistic,
        ops.ReLU,
        ops.SiLU,
        ops.SoftMax,
        ops.Softplus,
        ops.Tanh,
    )
}
# Those that let one half of the numbers through.
HALVES = (ops.ReLU, ops.LeakyReLU, ops.GELU, ops.SiLU, ops.Softplus)


def activation_of(activation: Any) -> type[Op] | None:
    """Return an op from a class or its name in lower case; None is none.

    Raises
    ------
    GraphError
        If there is none of that name.
    """
    if activation is None or (isinstance(activation, type) and issubclass(activation, Op)):
        return activation
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    raise GraphError(
        f"an activation is an op class such as fg.ReLU, or one of {', '.join(map(repr, ACTIVATIONS))}; not {brief(activation)}"
        f"{meant(activation, ACTIVATIONS)}"
    )


def suited(init: Any, activation: type[Op] | None) -> Any:
    """Return how weights before an activation are drawn, if nothing is said."""
    return init if init is not None else "he" if activation in HALVES else "glorot"


def free_name(x: Any, kind: str, name: str | None) -> str:
    """Return the name of a layer on a node: the one given, or that of its kind with the next number.

    Raises
    ------
    GraphError
        If it is no node.
    """
    node_of(x, f"{kind}: what the layer is on")
    if name is not None:
        return name
    k = 0
    while scoped(f"{kind}{k}") in x.graph:
        k += 1
    return f"{kind}{k}"


@contextmanager
def within(x: Node, name: str) -> Iterator[None]:
    """Build in a node's graph, under a layer's name; of a layer that fails nothing stays."""
    with x.graph, scope(name), whole(x.graph):
        yield


def units_of(value: Any, layer: str) -> int:
    """Check how many units a layer has."""
    return integer(value, f"{layer}: units")


def finished(y: Node, activation: type[Op] | None = None) -> Node:
    """Return the last node of the layer that is open, under its name: activated, if it is."""
    name = scope_name()
    with outside_scopes():
        if activation is not None:
            return activation(y, name=name)
        y.name = name
    return y
