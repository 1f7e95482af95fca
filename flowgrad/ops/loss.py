"""SoftMax and the losses."""

from __future__ import annotations

import numpy as np

from ..jacobians import LocalJacobian, Outer, SoftMaxJacobian, SoftMaxTangent
from ..op import Op
from ..typing import Array

# Added to the probabilities under the logarithm, so that a probability of 0 costs 23, not infinity.
EPSILON = 1e-10


def sample_sum(each: Array, samples: int) -> float:
    """Return the sum over the samples, in double precision; one value ``(1, ...)`` is that of all of them."""
    return float(each.sum(dtype=np.float64)) * (1.0 if len(each) == samples else samples)


def softmax(a: Array) -> Array:
    """Return ``exp(a_i) / Σ exp(a_j)`` along the last axis; the maximum is subtracted first, so large logits survive."""
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class SoftMax(Op):
    """Probabilities ``exp(a_i) / Σ_j exp(a_j)``; invariant to adding a constant, does not overflow.

    Parameters
    ----------
    a : Node
        Logits.

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
    def apply(a: Array) -> Array:
        """Return the probabilities."""
        return softmax(a)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``diag(p) - p pᵀ``."""
        return SoftMaxJacobian(y)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return ``diag(p') - p' pᵀ - p p'ᵀ``."""
        return SoftMaxTangent(values[0], tangents[0])

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


class CrossEntropyWithSoftMax(Op):
    """``-Σ y_i log(softmax(a)_i + 1e-10)``, a scalar.

    Parameters
    ----------
    logits, labels : Node
        Of the same dim; labels are usually one-hot.

    Raises
    ------
    ShapeError
        If the dims differ.

    Notes
    -----
    The Jacobian by the logits is ``(softmax(a) Σy - y)ᵀ``, by the labels ``-log(softmax(a) + 1e-10)ᵀ``: C. Bishop,
    *Pattern Recognition and Machine Learning*, Springer 2006, equation 4.109.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.CrossEntropyWithSoftMax(fg.Variable(2, [0.0, 0.0]), fg.Variable(2, [1.0, 0.0]))
    >>> round(float(loss.forward()[0]), 6)
    0.693147
    """

    kinds = (Outer,)
    uses = ((0, 1),)

    @staticmethod
    def shape(*dims: int) -> int:
        """Return 1."""
        Op.shape(*dims)
        return 1

    @staticmethod
    def apply(a: Array, labels: Array) -> Array:
        """Return the cross entropy."""
        return -(labels * np.log(softmax(a) + EPSILON)).sum(axis=1, keepdims=True)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, labels: Array) -> LocalJacobian:
        """Return the row by the logits or by the labels."""
        if slot:
            return Outer(-np.log(softmax(a) + EPSILON))
        return Outer(softmax(a) * labels.sum(axis=1, keepdims=True) - labels)

    @staticmethod
    def both(a: Array, labels: Array) -> tuple[Array, LocalJacobian]:
        """Return the cross entropy and its row by the logits; the probabilities are most of the work."""
        p = softmax(a)
        loss = -(labels * np.log(p + EPSILON)).sum(axis=1, keepdims=True)
        p = p * labels.sum(axis=1, keepdims=True)
        return loss, Outer(np.subtract(p, labels, out=p))

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return the row of the tangents, through the tangent of the probabilities."""
        _, a, labels = values
        p = softmax(a)
        moved = p * (tangents[1] - (p * tangents[1]).sum(axis=1, keepdims=True))
        if slot:
            return Outer(-moved / (p + EPSILON))
        weight, weight_moved = (v.sum(axis=1, keepdims=True) for v in (labels, tangents[2]))
        return Outer(moved * weight + p * weight_moved - tangents[2])

    @staticmethod
    def row_value(y: Array, a: Array, labels: Array) -> None:
        """Write the cross entropy of one sample."""
        top = a[0]
        for j in range(1, a.shape[0]):
            top = max(top, a[j])
        total = 0.0
        for j in range(a.shape[0]):
            total += np.exp(a[j] - top)
        loss = 0.0
        for j in range(a.shape[0]):
            if labels[j] != 0:
                loss -= labels[j] * np.log(np.exp(a[j] - top) / total + EPSILON)
        y[0] = loss

    @staticmethod
    def row_both(y: Array, f: Array, a: Array, labels: Array) -> None:
        """Write the cross entropy of one sample and its row by the logits; exponentials are half of the work."""
        top = a[0]
        weight = labels[0]
        for j in range(1, a.shape[0]):
            top = max(top, a[j])
            weight += labels[j]
        for j in range(a.shape[0]):  # loops with nothing else in them become vector code
            f[j] = np.exp(a[j] - top)
        total = a[0] - a[0]
        for j in range(a.shape[0]):
            total += f[j]
        for j in range(a.shape[0]):
            f[j] = f[j] / total
        loss = 0.0
        for j in range(a.shape[0]):
            if labels[j] != 0:
                loss -= labels[j] * np.log(f[j] + EPSILON)
        for j in range(a.shape[0]):
            f[j] = f[j] * weight - labels[j]
        y[0] = loss

    @staticmethod
    def row_factor(slot: int, f: Array, a: Array, labels: Array) -> None:
        """Write the row of one sample."""
        top = a[0]
        weight = labels[0]
        for j in range(1, a.shape[0]):
            top = max(top, a[j])
            weight += labels[j]
        total = a[0] - a[0]
        for j in range(a.shape[0]):
            f[j] = np.exp(a[j] - top)
            total += f[j]
        for j in range(a.shape[0]):
            p = f[j] / total
            f[j] = -np.log(p + EPSILON) if slot else p * weight - labels[j]


class MeanSquaredError(Op):
    """``mean((a - b)²)`` over the entries, a scalar.

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
    ...     loss = fg.MeanSquaredError(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [1.0, 4.0]))
    >>> loss.forward()
    array([2.])
    """

    kinds = (Outer,)
    uses = ((0, 1),)

    @staticmethod
    def shape(*dims: int) -> int:
        """Return 1."""
        Op.shape(*dims)
        return 1

    @staticmethod
    def apply(a: Array, b: Array) -> Array:
        """Return the mean of the squares."""
        d = a - b
        return (d * d).mean(axis=1, keepdims=True)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, b: Array) -> LocalJacobian:
        """Return ``2 (a - b)ᵀ / n``, its negative by `b`."""
        factor = -2.0 if slot else 2.0
        return Outer((a - b) * (factor / a.shape[1]))

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return the rule at the tangents: the factor is linear."""
        return MeanSquaredError.jacobian(slot, *tangents)

    @staticmethod
    def row_value(y: Array, a: Array, b: Array) -> None:
        """Write the mean of the squares of one sample."""
        total = 0.0
        for j in range(a.shape[0]):
            total += (a[j] - b[j]) * (a[j] - b[j])
        y[0] = total / a.shape[0]

    @staticmethod
    def row_factor(slot: int, f: Array, a: Array, b: Array) -> None:
        """Write the row of one sample."""
        factor = -2.0 / a.shape[0] if slot else 2.0 / a.shape[0]
        for j in range(a.shape[0]):
            f[j] = (a[j] - b[j]) * factor
