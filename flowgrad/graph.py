"""A graph owns its nodes; nodes are the reference interpreter: one sample, node by node, obviously right."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from . import draw as drawing
from .errors import FlowgradError, GraphError, NodeFailed, ShapeError, warn
from .inputs import Fixed, Settled, brief, flag, frozen, integer, vector, without_underflow
from .jacobians import LocalJacobian
from .reads import rules_token
from .returned import Misfit, carry, local_of, value_of
from .typing import Array

# What stays here when graphs and nodes are pickled or copied: what follows from the rest, and what is about this process.
_GRAPH_STAYS = frozenset(["_nodes", "_jacobians", "_version", "_computed", "_kinds", "_rules", "_training", "_pending"])
_NODE_STAYS = frozenset(["graph", "index", "_parents", "_edges", "_value", "_given"])
# Graphs that are open, the innermost last; each thread and each asyncio task has its own.
_open: ContextVar[tuple[Graph, ...]] = ContextVar("flowgrad_graphs", default=())
_building = threading.Lock()
if hasattr(os, "register_at_fork"):  # another thread may have held it
    os.register_at_fork(after_in_child=_building._at_fork_reinit)  # type: ignore[attr-defined]


class Graph(Settled):
    """A directed acyclic graph of vector nodes.

    Nodes built inside ``with graph:`` belong to it; outside of any ``with`` they belong to ``fg.default_graph``. Nodes are
    kept in the order in which they were built. Because a node can only name parents that exist already, this order is
    topological and a cycle cannot be built.

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
        self._jacobians: dict[Node, dict[Node, np.ndarray[Any, Any]]] = {}
        self._version = 0  # how often variables were set
        self._computed = False  # whether any node may have a value that was computed
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

    def reset_value(self) -> None:
        """Forget every computed value and every cached Jacobian; values that were set stay."""
        for node in self._nodes:
            if node.parents:
                node._value = None
        self._jacobians.clear()
        self._computed = False

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
        if self._computed or self._jacobians:
            for node in _reach(variables, lambda n: [c for c, _ in n._edges]):
                if node.parents:
                    node._value = None
                self._jacobians.pop(node, None)

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


default_graph = Graph(seed=0)


def current_graph() -> Graph:
    """Return the graph that new variables belong to: the innermost ``with graph:``, else ``fg.default_graph``."""
    graphs = _open.get()
    return graphs[-1] if graphs else default_graph


class Node(Settled):
    """A vertex of a graph; its value is a vector of static length `dim`.

    Attributes
    ----------
    name : str
        Label for messages and pictures; need not be unique.
    dim : int
        Length of the value; a scalar has ``dim == 1``.
    parents : tuple of Node
        Operands by slot; a node may appear in several slots.
    graph : Graph
    index : int
        Position in ``graph.nodes``.
    """

    graph: Graph
    dim: int
    attrs: dict[str, Any]
    index: int
    name: str
    _parents: tuple[Node, ...]
    _edges: list[tuple[Node, int]]
    _settable = frozenset(["name"])

    def __init__(self, graph: Graph, dim: int, parents: tuple[Node, ...], attrs: dict[str, Any], name: str | None):
        # All at once: there may be very many nodes.
        vars(self).update(graph=graph, dim=dim, _parents=parents, attrs=Fixed(attrs), _edges=[])
        self._value: Array | None = None
        with _building:  # other threads may build in this graph
            index = len(graph._nodes)
            called = f"{type(self).__name__.lower()}{index}" if name is None else str(name)
            vars(self).update(index=index, name=called)
            graph._nodes.append(self)
        for slot, parent in enumerate(parents):
            parent._edges.append((self, slot))

    @property
    def parents(self) -> tuple[Node, ...]:
        """Operands by slot; fixed when the node is built."""
        return self._parents

    @property
    def children(self) -> tuple[Node, ...]:
        """Nodes that read this one, each once, in the order of creation."""
        return tuple(dict.fromkeys(child for child, _ in self._edges))

    @property
    def value(self) -> Array | None:
        """The value ``(dim,)`` that is known now, or None; `forward` computes it."""
        return None if self._value is None else self._value[0]

    # -- the reference interpreter ------------------------------------------------------------------------------

    @without_underflow
    def forward(self) -> Array:
        """Compute the value ``(dim,)``, and only what is missing for it.

        Raises
        ------
        GraphError
            If a variable on the way has no value.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     y = fg.Variable(2, [1.0, 2.0]) * fg.Variable(2, [3.0, 4.0])
        >>> y.forward()
        array([3., 8.])
        """
        self.graph._follow_rules()
        begin = [self] if self._value is None else []
        missing = _reach(begin, lambda n: [p for p in n.parents if p._value is None])
        self.graph._computed = True
        for node in sorted(missing, key=operator.attrgetter("index")):
            if not node.parents:
                raise GraphError(
                    f"{self} needs variable {node.name!r} (dim {node.dim}), which has no value: "
                    f"call {node.name}.set_value(...) or give it an init"
                )
            node._value = frozen(run_rule(node, "apply", *(p._value for p in node.parents)))
        assert self._value is not None
        return self._value[0]

    @without_underflow
    def backward(self, result: Node) -> Array:
        """Return the Jacobian of `result` by this node, ``(result.dim, self.dim)``; cached until cleared.

        Reverse mode: the cotangent of a node is the sum, over the edges to its children, of what they pull back.
        A result that does not depend on this node has Jacobian zero; `GraphError` if it is no node of the same graph.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, [1.0, 2.0])
        ...     y = x * x
        >>> x.backward(y)
        array([[2., 0.],
               [0., 4.]])
        """
        if not isinstance(result, Node) or result.graph is not self.graph:
            raise GraphError(
                f"cannot differentiate {brief(result, 80)} by {self}: they are not nodes of the same graph"
            )
        result.forward()
        table = self.graph._jacobians.setdefault(result, {result: frozen(np.eye(result.dim))})
        begin = [] if self in table else [self]
        missing = _reach(begin, lambda n: [c for c, _ in n._edges if c.index <= result.index and c not in table])
        for node in sorted(missing, key=operator.attrgetter("index"), reverse=True):
            pulled = [
                pull_back(child, slot, child._local_jacobian(slot), table[child])
                for child, slot in node._edges
                if child in table and table[child].size
            ]
            # A node that the result does not depend on is remembered as an empty array, not as a block of zeros.
            table[node] = frozen(sum(pulled[1:], pulled[0])) if pulled else np.empty((0, node.dim))
        jacobian = table[self]
        if jacobian.size:
            return jacobian
        if self.parents and result in ancestors(self):
            warn(
                f"{result} does not depend on {self}, it is the other way round, so this Jacobian is zero; "
                f"that of {self} by {result} is {result.name}.backward({self.name})"
            )
        return np.zeros((result.dim, self.dim))

    @without_underflow
    def local_jacobian(self, slot: int) -> LocalJacobian:
        """Return the derivative of this node by the parent in `slot`, as kind + factor.

        Raises
        ------
        GraphError
            If there is no such slot.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     y = fg.Variable(2, [1.0, 2.0]) * fg.Variable(2, [3.0, 4.0])
        >>> y.local_jacobian(0)
        <Diagonal d (1, 2)>
        >>> y.local_jacobian(0).dense().tolist()
        [[[3.0, 0.0], [0.0, 4.0]]]
        """
        if not isinstance(slot, (int, np.integer)) or not 0 <= slot < len(self.parents):
            raise GraphError(f"{self} has {len(self.parents)} parents; there is no slot {brief(slot)}")
        self.forward()
        return self._local_jacobian(slot)

    def _local_jacobian(self, slot: int) -> LocalJacobian:
        # What `uses` leaves out is missing for programs too.
        needs = type(self).needs(slot, len(self.parents))  # type: ignore[attr-defined]
        values = [p._value if k in needs else None for k, p in enumerate(self.parents)]
        local: LocalJacobian = run_rule(self, "jacobian", slot, self._value if -1 in needs else None, *values)
        local.out_dim = self.dim
        return local

    def reset_value(self) -> None:
        """Forget this node's value and everything downstream of it; a variable keeps its own value."""
        for node in _reach([self], lambda n: [c for c, _ in n._edges]):
            if node.parents:
                node._value = None
            self.graph._jacobians.pop(node, None)

    def clear_jacobian(self) -> None:
        """Forget the cached Jacobians of every result by this node, and of this node by others."""
        for table in self.graph._jacobians.values():
            table.pop(self, None)
        self.graph._jacobians.pop(self, None)

    # -- operators --------------------------------------------------------------------------------------------

    if TYPE_CHECKING:  # installed by `ops.operators`

        def __add__(self, other: Node) -> Node: ...
        def __sub__(self, other: Node) -> Node: ...
        def __radd__(self, other: int) -> Node: ...
        def __truediv__(self, other: Node | float) -> Node: ...
        def __rtruediv__(self, other: float) -> Node: ...
        def __mul__(self, other: Node | float) -> Node: ...
        def __rmul__(self, other: float) -> Node: ...
        def __neg__(self) -> Node: ...
        def __matmul__(self, other: Node) -> Node: ...
        def __getitem__(self, key: slice | int) -> Node: ...

    __iter__ = None  # a node is not a sequence; without this, __getitem__ would make it iterate for ever
    __array_ufunc__ = None  # `array * node` is ours to refuse

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _node_at, (self.graph, self.index)

    def __copy__(self) -> Node:
        """Return the node in a copy of its graph."""
        return deepcopy(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.name!r} (dim {self.dim})"


class Variable(Node):
    """A node whose value is given: a parameter, or an input that feeds fill.

    Parameters
    ----------
    dim : int
        Length of the vector.
    init : bool or array-like
        False: no value yet. True: drawn from a normal distribution with mean 0 and standard deviation 0.001 by the graph's
        generator. An array ``(dim,)`` or ``(dim, 1)``: that value.
    trainable : bool
        Whether optimizers may change it. Variables that are fed are never trained.
    name : str, optional

    Raises
    ------
    ShapeError
        If `dim` is not a positive integer or the initial value has another length.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     w = fg.Variable(3, True, name="w")
    >>> w.value.shape
    (3,)
    """

    trainable: bool
    _settable = frozenset(["name", "trainable"])
    _instead: ClassVar = {"value": "call set_value(...)"}

    def __init__(self, dim: int, init: Any = False, trainable: bool = True, name: str | None = None):
        label = f"Variable {'' if name is None else name}".rstrip()
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or dim < 1:
            raise ShapeError(f"{label}: dim must be a positive integer, not {brief(dim)}")
        graph = current_graph()
        value = None
        if not isinstance(init, (bool, np.bool_)):
            value = vector(f"the initial value of {label}", int(dim), init)
        self.trainable = flag(trainable, f"{label}: trainable")
        super().__init__(graph, int(dim), (), {}, name)
        if value is None and init:
            value = graph.rng.normal(0.0, 0.001, (1, self.dim))
        self._value = None if value is None else frozen(value)

    def set_value(self, value: Any) -> None:
        """Set the value, ``(dim,)`` or ``(dim, 1)``, and reset everything downstream, exactly that.

        The value is copied; for ``dim == 1`` a number will do.

        Raises
        ------
        ShapeError
            If it has another length.
        FeedError
            If it is not numeric or not finite.
        GraphError
            While its graph is being trained, but for trained variables in callbacks between epochs.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, [1.0, 2.0])
        ...     y = x * x
        >>> _ = y.forward()
        >>> x.set_value([3.0, 4.0])
        >>> y.value is None, y.forward().tolist()
        (True, [9.0, 16.0])
        """
        given = vector(f"the value for {self}", self.dim, value)
        if self.graph._training is not None:
            self.graph._training.check(self)
        self._assign(given)

    def _assign(self, value: Array) -> None:
        self._value = frozen(value)
        self.graph._version += 1
        self.reset_value()

    @property
    def _value(self) -> Array | None:
        if self.graph._pending is not None:
            self.graph._pending()
        return self._given

    @_value.setter
    def _value(self, value: Array | None) -> None:
        if self.graph._pending is not None:
            self.graph._pending()
        self._given = value


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
    return [p.index for p in node.parents], node._value if isinstance(node, Variable) else None, attributes


def _node_at(graph: Graph, index: int) -> Node:
    return graph._nodes[index]


def run_rule(node: Node, rule: str, *args: Any) -> Any:
    """Run one rule of a node's class, check what it returns, and name the node if it fails."""
    try:
        result = getattr(type(node), rule)(*args, **node.attrs)
    except Exception as error:
        left_out = rule == "jacobian" and any(value is None for value in args) and "NoneType" in str(error)
        hint = "; its class's `uses` leaves out values" if left_out else ""
        raise NodeFailed(f"{rule} of {node} failed: {type(error).__name__}: {error}{hint}") from error
    try:
        if rule == "apply":
            return value_of(result, (1, node.dim)).astype(np.float64, copy=False)
        if result is not None or rule == "jacobian":
            local_of(type(node), args[0], result)
    except FlowgradError as error:
        by = "" if rule == "apply" else f" by slot {args[0]}"
        raise type(error)(f"{rule} of {node}{by} {error}") from None
    if rule == "jacobian" and not isinstance(result, type(node).kind(args[0])):  # type: ignore[attr-defined]
        declared = type(node).kind(args[0]).__name__  # type: ignore[attr-defined]
        raise GraphError(
            f"jacobian of {node} by slot {args[0]} gave {type(result).__name__}, but its class declares {declared}: correct `kinds`"
        )
    return result


def pull_back(node: Node, slot: int, local: LocalJacobian, g: Array) -> Array:
    """Pull a cotangent ``(V, dim)`` of a node back to a parent by a local Jacobian of its own; name the node if it fails."""
    try:
        return carry(local, "pull", g[:, None, :], node.parents[slot].dim, ())[:, 0, :]
    except Misfit as error:
        raise ShapeError(f"jacobian of {node} by slot {slot} {error}") from error
    except Exception as error:
        raise NodeFailed(f"pull of {node} by slot {slot} failed: {type(error).__name__}: {error}") from error


def ancestors(*nodes: Node) -> dict[Node, None]:
    """Return everything that `nodes` depend on, themselves included, as an ordered set."""
    return _reach(nodes, lambda n: n.parents)


def _reach(start: Iterable[Node], neighbours: Callable[[Node], Iterable[Node]]) -> dict[Node, None]:
    """Return all nodes that can be reached from `start`, `start` included; iterative."""
    seen = dict.fromkeys(start)
    stack = list(seen)
    while stack:
        for node in neighbours(stack.pop()):
            if node not in seen:
                seen[node] = None
                stack.append(node)
    return seen
