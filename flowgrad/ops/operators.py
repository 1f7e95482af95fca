"""Operators on nodes: ``a + b``, ``1 - a``, ``a / b``, ``a ** 2``, ``W @ x``, ``a[2:5]``; numbers and arrays become constants."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from ..errors import GraphError, ShapeError
from ..graph import Constant, Node
from ..inputs import brief, real, real_array, times
from ..op import Op
from .elementwise import Add, Multiply, Negative, Scale, Subtract
from .functions import Abs, Exp, Log, Power, Reciprocal
from .linear import Dot, MatMul, MatVec
from .select import Broadcast, Reshape, Transpose, item


def _number(b: Any) -> float | None:
    """Return a number as Python's, None for what is none."""
    if isinstance(b, np.ndarray) and b.ndim == 0:
        b = b[()]
    return float(b) if isinstance(b, Real) else None


def _operands(op: str, a: Node, b: Any) -> tuple[Node, Node]:
    """Return two nodes; numbers and arrays become constants of the node's shape, or the node is repeated along theirs."""
    if isinstance(b, Node):
        return a, b
    number = _number(b)
    if number is not None:
        return a, Constant(np.full(a.shape, real(number, f"{a} {op} {brief(b)}: the number")), graph=a.graph)
    if not isinstance(b, (np.ndarray, list, tuple)):
        raise GraphError(f"{a} {op} {brief(b)}: a {type(b).__name__} is no node, no number and no array of numbers")
    array = real_array(f"{a} {op} an array: it", b)
    if a.dim == 1 and array.size > 1:
        return Broadcast(a, array.shape), Constant(array, graph=a.graph)
    try:
        return a, Constant(np.broadcast_to(array, a.shape), graph=a.graph)
    except ValueError:
        raise ShapeError(
            f"{a} {op} an array of {times(array.shape)}: it must be, or broadcast to, {times(a.shape)}"
        ) from None


def _agree(symbol: str, a: Node, b: Any) -> None:
    """Raise an error if two nodes do not fit, before anything is made of one of them."""
    if isinstance(b, Node) and a.dim > 1 and b.dim > 1 and a.shape != b.shape:
        raise ShapeError(f"{a} {symbol} {b}: they must be of one shape; a.reshape(...) computes nothing")


def _binary(symbol: str, op: type[Op]) -> Callable[[Node, Any], Node]:
    return lambda a, b: op(*_operands(symbol, a, b))


def _multiply(a: Node, b: Any) -> Node:
    number = _number(b)
    return Multiply(*_operands("*", a, b)) if number is None else Scale(a, number)


def _add_to(a: Node, b: Any) -> Node:
    return a if _number(b) == 0 else Add(*_operands("+", a, b)[::-1])  # `sum` begins with 0


def _subtract_from(a: Node, b: Any) -> Node:
    return Subtract(*_operands("-", a, b)[::-1])


def _divide(a: Node, b: Any) -> Node:
    number = _number(b)
    if number is not None:
        if not number:
            raise GraphError(f"{a} / {brief(b)}: a division by zero")
        return Scale(a, 1.0 / number)
    _agree("/", a, b)
    a, b = _operands("/", a, b)
    return Multiply(a, Reciprocal(b))


def _divided(a: Node, b: Any) -> Node:
    number = _number(b)
    if number is not None:
        number = real(number, f"{brief(b)} / {a}: the number")
        return Reciprocal(a) if number == 1 else Scale(Reciprocal(a), number)
    a, b = _operands("/", a, b)
    return Multiply(b, Reciprocal(a))


def _power(a: Node, b: Any) -> Node:
    number = _number(b)
    if number is None:
        if not isinstance(b, Node):
            raise GraphError(f"{a} ** {brief(b)}: the exponent is a number, or a node for powers of positive numbers")
        _agree("**", a, b)
        return Exp(Multiply(b, Log(a)))
    number = real(number, f"{a} ** {brief(b)}: the exponent")
    if number == 0:
        return Constant(np.ones(a.shape), graph=a.graph)
    return a if number == 1 else Power(a, number)


def _power_of(a: Node, b: Any) -> Node:
    number = _number(b)
    if number is None or number <= 0:
        raise GraphError(f"{brief(b)} ** {a}: the base is a positive number")
    return Exp(Scale(a, math.log(number)))


def _matmul(a: Any, b: Any) -> Node:
    """Return the product of two nodes, or of one and an array, whose shapes fit; nothing is made of those that do not."""
    graph = a.graph if isinstance(a, Node) else b.graph
    arrays = [x if isinstance(x, Node) else real_array(f"{brief(a)} @ {brief(b)}: the array", x) for x in (a, b)]
    left, right = ([*x.shape] for x in arrays)
    if not (0 < len(left) < 3 and 0 < len(right) < 3 and left[-1] == right[0]):
        raise ShapeError(
            f"{brief(a, 80)} @ {brief(b, 80)}: {times(left)} does not apply to {times(right)}; needed are m x k and k x n, "
            f"or k for a vector"
        )
    first, second = (x if isinstance(x, Node) else Constant(x, graph=graph) for x in arrays)
    if len(right) == 1:
        return Dot(first, second) if len(left) == 1 else MatVec(first, second)
    if len(left) > 1:
        return MatMul(first, second)
    return Reshape(MatMul(Reshape(first, (1, *left)), second), right[1:])


def _reshape(a: Node, *shape: Any) -> Node:
    """Return the same entries under other axes; computes nothing, see `Reshape`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Variable(6).reshape(2, 3)
    >>> y.shape
    (2, 3)
    """
    return Reshape(a, shape[0] if len(shape) == 1 else shape)


def _turned(a: Node) -> Node:
    """Return the node with its axes reversed, see `Transpose`."""
    return Transpose(a)


# What NumPy's functions are to nodes, as operators; an array on the left hands its own operators over as these.
_AS_OPERATORS: dict[Any, str] = {
    np.add: "add",
    np.subtract: "sub",
    np.multiply: "mul",
    np.true_divide: "truediv",
    np.power: "pow",
    np.matmul: "matmul",
    np.negative: "neg",
    np.absolute: "abs",
}


def _ufunc(self: Node, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    name = _AS_OPERATORS.get(ufunc)
    if name is not None and method == "__call__" and not kwargs:
        if isinstance(inputs[0], Node):
            return getattr(inputs[0], f"__{name}__")(*inputs[1:])
        return getattr(self, f"__r{name}__")(inputs[0])
    if ufunc in (np.equal, np.not_equal):  # nodes are told apart by what they are
        return ufunc is np.not_equal
    raise _of_numbers(self, ufunc)


def _function(self: Node, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    raise _of_numbers(self, function)


def _of_numbers(node: Node, function: Any) -> GraphError:
    """Return the error of a function of NumPy's that was given a node; names the op that does the same."""
    name = function.__name__
    op = name.capitalize()
    is_op = hasattr(sys.modules[__package__], op)
    advice = f"write fg.{op}(...)" if is_op else "docs/ops.md lists the ops, and fg.Elementwise makes one of a formula"
    return GraphError(f"np.{name} computes with numbers, and {brief(node, 80)} is a node: {advice}")


def install() -> None:
    """Give nodes their operators; here, because the ops import the nodes and not the other way round."""
    methods: dict[str, Callable[..., Node]] = {
        "__add__": _binary("+", Add),
        "__radd__": _add_to,
        "__sub__": _binary("-", Subtract),
        "__rsub__": _subtract_from,
        "__truediv__": _divide,
        "__rtruediv__": _divided,
        "__pow__": _power,
        "__rpow__": _power_of,
        "__mul__": _multiply,
        "__rmul__": _multiply,
        "__neg__": lambda a: Negative(a),
        "__abs__": lambda a: Abs(a),
        "__matmul__": _matmul,
        "__rmatmul__": lambda a, b: _matmul(b, a),
        "__getitem__": item,
        "reshape": _reshape,
        "__array_ufunc__": _ufunc,
        "__array_function__": _function,
    }
    for name, method in methods.items():
        setattr(Node, name, method)
    setattr(Node, "T", property(_turned))  # noqa: B010 (mypy)
