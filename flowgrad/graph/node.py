"""Nodes are the reference interpreter: one sample, node by node, obviously right."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import draw as drawing
from ..errors import FlowgradError, GraphError, NodeFailed, ShapeError, warn
from ..inputs import Fixed, Settled, Shape, brief, frozen, times, without_underflow
from ..jacobians import LocalJacobian
from ..returned import Misfit, carry, local_of, value_of
from ..typing import Array

if TYPE_CHECKING:
    from .graph import Graph

_index = operator.attrgetter("index")


class Node(Settled):
    """A vertex of a graph; its value is a vector of static length `dim`.

    Attributes
    ----------
    name : str
        No other node of its graph has it: ``graph[name]``. It begins with the scopes that are open when it is given, to a new node
        or by ``node.name = ...``.
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
        graph._add(self, name)

    @property
    def name(self) -> str:
        """What the node is called; no other node of its graph is."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self.graph._rename(self, name)

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
    def backward(self, result: Node | None = None) -> Array:
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
        if result is None:
            raise GraphError(
                f"backward is called of what is differentiated by, with the result: w.backward({self.name}) is the Jacobian of "
                f"{self} by w"
            )
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

    @without_underflow
    def local_jacobian_by(self, parent: Node) -> Array:
        """Return the derivative of this node by one of its parents alone, as a matrix ``(dim, parent.dim)``; for looking at.

        It is summed over all slots that the parent is in. Other ways from the parent to this node do not count, as they do in
        ``parent.backward(node)``.

        Raises
        ------
        GraphError
            If it is no parent of this node, or a variable on the way has no value.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, [1.0, 2.0])
        ...     e = fg.Exp(x)
        ...     y = e + 3 * x
        >>> y.local_jacobian_by(e)
        array([[1., 0.],
               [0., 1.]])
        """
        slots = [slot for slot, other in enumerate(self.parents) if other is parent]
        if not slots:
            reads = ", ".join(map(str, self.parents[:5])) + ", ..." * (len(self.parents) > 5)
            raise GraphError(
                f"{brief(parent, 80)} is no parent of {self}, which reads {reads or 'nothing'}: "
                f"by a node further back, write node.backward({self.name})"
            )
        eye = np.eye(self.dim)[:, None]
        total: Any = sum(pull_back(self, slot, self.local_jacobian(slot), eye) for slot in slots)
        return frozen(total[:, 0])

    def set_value(self, value: Any) -> None:
        """Refuse: only variables are set.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     y = -fg.Variable(1, [1.0], name="x")
        >>> y.set_value(2.0)
        Traceback (most recent call last):
        flowgrad.errors.GraphError: Negative 'negative1' (dim 1) is computed from its parents: only variables are set
        """
        raise GraphError(f"{self} is computed from its parents: only variables are set")

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

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _node_at, (self.graph, self.index)

    def __copy__(self) -> Node:
        """Return the node in a copy of its graph."""
        return deepcopy(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.name!r} ({size(self)})"

    def _repr_svg_(self) -> str | None:
        """Return the picture of what the node depends on."""
        return drawing.shown(self.graph, self)


def node_of(value: Any, what: str) -> Any:
    """Return what is a node; raise an error for anything else."""
    if not isinstance(value, Node):
        raise GraphError(
            f"{what} is a node, such as a Variable, not {brief(value)}: an array becomes one as fg.Constant(array)"
        )
    return value


def size(node: Node) -> str:
    """Return how large a node is, for messages."""
    return f"dim {node.dim}" if len(node.shape) == 1 else times(node.shape)


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
    missing = reach([node], lambda n: [p for p in n._parents if p._value is None])
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
    missing = reach(begin, lambda n: [c for c, _ in n._edges if c.index <= result.index and c not in table])
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
    return reach(nodes, lambda n: n.parents)


def reach(start: Iterable[Node], neighbours: Callable[[Node], Iterable[Node]]) -> dict[Node, None]:
    """Return all nodes that can be reached from `start`, `start` included; iterative."""
    seen = dict.fromkeys(start)
    stack = list(seen)
    while stack:
        for node in neighbours(stack.pop()):
            if node not in seen:
                seen[node] = None
                stack.append(node)
    return seen
