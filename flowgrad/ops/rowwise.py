"""Ops along the last axis: each row for itself, of a vector the whole; rules and compiled loops see rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..inputs import Shape, brief
from ..jacobians import (
    EPSILON,
    LocalJacobian,
    LogSoftMaxJacobian,
    LogSoftMaxTangent,
    Outer,
    SoftMaxJacobian,
    SoftMaxTangent,
    StandardizeJacobian,
    StandardizeTangent,
    scale,
)
from ..op import Op
from ..typing import Array
from .select import Transpose


def softmax(a: Array) -> Array:
    """Return ``exp(a_i) / Σ exp(a_j)`` along the last axis; the maximum is subtracted first, so large logits survive."""
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def exponentials(a: Array) -> tuple[Array, Array, Array, Array]:
    """Return each sample's largest logit by its number, how far all are below it, ``exp`` of minus that, and the sum of those.

    The largest one's own, 1, is left out: beside it, small ones would be lost. The logarithm of the whole sum is ``log1p``.
    """
    k = a.argmax(axis=1)
    rows = np.arange(len(a))
    below = a[rows, k][:, None] - a
    e = np.exp(-below)
    e[rows, k] = 0
    return k, below, e, e.sum(axis=1, keepdims=True)


class AlongAxis(Op):
    """Base of ops of one operand that act along an axis; rules are for the last one, cut into `rows`."""

    def __new__(cls, a: Any = None, axis: int = -1, **more: Any) -> Any:
        """Return the node, or, along another axis than the last, the node between two that turn axes."""
        axes = getattr(a, "shape", (1,))
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -len(axes) <= axis < len(axes):
            raise ShapeError(f"{cls.__name__}: {a} has {len(axes)} axes; there is no axis {brief(axis)}")
        if axis % len(axes) == len(axes) - 1:
            return super().__new__(cls)
        order = [*(k for k in range(len(axes)) if k != axis % len(axes)), axis % len(axes)]
        return Transpose(cls(Transpose(a, order)), np.argsort(order), **more)

    def __init__(self, a: Node, axis: int = -1, *, name: str | None = None):
        rows = math.prod(getattr(a, "shape", (1,))[:-1])
        super().__init__(a, name=name, **({"rows": rows} if rows > 1 else {}))

    @staticmethod
    def shape(*dims: int, rows: int = 1) -> int:
        """Return the length of the operand."""
        return dims[0]

    @staticmethod
    def out_shape(*shapes: Shape, rows: int = 1) -> Shape:
        """Return the shape of the operand."""
        return shapes[0]


class SoftMax(AlongAxis):
    """Probabilities ``exp(a_i) / Σ_j exp(a_j)``; invariant to adding a constant, does not overflow.

    Parameters
    ----------
    a : Node
        Logits.
    axis : int
        Along which they sum to 1. One that is not the last is written with two `Transpose`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     p = fg.SoftMax(fg.Variable(2, [1000.0, 1000.0]))
    >>> p.forward()
    array([0.5, 0.5])
    """

    kinds = (SoftMaxJacobian,)
    uses = ((-1,),)

    @staticmethod
    def apply(a: Array, *, rows: int = 1) -> Array:
        """Return the probabilities."""
        return softmax(a.reshape(len(a), rows, -1)).reshape(len(a), -1) if rows > 1 else softmax(a)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, rows: int = 1) -> LocalJacobian:
        """Return ``diag(p) - p pᵀ``."""
        return SoftMaxJacobian(y, rows)

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, rows: int = 1
    ) -> LocalJacobian | None:
        """Return ``diag(p') - p' pᵀ - p p'ᵀ``."""
        return SoftMaxTangent(values[0], tangents[0], rows)

    @staticmethod
    def row_value(y: Array, a: Array) -> None:
        """Write the probabilities of one sample."""
        top = a[0]
        for j in range(1, a.shape[0]):
            top = max(top, a[j])
        total = a[0] - a[0]
        for j in range(a.shape[0]):
            y[j] = np.exp(a[j] - top)
            total += y[j]
        for j in range(a.shape[0]):
            y[j] /= total


class LogSoftMax(AlongAxis):
    """``log softmax(a)_i = a_i - log Σ_j exp(a_j)``, exact where the probability itself would be 0 or 1.

    Parameters
    ----------
    a : Node
        Logits.
    axis : int
        See `SoftMax`.

    Notes
    -----
    Without the largest logit the sum is small, so ``log1p`` takes it: P. Blanchard, D. Higham and N. Higham, *Accurately
    computing the log-sum-exp and softmax functions*, IMA Journal of Numerical Analysis 41, 2021.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.LogSoftMax(fg.Variable(2, [1000.0, 0.0]))
    >>> y.forward().tolist()
    [0.0, -1000.0]
    """

    kinds = (LogSoftMaxJacobian,)
    uses = ((-1,),)

    @staticmethod
    def apply(a: Array, *, rows: int = 1) -> Array:
        """Return the logarithms of the probabilities."""
        _, below, _, rest = exponentials(a.reshape(len(a) * rows, -1))
        return ((0 - below) - np.log1p(rest)).reshape(len(a), -1)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, rows: int = 1) -> LocalJacobian:
        """Return ``I - 1 pᵀ``."""
        return LogSoftMaxJacobian(y, rows)

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, rows: int = 1
    ) -> LocalJacobian | None:
        """Return ``-1 p'ᵀ``."""
        return LogSoftMaxTangent(np.exp(values[0]) * tangents[0], rows)

    @staticmethod
    def row_value(y: Array, a: Array) -> None:
        """Write the logarithms of the probabilities of one sample."""
        k = 0
        for j in range(1, a.shape[0]):
            if a[j] > a[k]:
                k = j
        top = a[k]
        for j in range(a.shape[0]):
            y[j] = np.exp(a[j] - top)
        y[k] = 0
        rest = top - top
        for j in range(a.shape[0]):
            rest += y[j]
        rest = np.log1p(rest)
        for j in range(a.shape[0]):
            y[j] = (a[j] - top) - rest


class Max(Op):
    """Largest entry, a scalar; of equal ones the first has the derivative.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Max(fg.Variable(3, [1.0, 3.0, 2.0]))
    >>> y.forward()
    array([3.])
    """

    kinds = (Outer,)
    uses = ((0,),)

    @staticmethod
    def shape(*dims: int) -> int:
        """Return 1."""
        return 1

    @staticmethod
    def apply(a: Array) -> Array:
        """Return the largest entry."""
        return np.asarray(a.max(axis=1, keepdims=True))

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return a row with a 1 at the largest entry."""
        row = np.zeros_like(a)
        row[np.arange(len(a)), a.argmax(axis=1)] = 1
        return Outer(row)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return None: the row does not move."""
        return None

    @staticmethod
    def row_value(y: Array, a: Array) -> None:
        """Write the largest entry."""
        top = a[0]
        for j in range(1, a.shape[0]):
            top = max(top, a[j])
        y[0] = top

    @staticmethod
    def row_factor(slot: int, f: Array, a: Array) -> None:
        """Write a 1 at the largest entry."""
        k = 0
        for j in range(a.shape[0]):
            f[j] = 0
            if a[j] > a[k]:
                k = j
        f[k] = 1


class Standardize(AlongAxis):
    """``(a - mean) / sqrt(variance + 1e-5)`` along the last axis: what `LayerNorm` and `GroupNorm` have in common.

    Parameters
    ----------
    a : Node
    axis : int
        See `SoftMax`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Standardize(fg.Variable(2, [1.0, 3.0]))
    >>> y.forward().round(4)
    array([-1.,  1.])
    """

    kinds = (StandardizeJacobian,)
    uses = ((-1, 0),)

    @staticmethod
    def apply(a: Array, *, rows: int = 1) -> Array:
        """Return the entries without their mean, over their deviation."""
        a = a.reshape(len(a), rows, -1)
        return ((a - a.mean(axis=2, keepdims=True)) * scale(a)).reshape(len(a), -1)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, rows: int = 1) -> LocalJacobian:
        """Return ``s (I - 11ᵀ/n - y yᵀ/n)``."""
        return StandardizeJacobian(y, a, rows)

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, rows: int = 1
    ) -> LocalJacobian | None:
        """Return the tangent of both factors."""
        return StandardizeTangent(values[0], values[1], tangents[0], tangents[1], rows)

    @staticmethod
    def row_value(y: Array, a: Array) -> None:
        """Write one row."""
        n = a.shape[0]
        mean, square = a[0] - a[0], a[0] - a[0]
        for j in range(n):
            mean += a[j]
        mean /= n
        for j in range(n):
            square += (a[j] - mean) * (a[j] - mean)
        s = 1 / np.sqrt(square / n + EPSILON)
        for j in range(n):
            y[j] = (a[j] - mean) * s
