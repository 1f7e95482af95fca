"""A graph owns its nodes, their order, and the cached Jacobians."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

import numpy as np

from . import draw as drawing
from .inputs import whole

if TYPE_CHECKING:
    from .node import Node

_current: ContextVar[Graph | None] = ContextVar("flowgrad_graph", default=None)


class Graph:
    """A directed acyclic graph of vector nodes.

    Nodes built inside ``with graph:`` belong to it; outside of any ``with`` they belong to ``fg.default_graph``. Nodes are
    kept in the order in which they were built. Because a node can only name parents that exist already, this order is
    topological and a cycle cannot be built.

    Parameters
    ----------
    seed : int, optional
        Seed of the generator that draws initial values (``Variable(dim, init=True)``).

    Attributes
    ----------
    nodes : tuple of Node
        All nodes in the order of creation.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0) as graph:
    ...     x = fg.Variable(2, [3.0, 4.0], name="x")
    ...     y = fg.Dot(x, x)
    >>> y.forward()
    array([25.])
    >>> x.backward(y)
    array([[6., 8.]])
    """

    def __init__(self, seed: int | None = 0):
        self.seed = seed if seed is None else whole(seed, "seed", 0)
        self.rng = np.random.default_rng(self.seed)
        self._nodes: list[Node] = []
        self._jacobians: dict[Node, dict[Node, np.ndarray[Any, Any]]] = {}
        self._tokens: list[Token[Graph | None]] = []
        self._version = 0  # how often variables were set

    def __enter__(self) -> Graph:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._tokens.pop())

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in the order of creation, which is a topological order."""
        return tuple(self._nodes)

    def reset_value(self) -> None:
        """Forget every computed value and every cached Jacobian; values that were set stay."""
        for node in self._nodes:
            if node.parents:
                node._value = None
        self._jacobians.clear()

    def clear_jacobian(self) -> None:
        """Forget every cached Jacobian; values stay."""
        self._jacobians.clear()

    def draw(
        self, path: str = "computing_graph.png", targets: Node | Sequence[Node] | None = None, fold: int = drawing.FOLD
    ) -> str:
        """Draw the graph into a picture file and return its path.

        Parameters
        ----------
        path : str
            File to write; the ending decides the format (png, svg, pdf). Needs the extra ``viz``.
        targets : Node or list of Node, optional
            Draw only these and what they depend on.
        fold : int
            More alike siblings than this become one box.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     y = fg.Exp(fg.Variable(2, [1.0, 2.0]))
        >>> graph.draw("exp.svg")
        'exp.svg'
        """
        return str(drawing.draw(self, path, targets, fold))

    def __repr__(self) -> str:
        return f"<Graph of {len(self._nodes)} nodes>"


default_graph = Graph(seed=0)


def current_graph() -> Graph:
    """Return the graph that new variables belong to: the innermost ``with graph:``, else ``fg.default_graph``."""
    graph = _current.get()
    return default_graph if graph is None else graph
