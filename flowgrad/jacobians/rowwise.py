"""Local Jacobians of ops that act on rows: stretches of one length, each for itself (softmax, normalisation).

Values are flat, ``(N, rows * n)``; row functions are given one row.
"""

from __future__ import annotations

import numpy as np

from ..typing import Array
from .base import Identity, LocalJacobian, Symmetric

# Added to variances before the root is taken.
EPSILON = 1e-5


class Rowwise(LocalJacobian):
    """Base of kinds whose factors and cotangents are looked at row by row."""

    def __init__(self, rows: int, **factors: Array):
        self.rows = rows
        for name, factor in factors.items():
            setattr(self, name, factor)

    def cut(self, array: Array) -> Array:
        """Return an array with an axis of rows before its last one."""
        return array.reshape(*array.shape[:-1], self.rows, -1)

    def joined(self, array: Array, out: Array | None) -> Array:
        """Return an array without the axis of rows, in `out` if given."""
        return Identity().pull(array.reshape(*array.shape[:-2], -1), out)


def _sum(array: Array) -> Array:
    return np.asarray(array.sum(axis=-1, keepdims=True))


def _mean(array: Array) -> Array:
    return np.asarray(array.mean(axis=-1, keepdims=True))


class SoftMaxJacobian(Rowwise, Symmetric):
    """``dy/dx = diag(p) - p pᵀ`` for ``p = softmax(x)``; pulled as ``p * (g - (g·p))``.

    Parameters
    ----------
    p : ndarray (N, n)
        The probabilities.
    rows : int
        So many stretches of one length, each a softmax of its own.

    Examples
    --------
    >>> SoftMaxJacobian(np.array([[0.25, 0.75]])).dense(2).tolist()
    [[[0.1875, -0.1875], [-0.1875, 0.1875]]]
    """

    def __init__(self, p: Array, rows: int = 1):
        super().__init__(rows)
        self.p = p

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``p * (g - g·p)`` without building the ``n x n`` matrix."""
        if self.rows == 1:
            return np.multiply(self.p, g - _sum(g * self.p), out)
        g, p = self.cut(g), self.cut(self.p)
        return self.joined(p * (g - _sum(g * p)), out)

    @staticmethod
    def row_pull(out: Array, g: Array, p: Array) -> None:
        """Write ``p * (g - g·p)``."""
        along = g[0] - g[0]
        for j in range(g.shape[0]):
            along += g[j] * p[j]
        for j in range(g.shape[0]):
            out[j] = p[j] * (g[j] - along)

    row_push = row_pull


class SoftMaxTangent(Rowwise):
    """Tangent of `SoftMaxJacobian`: ``diag(q) - q pᵀ - p qᵀ`` for the tangent `q` of the probabilities `p`.

    Parameters
    ----------
    p, q : ndarray (N, n)
    rows : int
    """

    def __init__(self, p: Array, q: Array, rows: int = 1):
        super().__init__(rows)
        self.p = p
        self.q = q

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``q * (g - g·p) - p * (g·q)``."""
        g, p, q = self.cut(g), self.cut(self.p), self.cut(self.q)
        return self.joined(q * (g - _sum(g * p)) - p * _sum(g * q), out)


class LogSoftMaxJacobian(Rowwise):
    """``dy/dx = I - 1 pᵀ`` for ``y = log p``, ``p = softmax(x)``; pulled as ``g - p Σg``.

    Parameters
    ----------
    y : ndarray (N, n)
        The logarithms of the probabilities.
    rows : int
        So many stretches of one length, each a softmax of its own.

    Examples
    --------
    >>> LogSoftMaxJacobian(np.log([[0.25, 0.75]])).dense(2).tolist()
    [[[0.75, -0.75], [-0.25, 0.25]]]
    """

    def __init__(self, y: Array, rows: int = 1):
        super().__init__(rows)
        self.y = y

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``g - p Σg``."""
        if self.rows == 1:
            return np.subtract(g, np.exp(self.y) * _sum(g), out)
        g, p = self.cut(g), np.exp(self.cut(self.y))
        return self.joined(g - p * _sum(g), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return ``t - p·t``."""
        t, p = self.cut(t), np.exp(self.cut(self.y))
        return self.joined(t - _sum(p * t), None)

    @staticmethod
    def row_pull(out: Array, g: Array, y: Array) -> None:
        """Write ``g - p Σg``."""
        total = g[0] - g[0]
        for j in range(g.shape[0]):
            total += g[j]
        for j in range(g.shape[0]):
            out[j] = g[j] - np.exp(y[j]) * total

    @staticmethod
    def row_push(out: Array, t: Array, y: Array) -> None:
        """Write ``t - p·t``."""
        along = t[0] - t[0]
        for j in range(t.shape[0]):
            along += np.exp(y[j]) * t[j]
        for j in range(t.shape[0]):
            out[j] = t[j] - along


class LogSoftMaxTangent(Rowwise):
    """Tangent of `LogSoftMaxJacobian`: ``-1 qᵀ`` for the tangent `q` of the probabilities.

    Parameters
    ----------
    q : ndarray (N, n)
    rows : int
    """

    def __init__(self, q: Array, rows: int = 1):
        super().__init__(rows)
        self.q = q

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``-q Σg``."""
        return self.joined(-self.cut(self.q) * _sum(self.cut(g)), out)


class StandardizeJacobian(Rowwise, Symmetric):
    """``dy/dx = s (I - 11ᵀ/n - y yᵀ/n)`` for ``y = s (x - mean)``, ``s = 1 / sqrt(variance + ε)``, in each row.

    See S. Ioffe and C. Szegedy, *Batch Normalization*, ICML 2015, section 3.

    Parameters
    ----------
    y, x : ndarray (N, rows * n)
    rows : int
    """

    def __init__(self, y: Array, x: Array, rows: int = 1):
        super().__init__(rows)
        self.y = y
        self.x = x

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``s (g - mean(g) - y mean(g y))``."""
        g, y, s = self.cut(g), self.cut(self.y), scale(self.cut(self.x))
        return self.joined(s * (g - _mean(g) - y * _mean(g * y)), out)

    @staticmethod
    def row_pull(out: Array, g: Array, y: Array, x: Array) -> None:
        """Write ``s (g - mean(g) - y mean(g y))``."""
        n = x.shape[0]
        mean, total, along = x[0] - x[0], x[0] - x[0], x[0] - x[0]
        for j in range(n):
            mean += x[j]
            total += g[j]
            along += g[j] * y[j]
        mean /= n
        square = x[0] - x[0]
        for j in range(n):
            square += (x[j] - mean) * (x[j] - mean)
        s = 1 / np.sqrt(square / n + EPSILON)
        for j in range(n):
            out[j] = s * (g[j] - total / n - y[j] * (along / n))

    row_push = row_pull


class StandardizeTangent(Rowwise):
    """Tangent of `StandardizeJacobian`, for the tangents `dy` of the value and `dx` of the operand.

    Parameters
    ----------
    y, x, dy, dx : ndarray (N, rows * n)
    rows : int
    """

    def __init__(self, y: Array, x: Array, dy: Array, dx: Array, rows: int = 1):
        super().__init__(rows)
        self.y, self.x, self.dy, self.dx = y, x, dy, dx

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return the pull by ``s'`` and by ``y'``."""
        g, y, dy, dx = (self.cut(v) for v in (g, self.y, self.dy, self.dx))
        s = scale(self.cut(self.x))
        moved = -s * s * _mean(y * dx)
        along = _mean(g * y)
        return self.joined(moved * (g - _mean(g) - y * along) - s * (dy * along + y * _mean(g * dy)), out)


def scale(x: Array) -> Array:
    """Return ``1 / sqrt(variance + ε)`` along the last axis."""
    return 1 / np.sqrt(x.var(axis=-1, keepdims=True) + EPSILON)
