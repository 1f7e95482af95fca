"""Elementwise functions: each entry of the value depends on one entry of the only parent."""

from __future__ import annotations

import numpy as np

from ..jacobians import Diagonal, LocalJacobian
from ..typing import Array
from .elementwise import Elementwise


class Exp(Elementwise):
    """``exp(a)``, entry by entry.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Exp(fg.Variable(1, [0.0]))
    >>> y.forward()
    array([1.])
    """

    uses = ((-1,),)
    expr = "np.exp({0})"
    slopes = ("{y}",)

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the exponential."""
        return np.exp(a, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``diag(exp(a))``."""
        return Diagonal(y)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return ``diag(y')``."""
        return Diagonal(tangents[0])


class Log(Elementwise):
    """Natural logarithm, entry by entry; the entries must be positive.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Log(fg.Variable(1, [1.0]))
    >>> y.forward()
    array([0.])
    """

    uses = ((0,),)
    expr = "np.log({0})"
    slopes = ("F(1) / {0}",)

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the logarithm."""
        return np.log(a, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``diag(1 / a)``."""
        return Diagonal(1.0 / a)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return ``diag(-a' / a²)``."""
        return Diagonal(-tangents[1] / values[1] ** 2)


class Reciprocal(Elementwise):
    """``1 / a``, entry by entry; the entries must not be zero.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Reciprocal(fg.Variable(1, [4.0]))
    >>> y.forward()
    array([0.25])
    """

    uses = ((-1,),)
    expr = "F(1) / {0}"
    slopes = ("-{y} * {y}",)

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the reciprocal."""
        return np.divide(1.0, a, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``diag(-1 / a²)``."""
        return Diagonal(-y * y)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return ``diag(-2 y y')``."""
        return Diagonal(-2.0 * values[0] * tangents[0])


class Logistic(Elementwise):
    """``1 / (1 + exp(-a))``, entry by entry; does not overflow.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Logistic(fg.Variable(2, [0.0, -1000.0]))
    >>> y.forward()
    array([0.5, 0. ])
    """

    uses = ((-1,),)
    expr = "(F(1) if {0} >= F(0) else np.exp(-abs({0}))) / (F(1) + np.exp(-abs({0})))"
    slopes = ("{y} * (F(1) - {y})",)

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the logistic function; only exponentials of non-positive numbers are taken."""
        e = np.exp(-np.abs(a))
        return np.divide(np.where(a >= 0, np.ones_like(e), e), 1.0 + e, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``diag(y (1 - y))``."""
        return Diagonal(y * (1.0 - y))

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return ``diag(y' (1 - 2 y))``."""
        return Diagonal(tangents[0] * (1.0 - 2.0 * values[0]))


class Tanh(Elementwise):
    """Hyperbolic tangent, entry by entry.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Tanh(fg.Variable(1, [0.0]))
    >>> y.forward()
    array([0.])
    """

    uses = ((-1,),)
    expr = "np.tanh({0})"
    slopes = ("F(1) - {y} * {y}",)

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the hyperbolic tangent."""
        return np.tanh(a, out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``diag(1 - y²)``."""
        return Diagonal(1.0 - y * y)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return ``diag(-2 y y')``."""
        return Diagonal(-2.0 * values[0] * tangents[0])


class ReLU(Elementwise):
    """``max(a, 0)``, entry by entry; the derivative at 0 is taken as 0.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.ReLU(fg.Variable(2, [-1.0, 2.0]))
    >>> y.forward()
    array([0., 2.])
    """

    uses = ((-1,),)
    expr = "{0} if {0} > F(0) else F(0)"
    slopes = ("F(1) if {y} > F(0) else F(0)",)

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the positive part."""
        return np.maximum(a, 0, out=out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return the diagonal of ones where the value is positive."""
        return Diagonal(y > 0)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return None: the Jacobian is constant."""
        return None
