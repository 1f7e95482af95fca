"""A graph is a container of named nodes, in an order in which each can be computed; `with` and scopes say what is built where."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import draw as drawing
from ..errors import GraphError, warn
from ..inputs import Settled, brief, frozen, integer
from ..reads import rules_token
from ..typing import Array
from .node import Node, Order, Table, Way, _matrix

if TYPE_CHECKING:
    from .variables import Variable

# What stays here when graphs and nodes are pickled or copied: what follows from the rest, and what is about this process.
_GRAPH_STAYS = frozenset(
    [
        "_nodes",
        "_named",
        "_jacobians",
        "_result",
        "_order",
        "_way",
        "_version",
        "_kinds",
        "_rules",
        "_training",
        "_pending",
    ]
)
_NODE_STAYS = frozenset(["graph", "index", "_parents", "_edges", "_value", "_given"])
# Graphs that are open, the innermost last; each thread and each asyncio task has its own.
_open: ContextVar[tuple[Graph, ...]] = ContextVar("flowgrad_graphs", default=())
# What the names of new nodes begin with.
_prefix: ContextVar[str] = ContextVar("flowgrad_scope", default="")
_building = threading.Lock()
if hasattr(os, "register_at_fork"):  # another thread may have held it
    os.register_at_fork(after_in_child=_building._at_fork_reinit)  # type: ignore[attr-defined]


class Graph(Settled):
    """A directed acyclic graph of vector nodes.

    Nodes built inside ``with graph:`` belong to it; outside of any ``with`` they belong to ``fg.default_graph``. Nodes are
    kept in the order in which they were built. Because a node can only name parents that exist already, this order is
    topological and a cycle cannot be built.

    The default graph cannot be replaced or emptied, and ``fg.default_graph = ...`` changes nothing: what is to begin anew,
    such as a notebook's cell, begins with ``with fg.Graph() as graph:``.

    Several threads may build in one graph. A new thread begins outside of every ``with``: write ``with graph:`` in it, else its
    variables belong to ``fg.default_graph``; what is built from nodes belongs to their graph in any thread.

    Parameters
    ----------
    seed : int, optional
        Seed of the generator that draws initial values (``Variable(dim, init=True)``).

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

    seed: int | None
    rng: np.random.Generator

    def __init__(self, seed: int | None = 0):
        self.seed = seed if seed is None else integer(seed, "seed", 0)
        self.rng = np.random.default_rng(self.seed)
        self._nodes: list[Node] = []
        self._named: dict[str, Node] = {}
        self._result: Node | None = None  # that Jacobians were last asked of
        self._jacobians: dict[Node, Table] = {}
        # The last walks, for the next sample: to a node, and back from a result. No later node changes them.
        self._order: tuple[Node | None, Order] = (None, ([], []))
        self._way: tuple[Node | None, tuple[Node, ...], Way] = (None, (), ([], []))
        self._version = 0  # how often variables were set
        self._kinds: tuple[int, set[type]] = (0, set())  # of so many nodes the classes
        self._rules = ""  # what stood for the rules that values and Jacobians were computed by
        # While a training runs: who answers whether a variable may be set, and what gives variables their latest values.
        self._training: Training | None = None
        self._pending: Callable[[], None] | None = None

    def __enter__(self) -> Graph:
        _open.set((*_open.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        _open.set(_open.get()[:-1])

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in the order of creation, which is a topological order."""
        return tuple(self._nodes)

    def _add(self, node: Node, name: str | None) -> None:
        """Take in a new node, which has parents but no name and no place yet."""
        with _building:  # other threads may build in this graph
            vars(node).update(index=len(self._nodes))
            vars(node).update(_name=_free_name(node, name))
            self._named[node._name] = node
            for slot, parent in enumerate(node._parents):
                parent._edges.append((node, slot))
            self._nodes.append(node)

    def _rename(self, node: Node, name: str) -> None:
        with _building:
            del self._named[node._name]
            try:
                node._name = _free_name(node, name)
            finally:
                self._named[node._name] = node

    def __getitem__(self, name: str) -> Any:
        """Return the node of a name.

        Raises
        ------
        GraphError
            If there is none; names the closest ones.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph, fg.scope("h0"):
        ...     w = fg.Variable(3, name="w")
        >>> graph["h0.w"] is w
        True
        """
        try:
            return self._named[name]
        except (KeyError, TypeError):
            close = [n for n in self._named if n.endswith(f".{name}")][:3]
            close = close or (difflib.get_close_matches(name, self._named, 3) if isinstance(name, str) else [])
            close = close or [n.name for n in self._nodes if not n.parents][:3]
            hint = f": did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise GraphError(f"no node of {self} is called {brief(name)}{hint}") from None

    __iter__ = None  # a graph is not a sequence; `graph.nodes` is

    def __contains__(self, name: object) -> bool:
        """Whether a node of the graph has this name, or is this one."""
        return name.graph is self if isinstance(name, Node) else isinstance(name, str) and name in self._named

    def saved(self, result: Node) -> dict[Node, Array]:
        """Return the Jacobians of `result` that are cached now, ``(result.dim, node.dim)`` by node, the last node first.

        What several nodes upstream read is computed once and stays here until a variable is set or it is cleared; nodes on which
        the result does not depend have zeros.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     x = fg.Variable(1, [3.0], name="x")
        ...     a = fg.Multiply(x, x, name="a")
        ...     y = fg.Exp(-a, name="y")
        >>> _ = a.backward(y)
        >>> [node.name for node in graph.saved(y)]
        ['y', 'negative2', 'a']
        """
        if result not in self or not isinstance(result, Node):
            raise GraphError(f"Jacobians are kept for nodes of this graph; {brief(result)} is none")
        table = self._jacobians.get(result, {})
        return {node: _matrix(kept, result, node) for node, kept in table.items()}

    def reset_value(self) -> None:
        """Forget every computed value and every cached Jacobian; values that were set stay."""
        for node in self._nodes:
            if node.parents:
                node._value = None
        self._jacobians.clear()

    def _rules_token(self) -> str:
        """Return what stands for all that rules of one's own ops read now besides operands; nothing if there are no such ops."""
        looked, kinds = self._kinds
        if looked < len(self._nodes):
            new = self._nodes[looked:]
            kinds = {*kinds, *(cls for cls in map(type, new) if not cls.__module__.startswith("flowgrad."))}
            self._kinds = (looked + len(new), kinds)
        return " ".join(sorted(map(rules_token, kinds))) if kinds else ""

    def _follow_rules(self) -> None:
        """Forget what was computed by rules that read something else than they do now."""
        rules = self._rules_token()
        if rules != self._rules:
            self.reset_value()
            self._rules = rules

    def _outdate(self, variables: Iterable[Variable]) -> None:
        """Forget what was computed from variables."""
        self._version += 1
        self._forget(list(variables))

    def _forget(self, nodes: list[Node]) -> None:
        """Forget what was computed from nodes; from one that has no value, nothing was."""
        for node in nodes:
            self._jacobians.pop(node, None)
        for node in nodes:  # and those that are found
            for child, _ in node._edges:
                if child._value is not None:
                    vars(child)["_value"] = None
                    nodes.append(child)
        for result in [n for n in list(self._jacobians) if n._parents and n._value is None]:
            del self._jacobians[result]

    def clear_jacobian(self) -> None:
        """Forget every cached Jacobian; values stay."""
        self._jacobians.clear()

    def draw(
        self,
        path: str = "computing_graph.png",
        targets: Node | Sequence[Node] | None = None,
        fold: int | None = None,
        direction: str = "right",
        width: int | None = drawing.WIDTH,
        values: bool = False,
        result: Node | None = None,
    ) -> str:
        """Draw the graph into a picture file and return its path.

        Parameters
        ----------
        path : str
            File to write; the ending decides the format: svg, html (a page that needs no network, where a click opens what is
            folded), png and pdf (with the extra ``viz``).
        targets : Node or list of Node, optional
            Draw only these and what they depend on.
        fold : int, optional
            More alike siblings than this become one card, and so do steps that repeat, of together more nodes than this. Default:
            12, and 3 where that would be more than 40 cards.
        direction : str
            Where arrows go: ``"right"`` or ``"down"``.
        width : int or None
            Pixels after which the picture goes on below; None: never.
        values : bool
            Whether to compute all nodes, by the interpreter from the values that are set, and fill cards by the norms of values.
        result : Node, optional
            Fill cards by the norms of the Jacobians of this node by them; for a loss those are the cotangents.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph() as graph:
        ...     y = fg.Exp(fg.Variable(2, [1.0, 2.0]))
        >>> graph.draw("exp.svg")
        'exp.svg'
        """
        return str(drawing.draw(self, path, targets, fold, direction, width, values, result))

    if TYPE_CHECKING:  # installed by `summary`

        def summary(self) -> str:
            """Return a table of the nodes as text."""

    # -- pickled and copied: nodes as a flat list, so that no chain is too long ---------------------------------

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        nodes = tuple(self._nodes)  # another thread may add some
        own = {name: value for name, value in vars(self).items() if name not in _GRAPH_STAYS}
        # Bare nodes come first: whatever refers to them, attributes of the graph too, finds them.
        return _bare_graph, (type(self), [type(n) for n in nodes]), (own, [_row(n) for n in nodes])

    def __setstate__(self, state: tuple[dict[str, Any], list[Any]]) -> None:
        own, rows = state
        vars(self).update(own)
        for node, (parents, value, attributes) in zip(self._nodes, rows):
            for name, of_node in attributes.items():
                object.__setattr__(node, name, of_node)
            self._named[node.name] = node
            node._parents = tuple(self._nodes[k] for k in parents)
            # Copied: what was unpickled may lie in a buffer of somebody else's, and anyhow.
            node._value = None if value is None else frozen(np.array(value))
            for slot, parent in enumerate(node._parents):
                parent._edges.append((node, slot))

    def __copy__(self) -> Graph:
        """Return another graph with nodes of its own: a node belongs to one graph."""
        return deepcopy(self)

    def __repr__(self) -> str:
        return f"<Graph of {len(self._nodes)} nodes>"

    def _repr_svg_(self) -> str | None:
        """Return the picture that notebooks show."""
        return drawing.shown(self)


default_graph = Graph(seed=0)


def named(graph: Graph, key: Any, what: str) -> Any:
    """Return the node of a name; what is no text as it is. `what` is for messages."""
    try:
        return graph[key] if isinstance(key, str) else key
    except GraphError as error:
        raise GraphError(f"{what}: {error}") from None


def current_graph() -> Graph:
    """Return the graph that new variables belong to: the innermost ``with graph:``, else ``fg.default_graph``."""
    graphs = _open.get()
    return graphs[-1] if graphs else default_graph


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Let the names of all nodes that are built within begin with ``name.``; scopes nest.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(), fg.scope("encoder"):
    ...     w = fg.Variable(2, name="w")
    >>> w.name
    'encoder.w'
    """
    if not isinstance(name, str) or not name:
        raise GraphError(f"a scope has a name, a text: with fg.scope('encoder'), not {brief(name)}")
    token = _prefix.set(f"{_prefix.get()}{name}.")
    try:
        yield
    finally:
        _prefix.reset(token)


@contextmanager
def outside_scopes() -> Iterator[None]:
    """Let names be what they are, whatever scopes are open."""
    token = _prefix.set("")
    try:
        yield
    finally:
        _prefix.reset(token)


def scope_name() -> str:
    """Return the name of the scope that is open, with those around it; empty outside of all."""
    return _prefix.get()[:-1]


def scoped(name: str) -> str:
    """Return what a node of this name is called in the scopes that are open."""
    return f"{_prefix.get()}{name}"


@contextmanager
def whole(graph: Graph) -> Iterator[None]:
    """Take back the nodes of the open scope that are built within if an exception leaves it, and what was drawn for them."""
    begin, drawn, prefix = len(graph._nodes), graph.rng.bit_generator.state, _prefix.get()
    try:
        yield
    except BaseException:
        with _building:
            new = graph._nodes[begin:]
            gone = {node for node in new if f"{node.name}.".startswith(prefix)}
            for parent in {p for node in gone for p in node._parents}:
                parent._edges[:] = [edge for edge in parent._edges if edge[0] not in gone]
            for node in gone:
                del graph._named[node.name]
            graph._nodes[begin:] = [node for node in new if node not in gone]
            for index, node in enumerate(graph._nodes[begin:], begin):  # other threads': their order never changes
                vars(node)["index"] = index
            graph._kinds = (0, set())
            if len(gone) == len(new):
                graph.rng.bit_generator.state = drawn
        raise


def _free_name(node: Node, name: str | None) -> str:
    """Return what a new node is called: a name that is given twice is refused, but in the default graph, where cells run twice."""
    named = node.graph._named
    if name is None:
        own = made = f"{_prefix.get()}{type(node).__name__.lower()}{node.index}"
    else:
        own = made = f"{_prefix.get()}{name}"
        if own in named and node.graph is not default_graph:
            raise GraphError(
                f"a new {type(node).__name__} cannot be called {own!r}: {named[own]} of the same graph is; give another name, or "
                f"build them in scopes of their own: with fg.scope('encoder'): ..."
            )
    again = 1
    while made in named:
        again += 1
        made = f"{own}_{again}"
    if again > 1 and name is not None:
        warn(
            f"the default graph has a {named[own]} already, so this {type(node).__name__} is called {made!r}: a cell that is run "
            f"twice should begin with `with fg.Graph() as graph:`"
        )
    return made


class Training(Protocol):
    """What a graph knows of the training that runs on it."""

    def check(self, variable: Variable) -> None:
        """Refuse to set a variable where that could not count."""

    def here(self) -> bool:
        """Whether it runs in this process."""


def _bare_graph(cls: type[Graph], kinds: Sequence[type[Node]]) -> Graph:
    """Return a graph with nodes that know their places and nothing else."""
    graph = cls.__new__(cls)
    Graph.__init__(graph)
    for index, kind in enumerate(kinds):
        node = kind.__new__(kind)
        node.graph, node.index, node._parents, node._edges = graph, index, (), []
        graph._nodes.append(node)
    return graph


def _row(node: Node) -> tuple[list[int], Array | None, dict[str, Any]]:
    """Return what a node is apart from its class: its parents' places, a value that was given, and its attributes."""
    state: Any = object.__getstate__(node)
    both = {**state[0], **state[1]} if isinstance(state, tuple) else state  # with slots of a class of somebody's own
    attributes = {name: value for name, value in both.items() if name not in _NODE_STAYS}
    return [p.index for p in node.parents], None if node.parents else node._value, attributes
