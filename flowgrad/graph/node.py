"""A graph owns its nodes; nodes are the reference interpreter: one sample, node by node, obviously right."""

from __future__ import annotations

import difflib
import math
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from .. import draw as drawing
from ..errors import FeedError, FlowgradError, GraphError, NodeFailed, ShapeError, warn
from ..initial import initial
from ..inputs import (
    Fixed,
    Settled,
    Shape,
    brief,
    flag,
    frozen,
    integer,
    real_array,
    shape_of,
    times,
    vector,
    without_underflow,
)
from ..jacobians import LocalJacobian
from ..reads import rules_token
from ..returned import Misfit, carry, local_of, value_of
from ..typing import Array

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
_index = operator.attrgetter("index")
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
            close = difflib.get_close_matches(name, self._named, 3) if isinstance(name, str) else []
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


default_graph = Graph(seed=0)


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


class Node(Settled):
    """A vertex of a graph; its value is a vector of static length `dim`.

    Attributes
    ----------
    name : str
        No other node of its graph has it: ``graph[name]``. It begins with the scopes in which the node was built.
    dim : int
        Length of the value; a scalar has ``dim == 1``.
    shape : tuple of int
        ``(dim,)`` unless the node knows more; values, feeds and Jacobians are flat, row by row, whatever it is.
    parents : tuple of Node
        Operands by slot; a node may appear in several slots.
    graph : Graph
    index : int
        Position in ``graph.nodes``.
    """

    graph: Graph
    shape: Any  # a tuple; on classes of ops `shape` is the rule for lengths
    dim: int
    attrs: dict[str, Any]
    index: int
    _name: str
    _parents: tuple[Node, ...]
    _edges: list[tuple[Node, int]]
    _own: ClassVar[bool] = False  # see `is_own`
    _settable = frozenset(["name"])
    #: The slot of an op whose operand says which rows of the first operand are read, if there is one; that must be a `Variable`.
    index_slot: ClassVar[int | None] = None
    #: The slot of an op whose operand says what is drawn at random, if anything is; that is a `Variable`.
    draws_slot: ClassVar[int | None] = None
    #: Those whose operands, variables, training measures instead of differentiating by them.
    measured_slots: ClassVar[tuple[int, ...]] = ()

    def __init__(self, graph: Graph, shape: Shape, parents: tuple[Node, ...], attrs: dict[str, Any], name: str | None):
        # All at once: there may be very many nodes.
        vars(self).update(
            graph=graph, shape=shape, dim=math.prod(shape), _parents=parents, attrs=Fixed(attrs), _edges=[]
        )
        self._value: Array | None = None
        with _building:  # other threads may build in this graph
            vars(self).update(index=len(graph._nodes))
            vars(self).update(_name=_free_name(self, name))
            graph._named[self._name] = self
            for slot, parent in enumerate(parents):
                parent._edges.append((self, slot))
            graph._nodes.append(self)

    @property
    def name(self) -> str:
        """What the node is called; no other node of its graph is."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        with _building, outside_scopes():
            del self.graph._named[self._name]
            try:
                self._name = _free_name(self, name)
            finally:
                self.graph._named[self._name] = self

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
        if self._value is None:
            asked, order = self.graph._order
            if asked is not self or not _computed(order):
                order = _order_to(self)
                _computed(order)
                self.graph._order = self, order
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
        jacobians_of(result, (self,))
        kept = self.graph._jacobians[result][self]
        if kept is None and self.parents and result in ancestors(self):
            warn(
                f"{result} does not depend on {self}, it is the other way round, so this Jacobian is zero; "
                f"that of {self} by {result} is {result.name}.backward({self.name})"
            )
        return _matrix(kept, result, self)

    @property
    def jacobi(self) -> Array | None:
        """The Jacobian ``(result.dim, dim)`` of the result that was last differentiated by this node; None if not computed.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(1, [3.0])
        ...     y = x * x
        >>> _ = x.backward(y)
        >>> x.jacobi, y.jacobi
        (array([[6.]]), array([[1.]]))
        """
        result = self.graph._result
        table = {} if result is None else self.graph._jacobians.get(result, {})
        return None if result is None or self not in table else _matrix(table[self], result, self)

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
        return _local(self, slot, type(self).needs(slot, len(self.parents)))  # type: ignore[attr-defined]

    def reset_value(self) -> None:
        """Forget this node's value and everything downstream of it; a variable keeps its own value."""
        if self.parents:
            self._value = None
        self.graph._forget([self])

    def clear_jacobian(self) -> None:
        """Forget the cached Jacobians of every result by this node, and of this node by others."""
        for table in self.graph._jacobians.values():
            table.pop(self, None)
        self.graph._jacobians.pop(self, None)

    # -- operators --------------------------------------------------------------------------------------------

    if TYPE_CHECKING:  # installed by `ops.operators`

        def __add__(self, other: Any) -> Node: ...
        def __radd__(self, other: Any) -> Node: ...
        def __sub__(self, other: Any) -> Node: ...
        def __rsub__(self, other: Any) -> Node: ...
        def __mul__(self, other: Any) -> Node: ...
        def __rmul__(self, other: Any) -> Node: ...
        def __truediv__(self, other: Any) -> Node: ...
        def __rtruediv__(self, other: Any) -> Node: ...
        def __pow__(self, other: Any) -> Node: ...
        def __rpow__(self, other: Any) -> Node: ...
        def __neg__(self) -> Node: ...
        def __abs__(self) -> Node: ...
        @property
        def T(self) -> Node:
            """Return the node with its axes reversed."""

        def __matmul__(self, other: Any) -> Node: ...
        def __rmatmul__(self, other: Any) -> Node: ...
        def __getitem__(self, key: Any) -> Node: ...
        def reshape(self, *shape: Any) -> Node:
            """Return the same entries under other axes; computes nothing."""

    __iter__ = None  # a node is not a sequence; without this, __getitem__ would make it iterate for ever
    __array_ufunc__ = None  # `array * node` is ours to refuse

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _node_at, (self.graph, self.index)

    def __copy__(self) -> Node:
        """Return the node in a copy of its graph."""
        return deepcopy(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.name!r} ({size(self)})"


class Variable(Node):
    """A node whose value is given: a parameter, or an input that feeds fill.

    Parameters
    ----------
    dim : int or tuple of int
        Length of the vector, or axes of an array: ``(4, 3)`` is a vector of 12 that knows it is 4 x 3.
    init : bool, str, tuple or array-like
        False: no value yet. True: drawn from a normal distribution with mean 0 and standard deviation 0.001 by the graph's
        generator. A text: drawn as `flowgrad.initial.INITIAL` has it by that name, ``"he"``, ``"glorot"``, ``"lecun"``,
        ``"orthogonal"``, ``"zeros"``, ``"normal"``; with its scale as ``("normal", 0.1)``. An array ``(dim,)``, ``(dim, 1)`` or of
        the variable's shape: that value.
    trainable : bool
        Whether optimizers may change it. Variables that are fed are never trained.
    name : str, optional

    Raises
    ------
    ShapeError
        If a length is no positive integer or the initial value has another one.
    GraphError
        If another node of the graph has the name, or there is no way of drawing called `init`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     w = fg.Variable((4, 3), "he", name="w")
    >>> w, w.value.shape
    (Variable 'w' (4 x 3), (12,))
    """

    trainable: bool
    _settable = frozenset(["name", "trainable"])
    _instead: ClassVar = {"value": "call set_value(...)"}

    def __init__(
        self, dim: int | Sequence[int], init: Any = False, trainable: bool = True, name: str | None = None
    ) -> None:
        title = f"Variable {'' if name is None else name}".rstrip()
        axes = shape_of(dim, title)
        graph = current_graph()
        value = draw = None
        if isinstance(init, (bool, np.bool_, str)) or (
            isinstance(init, tuple) and init[:1] and isinstance(init[0], str)
        ):
            draw = initial(init, title) if init else None
        else:
            value = vector(f"the initial value of {title}", axes, init)
        self.trainable = flag(trainable, f"{title}: trainable")
        super().__init__(graph, axes, (), {}, name)
        if draw is not None:
            value = draw(graph.rng, axes).reshape(1, -1)
        self._value = None if value is None else frozen(value)

    @property
    def below(self) -> int | None:
        """Rows of the smallest table that it picks from: it takes integers from 0 on below that; None: it picks from none.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     k = fg.Variable(1, trainable=False)
        ...     y = fg.Embedding(fg.Variable((5, 2), True), k)
        >>> k.below
        5
        """
        # A list, for all variables are asked at every step.
        sizes = [child.parents[0].shape[0] for child, slot in self._edges if slot == child.index_slot]
        return min(sizes) if sizes else None

    @property
    def measured(self) -> bool:
        """Whether training measures it over its samples, as the mean of a `BatchNorm`."""
        return any(slot in child.measured_slots for child, slot in self._edges)

    def set_value(self, value: Any) -> None:
        """Set the value, ``(dim,)``, ``(dim, 1)`` or of the variable's shape, and reset everything downstream, exactly that.

        The value is copied; for ``dim == 1`` a number will do.

        Raises
        ------
        ShapeError
            If it has another length.
        FeedError
            If it is not numeric or not finite, or picks rows that a table does not have.
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
        given = vector(f"the value for {self}", self.shape, value)
        if self.below is not None:
            check_indices(f"the value for {self}", given[0], self.below)
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


class Constant(Variable):
    """A node whose value never changes: what numbers and arrays in expressions become.

    Parameters
    ----------
    value : array-like
        Of any shape, which is the node's; a number has ``dim == 1``.
    name : str, optional
    graph : Graph, optional
        The current one if not given.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = 1 + fg.Exp(-fg.Variable(2, [0.0, 0.0]))
    >>> y.parents[0], y.forward()
    (Constant 1 (dim 2), array([2., 2.]))
    """

    _settable = frozenset(["name"])

    def __init__(self, value: Any, name: str | None = None, graph: Graph | None = None):
        array = real_array(f"Constant {name or ''}".rstrip(), value)
        with graph or current_graph():
            super().__init__(array.shape or (1,), array, trainable=False, name=name)

    def set_value(self, value: Any) -> None:
        """Refuse; see `Variable` with ``trainable=False`` for what is set but not trained."""
        raise GraphError(
            f"{self} keeps its value: write Variable({self.dim}, value, trainable=False) for one that is set"
        )

    @property
    def text(self) -> str:
        """What it is, in few letters: a number, if all entries are the same."""
        value = self.forward()
        return f"{value[0]:.4g}" if (value == value[0]).all() else f"{times(self.shape)} numbers"

    def __repr__(self) -> str:
        return f"Constant {self.text} ({size(self)})"


class Training(Protocol):
    """What a graph knows of the training that runs on it."""

    def check(self, variable: Variable) -> None:
        """Refuse to set a variable where that could not count."""

    def here(self) -> bool:
        """Whether it runs in this process."""


def check_indices(what: str, value: Array, below: int) -> None:
    """Raise an error where a vector holds something else than integers from 0 on, below the rows of a table."""
    wrong = np.flatnonzero((value < 0) | (value >= below) | (value != np.rint(value)))
    if len(wrong):
        raise FeedError(
            f"{what} picks rows of a table: it must hold integers from 0 to {below - 1}, entry {wrong[0]} is {value[wrong[0]]:g}"
        )


def size(node: Node) -> str:
    """Return how large a node is, for messages."""
    return f"dim {node.dim}" if len(node.shape) == 1 else times(node.shape)


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


# A walk to a node: what has a value, and what lacked one, operands first, each with its rule and what picks several operands.
Order = tuple[list["Node"], list[tuple["Node", Callable[..., Any], "Pick | None"]]]
# A walk back from a result: whose values are read, and nodes, each after those that read it, with the edges to these.
Way = tuple[list["Node"], list[tuple["Node", list["Edge"]]]]
# An edge: node and slot, and what pulls a cotangent back; if values are picked for it, what makes a local Jacobian of them.
Edge = tuple["Node", int, Callable[..., Any], "Pick | None"]
Values = dict["Node | None", Array | None]
Pick = Callable[[Values], tuple[Any, ...]]
# The cotangents of a result's ancestors, ``(result.dim, 1, node.dim)``; None: it does not depend on them.
Table = dict["Node", Array | None]


def _order_to(node: Node) -> Order:
    missing = _reach([node], lambda n: [p for p in n._parents if p._value is None])
    steps = sorted(missing, key=_index)
    for unset in (n for n in steps if not n._parents):
        raise GraphError(
            f"{node} needs variable {unset.name!r} (dim {unset.dim}), which has no value: "
            f"call {unset.name}.set_value(...) or give it an init"
        )
    read = dict.fromkeys(p for n in steps for p in n._parents if p not in missing)
    return list(read), [(n, _applying(n), itemgetter(*n._parents) if n._parents[1:] else None) for n in steps]


def _computed(order: Order) -> bool:
    """Give nodes their values, but those that have one; return False where an operand that is none of them has none."""
    read, steps = order
    values: Values = {node: node._value for node in read}
    if any(value is None for value in values.values()):
        return False
    for node, rule, pick in steps:
        value = node._value
        if value is None:
            try:
                value = rule(values[node._parents[0]]) if pick is None else rule(*pick(values))
            except Exception:
                if node._own:  # once more: this names the node
                    run_rule(node, "apply", *(values[p] for p in node._parents))
                raise
            value.setflags(False)
            vars(node)["_value"] = value
        values[node] = value
    return True


def _applying(node: Node) -> Callable[..., Any]:
    """Return the value rule of a node; what flowgrad's own gives needs no look, and is nobody else's: new, or part of a value."""
    if not node._own:
        return lambda *values: frozen(run_rule(node, "apply", *values))
    rule: Callable[..., Any] = type(node).apply  # type: ignore[attr-defined]
    return partial(rule, **node.attrs) if node.attrs else rule


def jacobians_of(result: Node, nodes: tuple[Node, ...]) -> list[Array]:
    """Return Jacobians of a result, ``(result.dim, 1, node.dim)``, by several nodes of its graph in one walk."""
    result.forward()
    graph = result.graph
    graph._result = result
    table = graph._jacobians.setdefault(result, {result: frozen(np.eye(result.dim))[:, None]})
    *asked, way = graph._way
    if asked != [result, nodes] or len(table) > 1:
        way = _way_back(result, nodes, table)
    if len(table) == 1:  # else it is the rest of a way
        graph._way = result, nodes, way
    read, steps = way
    values: Values = {None: None, **{node: node._value for node in read}}
    for node, edges in steps:
        total = None
        for child, slot, pull, pick in edges:
            g: Any = table[child]
            try:
                pulled = pull(g) if pick is None else pull(*pick(values)).pull(g)
            except Exception:
                if child._own:  # once more: this names the node
                    pull_back(child, slot, child.local_jacobian(slot), g)
                raise
            total = pulled if total is None else total + pulled
        table[node] = total
    cotangents = ((node, table[node]) for node in nodes)
    return [_zeros(result, node) if g is None else g for node, g in cotangents]


def _way_back(result: Node, nodes: Iterable[Node], table: Table) -> Way:
    begin = [n for n in nodes if n not in table]
    missing = _reach(begin, lambda n: [c for c, _ in n._edges if c.index <= result.index and c not in table])
    way: dict[Node, list[Edge]] = {}
    read: dict[Node, None] = {}
    for node in sorted(missing, key=_index, reverse=True):
        moving = [(c, slot) for c, slot in node._edges if way.get(c) or table.get(c) is not None]
        way[node] = [_edge(child, slot, read) for child, slot in moving]
    return list(read), list(way.items())


def _edge(node: Node, slot: int, read: dict[Node, None]) -> Edge:
    """Return an edge, and add to `read` whose values it picks; a local Jacobian that needs none is the same for every sample."""
    nodes = (*node._parents, node)  # the last one is number -1
    needs = type(node).needs(slot, len(node._parents))  # type: ignore[attr-defined]
    if not node._own:
        return node, slot, lambda g: pull_back(node, slot, _local(node, slot, needs), g), None
    if not needs:
        return node, slot, _local(node, slot, needs).pull, None
    read.update(dict.fromkeys(nodes[k] for k in needs))
    rule = partial(type(node).jacobian, slot, **node.attrs)  # type: ignore[attr-defined]
    return node, slot, rule, itemgetter(*(nodes[k] if k in needs else None for k in range(-1, len(node._parents))))


def _local(node: Node, slot: int, needs: Iterable[int]) -> LocalJacobian:
    """Return the local Jacobian of a node that has a value; what `uses` leaves out is missing for programs too."""
    nodes = (*node._parents, node)  # the last one is number -1
    values: list[Array | None] = [None] * len(nodes)
    for k in needs:
        values[k] = nodes[k]._value
    local: LocalJacobian = run_rule(node, "jacobian", slot, values.pop(), *values)
    local.out_dim = node.dim
    return local


def _zeros(result: Node, node: Node) -> Array:
    return np.zeros((result.dim, 1, node.dim))


def _matrix(cotangent: Array | None, result: Node, node: Node) -> Array:
    return frozen((_zeros(result, node) if cotangent is None else cotangent)[:, 0])


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
    if node._own:
        return result
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
    """Pull a cotangent ``(V, 1, dim)`` of a node back to a parent by a local Jacobian of its own; name the node if it fails."""
    try:
        return local.pull(g) if node._own else carry(local, "pull", frozen(g), node.parents[slot].dim, ())
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
