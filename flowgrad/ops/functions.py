"""Elementwise functions: each entry of the value depends on one entry of the only parent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import GraphError
from ..graph import Node
from ..inputs import real
from ..typing import Array
from .elementwise import Elementwise, Multiply

# The logistic function of `a`, as a formula.
LOGISTIC = "where(a >= 0, 1, exp(-abs(a))) / (1 + exp(-abs(a)))"


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

    formula = LOGISTIC
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


class LeakyReLU(Elementwise):
    """``a`` where it is positive, else ``slope * a``; the derivative at 0 is `slope`.

    Parameters
    ----------
    a : Node
    slope : float

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.LeakyReLU(fg.Variable(2, [-1.0, 2.0]))
    >>> y.forward().tolist()
    [-0.01, 2.0]
    """

    formula = "maximum(a, 0) + slope * minimum(a, 0)"
    slopes = ("slope + (1 - slope) * maximum(sign(a), 0)",)
    bends = {(0, 0): "0"}

    def __init__(self, a: Node, slope: float = 0.01, *, name: str | None = None):
        super().__init__(a, name=name, slope=real(slope, "LeakyReLU: slope"))


class Softplus(Elementwise):
    """``log(1 + exp(a))``, entry by entry, a smooth ReLU; does not overflow.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Softplus(fg.Variable(2, [-1000.0, 1000.0]))
    >>> y.forward().tolist()
    [0.0, 1000.0]
    """

    formula = "maximum(a, 0) + log1p(exp(-abs(a)))"
    slopes = (LOGISTIC,)
    bends = {(0, 0): "exp(-abs(a)) / (1 + exp(-abs(a)))**2"}


class SiLU(Elementwise):
    """``a * logistic(a)``, entry by entry: S. Elfwing and others, Neural Networks 107, 2018.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.SiLU(fg.Variable(1, [0.0]))
    >>> y.forward()
    array([0.])
    """

    formula = f"a * ({LOGISTIC})"
    slopes = (f"({LOGISTIC}) * (1 + a * (1 - {LOGISTIC}))",)
    bends = {(0, 0): f"exp(-abs(a)) / (1 + exp(-abs(a)))**2 * (2 + a * (1 - 2 * ({LOGISTIC})))"}


class Step(Elementwise):
    """1 where the entry is positive, else 0; its derivative is 0 everywhere, so nothing is learned through it.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Step(fg.Variable(3, [-1.0, 0.0, 2.0]))
    >>> y.forward()
    array([0., 0., 1.])
    """

    formula = "maximum(sign(a), 0)"
    slopes = ("0.0",)
    differentiable = False


class StopGradient(Elementwise):
    """The value itself; no derivative goes through it.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     x = fg.Variable(1, [3.0])
    ...     y = x * fg.StopGradient(x)
    >>> y.forward(), x.backward(y)
    (array([9.]), array([[3.]]))
    """

    formula = "a"
    slopes = ("0.0",)
    differentiable = False


class Sqrt(Elementwise):
    """Square root, entry by entry; the entries must be positive.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Sqrt(fg.Variable(1, [9.0]))
    >>> y.forward()
    array([3.])
    """

    formula = "sqrt(a)"
    slopes = ("0.5 / y",)
    bends = {(0, 0): "-0.25 / (y * y * y)"}


class Abs(Elementwise):
    """Absolute value, entry by entry; the derivative at 0 is taken as 0.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Abs(fg.Variable(2, [-1.0, 2.0]))
    >>> y.forward()
    array([1., 2.])
    """

    formula = "abs(a)"
    slopes = ("sign(a)",)
    bends = {(0, 0): "0"}


class Power(Elementwise):
    """``a ** p`` for a number `p`, entry by entry; entries must be positive where `p` is no integer.

    Parameters
    ----------
    a : Node
    p : float
        Neither 0 nor 1.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Variable(2, [2.0, 3.0]) ** 2
    >>> y.forward()
    array([4., 9.])
    """

    formula = "a ** p"
    slopes = ("p * a ** (p - 1)",)
    bends = {(0, 0): "p * (p - 1) * a ** (p - 2)"}

    def __init__(self, a: Node, p: float, *, name: str | None = None):
        power = real(p, "Power: p")
        if power in (0, 1):
            raise GraphError(f"Power({a}, {p}): a power of {p} is {'the node itself' if power else 'the constant 1'}")
        super().__init__(a, name=name, p=power)

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write a square as a product, which is faster."""
        if attrs["p"] == 2:
            return Multiply.expand(program, [args[0], args[0]], {}, label)
        return super().expand(program, args, attrs, label)


class Maximum(Elementwise):
    """The larger of two entries; where they are equal, each has half of the derivative.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Maximum(fg.Variable(2, [1.0, 4.0]), fg.Variable(2, [2.0, 3.0]))
    >>> y.forward()
    array([2., 4.])
    """

    formula = "maximum(a, b)"
    slopes = ("0.5 + 0.5 * sign(a - b)", "0.5 - 0.5 * sign(a - b)")
    bends = {(0, 0): "0", (0, 1): "0", (1, 1): "0"}


class Minimum(Elementwise):
    """The smaller of two entries; where they are equal, each has half of the derivative.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Minimum(fg.Variable(2, [1.0, 4.0]), fg.Variable(2, [2.0, 3.0]))
    >>> y.forward()
    array([1., 3.])
    """

    formula = "minimum(a, b)"
    slopes = ("0.5 - 0.5 * sign(a - b)", "0.5 + 0.5 * sign(a - b)")
    bends = {(0, 0): "0", (0, 1): "0", (1, 1): "0"}


# W. J. Cody, *Rational Chebyshev approximations for the error function*, Mathematics of Computation 23, 1969: erf(t) / t below
# 0.46875, erfc(t) exp(t²) below 4, and what is left of it beyond, as polynomials over polynomials, the highest power first.
_NEAR = (
    (0.185777706184603153, 3.16112374387056560, 113.864154151050156, 377.485237685302021, 3209.37758913846947),
    (1.0, 23.6012909523441209, 244.024637934444173, 1282.61652607737228, 2844.23683343917062),
)
_MIDDLE = (
    (2.15311535474403846e-8, 0.564188496988670089, 8.88314979438837594, 66.1191906371416295, 298.635138197400131,
     881.952221241769090, 1712.04761263407058, 2051.07837782607147, 1230.33935479799725),
    (1.0, 15.7449261107098347, 117.693950891312499, 537.181101862009858, 1621.38957456669019, 3290.79923573345963,
     4362.61909014324716, 3439.36767414372164, 1230.33935480374942),
)  # fmt: skip
_FAR = (
    (0.0163153871373020978, 0.305326634961232344, 0.360344899949804439, 0.125781726111229246, 0.0160837851487422766,
     6.58749161529837803e-4),
    (1.0, 2.56852019228982242, 1.87295284992346725, 0.527905102951428412, 0.0605183413124413191, 0.00233520497626869185),
)  # fmt: skip


def _ratio(parts: tuple[tuple[float, ...], tuple[float, ...]], t: str) -> str:
    """Return the formula of a polynomial over a polynomial, by Horner's rule."""
    texts = []
    for coefficients in parts:
        text = repr(coefficients[0])
        for c in coefficients[1:]:
            text = f"({text} * {t} + {c!r})"
        texts.append(text)
    return f"{texts[0]} / {texts[1]}"


def _normal(a: str = "a") -> str:
    """Return the formula of the normal distribution function: half of ``erfc(-a / sqrt(2))``."""
    root = math.sqrt(0.5)
    t, square = f"(abs({a}) * {root!r})", f"({a} * {a} * 0.5)"
    low = f"maximum({t}, 4)"  # no division by zero where it is not chosen
    inverse = f"(1 / ({low} * {low}))"
    far = f"({1 / math.sqrt(math.pi)!r} - {inverse} * {_ratio(_FAR, inverse)}) / {low}"
    tail = f"0.5 * exp(-{square}) * where({t} <= 4, {_ratio(_MIDDLE, f'minimum({t}, 4)')}, {far})"
    near = f"0.5 + {0.5 * root!r} * {a} * ({_ratio(_NEAR, f'minimum({square}, 1)')})"
    return f"where({t} <= 0.46875, {near}, where({a} < 0, {tail}, 1 - {tail}))"


NORMAL = _normal()
DENSITY = f"exp(-0.5 * a * a) * {1 / math.sqrt(2 * math.pi)!r}"


class GELU(Elementwise):
    """``a * Φ(a)`` with the normal distribution function Φ itself: D. Hendrycks and K. Gimpel, 2016; right to 1e-15.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.GELU(fg.Variable(2, [0.0, 1.0]))
    >>> y.forward().round(6).tolist()
    [0.0, 0.841345]
    """

    formula = f"a * ({NORMAL})"
    slopes = (f"{NORMAL} + a * {DENSITY}",)
    bends = {(0, 0): f"(2 - a * a) * {DENSITY}"}
