"""Elementwise functions: each entry of the value depends on one entry of the only parent."""

from __future__ import annotations

import numpy as np

from ..typing import Array
from .elementwise import Elementwise


class Exp(Elementwise):
    """``exp(a)``, entry by entry.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Exp(fg.Variable(1, [0.0]))
    >>> y.forward()
    array([1.])
    """

    formula = "exp(a)"
    slopes = ("y",)
    bends = {(0, 0): "y"}


class Log(Elementwise):
    """Natural logarithm, entry by entry; the entries must be positive.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Log(fg.Variable(1, [1.0]))
    >>> y.forward()
    array([0.])
    """

    formula = "log(a)"
    slopes = ("1.0 / a",)
    bends = {(0, 0): "-1.0 / a**2"}


class Reciprocal(Elementwise):
    """``1 / a``, entry by entry; the entries must not be zero.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Reciprocal(fg.Variable(1, [4.0]))
    >>> y.forward()
    array([0.25])
    """

    formula = "1.0 / a"
    slopes = ("-y * y",)
    bends = {(0, 0): "2.0 * y * y * y"}


class Logistic(Elementwise):
    """``1 / (1 + exp(-a))``, entry by entry; does not overflow.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Logistic(fg.Variable(2, [0.0, -1000.0]))
    >>> y.forward()
    array([0.5, 0. ])
    """

    formula = "where(a >= 0, 1, exp(-abs(a))) / (1 + exp(-abs(a)))"
    slopes = ("y * (1.0 - y)",)
    bends = {(0, 0): "y * (1.0 - y) * (1.0 - 2.0 * y)"}

    @staticmethod
    def apply(a: Array, out: Array | None = None) -> Array:
        """Return the logistic function; the exponential, of a number that is not positive, is taken once."""
        e = np.exp(-np.abs(a))
        return np.divide(np.where(a >= 0, np.ones_like(e), e), 1.0 + e, out)


class Tanh(Elementwise):
    """Hyperbolic tangent, entry by entry.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Tanh(fg.Variable(1, [0.0]))
    >>> y.forward()
    array([0.])
    """

    formula = "tanh(a)"
    slopes = ("1.0 - y * y",)
    bends = {(0, 0): "-2.0 * y * (1.0 - y * y)"}


class ReLU(Elementwise):
    """``max(a, 0)``, entry by entry; the derivative at 0 is taken as 0.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.ReLU(fg.Variable(2, [-1.0, 2.0]))
    >>> y.forward()
    array([0., 2.])
    """

    formula = "maximum(a, 0)"
    slopes = ("y > 0",)
    bends = {(0, 0): "0"}
