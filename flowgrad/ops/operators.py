"""Operators on nodes: ``a + b``, ``a - b``, ``a * b``, ``2 * a``, ``-a``, ``a / b``, ``2 / a``, ``a @ b``, ``a[2:5]``."""

from __future__ import annotations

from numbers import Real
from operator import index
from typing import Any

from ..errors import GraphError, ShapeError
from ..graph import Node
from ..inputs import brief
from ..op import Op
from .elementwise import Add, Multiply, Negative, Scale, Subtract
from .functions import Reciprocal
from .linear import Dot
from .select import Slice


def _multiply(a: Node, b: Any) -> Node:
    return Scale(a, float(b)) if isinstance(b, Real) else _binary(Multiply, a, b)


def _divide(a: Node, b: Any) -> Node:
    if isinstance(b, Real):
        if not b:
            raise GraphError(f"{a} / {b}: a division by zero")
        return Scale(a, 1.0 / float(b))
    return _binary(Multiply, a, Reciprocal(b)) if isinstance(b, Node) else _binary(Multiply, a, b)


def _divided(a: Node, b: Any) -> Node:
    return Scale(Reciprocal(a), float(b)) if isinstance(b, Real) else _binary(Multiply, a, b)


def _add_to(a: Node, b: Any) -> Node:
    return a if isinstance(b, Real) and not b else _binary(Add, a, b)  # `sum` begins with 0


def _power(a: Node, b: Any) -> Node:
    raise GraphError(
        f"{a} ** {b}: write a * a for a square, fg.Exp(c * fg.Log(a)) for other powers of positive numbers"
    )


def _binary(op: type[Op], a: Node, b: Any) -> Node:
    if not isinstance(b, Node):
        raise GraphError(
            f"{op.__name__} of {a} and {type(b).__name__}: wrap it as Variable({a.dim}, value, trainable=False)"
        )
    return op(a, b)


def _item(a: Node, key: Any) -> Node:
    if isinstance(key, slice):
        start, stop, step = key.indices(a.dim)
        if step == 1:
            return Slice(a, start, stop)
        raise ShapeError(f"{a}[{key.start}:{key.stop}:{key.step}]: only steps of 1; use Gather for other selections")
    try:
        position = None if isinstance(key, bool) else index(key)
    except TypeError:  # arrays have `__index__` too
        position = None
    if position is None:
        raise ShapeError(
            f"{a} takes a range such as [2:5] or a position, not {brief(key)}; fg.Gather takes several positions"
        )
    if not -a.dim <= position < a.dim:
        raise ShapeError(f"{a} has no entry {position}: positions run from 0 to {a.dim - 1}")
    return Slice(a, position % a.dim, position % a.dim + 1)


def install() -> None:
    """Give nodes their operators; here, because the ops import the nodes and not the other way round."""
    methods = {
        "__add__": lambda a, b: _binary(Add, a, b),
        "__radd__": _add_to,
        "__sub__": lambda a, b: _binary(Subtract, a, b),
        "__rsub__": lambda a, b: _binary(Subtract, a, b),
        "__truediv__": _divide,
        "__rtruediv__": _divided,
        "__pow__": _power,
        "__mul__": _multiply,
        "__rmul__": _multiply,
        "__neg__": Negative,
        "__matmul__": lambda a, b: _binary(Dot, a, b),
        "__getitem__": _item,
    }
    for name, method in methods.items():
        setattr(Node, name, (lambda m: lambda *args: m(*args))(method))
