"""Fully connected layers."""

from __future__ import annotations

from typing import Any

from ..graph import Node, Variable
from ..initial import initial
from ..inputs import flag
from ..ops import Add, Dot, MatVec, Vectorize
from .naming import activation_of, finished, free_name, suited, units_of, within


def dense(
    x: Node, units: int, activation: Any = None, per_neuron: bool = False, init: Any = None, name: str | None = None
) -> Node:
    """Return ``activation(W x + b)``.

    Parameters
    ----------
    x : Node
        Of any shape; its entries are taken as a vector.
    units : int
    activation : op class or str, optional
        Such as ``fg.Tanh`` or ``"tanh"``.
    per_neuron : bool
        False: one `MatVec`, of ``name.W`` and ``name.b``. True: a `Dot` for each unit, of ``name.w3`` and ``name.b3``; unit 3 is
        ``name.3``. Values are the same, and so is what is drawn.
    init, name
        See `flowgrad.layers`.

    Raises
    ------
    GraphError
        If there is no such activation.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0) as graph:
    ...     x = fg.Variable(4, name="x")
    ...     h = fg.layers.dense(x, 3, "relu", name="h0")
    >>> h, graph["h0.W"]
    (ReLU 'h0' (dim 3), Variable 'h0.W' (3 x 4))
    """
    op, units = activation_of(activation), units_of(units, "dense")
    name = free_name(x, "dense", name)
    init = suited(init, op)
    with within(x, name):
        if not flag(per_neuron, "dense: per_neuron"):
            y = MatVec(Variable((units, x.dim), init, name="W"), x) + Variable(units, "zeros", name="b")
        else:
            rows = initial(init, f"the weights of {name}")(x.graph.rng, (units, x.dim))
            neurons = []
            for k, row in enumerate(rows):
                weighted = Dot(Variable(x.dim, row, name=f"w{k}"), x)
                neurons.append(Add(weighted, Variable(1, "zeros", name=f"b{k}"), name=str(k)))
            y = Vectorize(*neurons)
        return finished(y, op)
