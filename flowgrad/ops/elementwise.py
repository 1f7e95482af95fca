"""Elementwise ops: each entry of the value depends on one entry of each parent."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..jacobians import Diagonal, Identity, LocalJacobian
from ..op import Op, Stacked
from ..typing import Array


class Elementwise(Op):
    """Base of ops that act on each entry by itself; siblings stack by laying their operands end to end."""

    @classmethod
    def stack(cls, k: int, shared: tuple[bool, ...], dims: tuple[int, ...], **attrs: Any) -> Stacked | None:
        """Return the same op on the stacked operands; an operand that siblings share does not stack."""
        return None if any(shared) else Stacked(cls, attrs)


class Add(Elementwise):
    """``a + b``; vectors of one length.

    Parameters
    ----------
    a, b : Node
        Of the same dim; may be the same node.

    Raises
    ------
    ShapeError
        If the dims differ.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Add(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [3.0, 4.0]))
    >>> y.forward()
    array([4., 6.])
    """

    kinds = (Identity,)
    uses = ((),)
    expr = "{0} + {1}"
    slopes = ("F(1)", "F(1)")

    @staticmethod
    def apply(a: Array, b: Array, out: Array | None = None) -> Array:
        """Return the sum."""
        return np.add(a, b, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, b: Array) -> LocalJacobian:
        """Return the identity."""
        return Identity()


class Subtract(Elementwise):
    """``a - b``; vectors of one length.

    Parameters
    ----------
    a, b : Node
        Of the same dim.

    Raises
    ------
    ShapeError
        If the dims differ.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Subtract(fg.Variable(1, [5.0]), fg.Variable(1, [3.0]))
    >>> y.forward()
    array([2.])
    """

    kinds = (Identity, Diagonal)
    uses = ((),)
    expr = "{0} - {1}"
    slopes = ("F(1)", "F(-1)")

    @staticmethod
    def apply(a: Array, b: Array, out: Array | None = None) -> Array:
        """Return the difference."""
        return np.subtract(a, b, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, b: Array) -> LocalJacobian:
        """Return ``I`` by `a`, ``-I`` by `b`."""
        return Diagonal(-1.0) if slot else Identity()


class Multiply(Elementwise):
    """``a * b``, entry by entry; vectors of one length.

    Parameters
    ----------
    a, b : Node
        Of the same dim; ``Multiply(x, x)`` is the square.

    Raises
    ------
    ShapeError
        If the dims differ.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     x = fg.Variable(2, [2.0, 3.0])
    ...     y = fg.Multiply(x, x)
    >>> y.forward()
    array([4., 9.])
    """

    uses = ((1,), (0,))
    expr = "{0} * {1}"
    slopes = ("{1}", "{0}")

    @staticmethod
    def apply(a: Array, b: Array, out: Array | None = None) -> Array:
        """Return the product."""
        return np.multiply(a, b, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, b: Array) -> LocalJacobian:
        """Return the diagonal of the other operand."""
        return Diagonal(a if slot else b)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return the rule at the tangents: the factor is linear."""
        return Multiply.jacobian(slot, *tangents)


class Scale(Elementwise):
    """``c * a`` for a number `c`.

    Parameters
    ----------
    a : Node
    c : float
        A constant, not a node; for a trainable factor build ``Multiply``.

    Raises
    ------
    ShapeError
        If `c` is not a finite number.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Scale(fg.Variable(2, [1.0, 2.0]), 0.5)
    >>> y.forward()
    array([0.5, 1. ])
    """

    uses = ((),)
    expr = "{0} * F({c})"
    slopes = ("F({c})",)

    def __init__(self, a: Node, c: float, *, name: str | None = None):
        if isinstance(c, Node) or not np.isscalar(c) or isinstance(c, (str, bytes, complex)) or not np.isfinite(c):
            raise ShapeError(f"Scale({a}, {c!r}): c must be a finite number; to scale by a node use Multiply")
        super().__init__(a, name=name, c=float(c))

    @staticmethod
    def apply(a: Array, out: Array | None = None, *, c: float) -> Array:
        """Return the multiple."""
        return np.multiply(a, c, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, c: float) -> LocalJacobian:
        """Return ``c I``."""
        return Diagonal(c)


class Negative(Elementwise):
    """``-a``.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Negative(fg.Variable(1, [2.0]))
    >>> y.forward()
    array([-2.])
    """

    uses = ((),)
    expr = "-{0}"
    slopes = ("F(-1)",)

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the negative."""
        return np.negative(a, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``-I``."""
        return Diagonal(-1.0)
