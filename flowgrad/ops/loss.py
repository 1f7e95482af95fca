"""The losses."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..inputs import real
from ..jacobians import LocalJacobian, Outer
from ..op import Op
from ..typing import Array
from .elementwise import Elementwise
from .rowwise import exponentials, softmax


def sample_sum(each: Array, samples: int) -> float:
    """Return the sum over the samples, in double precision; one value ``(1, ...)`` is that of all of them."""
    return float(each.sum(dtype=np.float64)) * (1.0 if len(each) == samples else samples)


class CrossEntropyWithSoftMax(Op):
    """``-Σ y_i log softmax(a)_i``, a scalar; exact for every gap of logits, and never negative for labels that are not.

    Parameters
    ----------
    logits, labels : Node
        Of the same dim, 2 or more; labels are usually one-hot. A label of 0 costs nothing, however unlikely its class is.

    Raises
    ------
    ShapeError
        If the dims differ or are 1: two classes by one logit are a `LogisticCrossEntropy`.

    Notes
    -----
    The Jacobian by the logits is ``(softmax(a) Σy - y)ᵀ``, by the labels ``-log softmax(a)ᵀ``: C. Bishop,
    *Pattern Recognition and Machine Learning*, Springer 2006, equation 4.109; for the logarithm see `LogSoftMax`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.CrossEntropyWithSoftMax(fg.Variable(2, [0.0, 1000.0]), fg.Variable(2, [1.0, 0.0]))
    >>> loss.forward()
    array([1000.])
    """

    kinds = (Outer,)
    uses = ((0, 1),)

    @staticmethod
    def shape(*dims: int) -> int:
        """Return 1."""
        if Op.shape(*dims) == 1:
            raise ShapeError(
                "the softmax of one logit is always 1, so nothing would be learned: use LogisticCrossEntropy(logit, label), "
                "with labels 0 and 1"
            )
        return 1

    @staticmethod
    def apply(a: Array, labels: Array) -> Array:
        """Return the cross entropy."""
        _, below, _, rest = exponentials(a)
        return _expected(labels, below + np.log1p(rest))

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, labels: Array) -> LocalJacobian:
        """Return the row by the logits or by the labels."""
        k, below, e, rest = exponentials(a)
        return Outer(below + np.log1p(rest)) if slot else Outer(_by_logits(k, e, rest, labels))

    @staticmethod
    def both(a: Array, labels: Array) -> tuple[Array, LocalJacobian]:
        """Return the cross entropy and its row by the logits; the exponentials are most of the work."""
        k, below, e, rest = exponentials(a)
        return _expected(labels, below + np.log1p(rest)), Outer(_by_logits(k, e, rest, labels))

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return the row of the tangents, through the tangent of the probabilities.

        Tangents are taken relative to that of the largest logit: what all have in common moves nothing, but would hide the rest.
        """
        _, a, labels = values
        p = softmax(a)
        moved = tangents[1] + np.zeros_like(p)
        moved -= moved[np.arange(len(moved)), a.argmax(axis=1)][:, None]
        along = (p * moved).sum(axis=1, keepdims=True)
        if slot:
            return Outer(along - moved)
        weight, weight_moved = (v.sum(axis=1, keepdims=True) for v in (labels, tangents[2]))
        return Outer(p * (moved - along) * weight + p * weight_moved - tangents[2])

    @staticmethod
    def row_value(y: Array, a: Array, labels: Array) -> None:
        """Write the cross entropy of one sample."""
        k = 0
        for j in range(1, a.shape[0]):
            if a[j] > a[k]:
                k = j
        top = a[k]
        rest = top - top
        for j in range(a.shape[0]):
            if j != k:
                rest += np.exp(a[j] - top)
        rest = np.log1p(rest)
        loss = 0.0
        for j in range(a.shape[0]):
            if labels[j] != 0:
                loss += labels[j] * ((top - a[j]) + rest)
        y[0] = loss

    @staticmethod
    def row_both(y: Array, f: Array, a: Array, labels: Array) -> None:
        """Write the cross entropy of one sample and its row by the logits; exponentials are half of the work."""
        k, weight = 0, labels[0]
        for j in range(1, a.shape[0]):
            weight += labels[j]
            if a[j] > a[k]:
                k = j
        top = a[k]
        for j in range(a.shape[0]):  # loops with nothing else in them become vector code
            f[j] = np.exp(a[j] - top)
        f[k] = 0
        rest = top - top
        for j in range(a.shape[0]):
            rest += f[j]
        f[k] = 1
        total, less = rest + f[k], rest
        rest = np.log1p(rest)
        loss = 0.0
        for j in range(a.shape[0]):
            if labels[j] != 0:
                loss += labels[j] * ((top - a[j]) + rest)
        for j in range(a.shape[0]):
            f[j] = f[j] / total * weight - labels[j]
        f[k] = (weight - labels[k]) - less / total * weight
        y[0] = loss

    @staticmethod
    def row_factor(slot: int, f: Array, a: Array, labels: Array) -> None:
        """Write the row of one sample."""
        k, weight = 0, labels[0]
        for j in range(1, a.shape[0]):
            weight += labels[j]
            if a[j] > a[k]:
                k = j
        top = a[k]
        for j in range(a.shape[0]):
            f[j] = np.exp(a[j] - top)
        f[k] = 0
        rest = top - top
        for j in range(a.shape[0]):
            rest += f[j]
        f[k] = 1
        total, less = rest + f[k], rest
        rest = np.log1p(rest)
        for j in range(a.shape[0]):
            f[j] = (top - a[j]) + rest if slot else f[j] / total * weight - labels[j]
        if not slot:
            f[k] = (weight - labels[k]) - less / total * weight


def _by_logits(k: Array, e: Array, rest: Array, labels: Array) -> Array:
    """Return ``softmax Σy - y``; at the largest logit it is written without the 1, beside which what is small would be lost."""
    weight = labels.sum(axis=1, keepdims=True)
    scale = weight / (1 + rest)
    f = e * scale - labels
    rows = np.arange(len(f))
    f[rows, k] = (weight[:, 0] - labels[rows if len(labels) > 1 else 0, k]) - (rest * scale)[:, 0]
    return f


def _expected(labels: Array, costs: Array) -> Array:
    """Return the sums of what labels cost; those that are 0 cost nothing, even where a logit is minus infinity."""
    return (labels * np.where(labels != 0, costs, 0)).sum(axis=1, keepdims=True)


class LogisticCrossEntropy(Elementwise):
    """``-b log σ(a) - (1 - b) log(1 - σ(a))`` of logits `a` and labels `b` from 0 to 1, entry by entry; exact for every logit.

    One logit is the loss of two classes; several are as many questions of yes or no, of whose costs `Sum` makes a loss.

    Parameters
    ----------
    logits, labels : Node
        Of the same dim.

    Notes
    -----
    C. Bishop, *Pattern Recognition and Machine Learning*, Springer 2006, equations 4.90 and 4.91; with the logistic function
    σ put in, no logarithm of a number near 0 is left.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.LogisticCrossEntropy(fg.Variable(2, [1000.0, 1000.0]), fg.Variable(2, [1.0, 0.0]))
    >>> loss.forward().tolist()
    [0.0, 1000.0]
    """

    formula = "maximum(a, 0) - a * b + log1p(exp(-abs(a)))"
    # σ(a) - b, so that nothing is lost beside a 1 where the answer is right
    slopes = ("where(a >= 0, 1 - b - b * exp(-abs(a)), (1 - b) * exp(-abs(a)) - b) / (1 + exp(-abs(a)))", "-a")
    bends = {(0, 0): "exp(-abs(a)) / (1 + exp(-abs(a)))**2", (0, 1): "-1"}


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


class Huber(Elementwise):
    """``a² / 2`` where ``|a| <= delta``, ``delta (|a| - delta / 2)`` elsewhere, entry by entry; see `flowgrad.losses.huber`.

    Parameters
    ----------
    a : Node
        Differences.
    delta : float

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Huber(fg.Variable(2, [1.0, -3.0]), 1.0)
    >>> y.forward()
    array([0.5, 2.5])
    """

    formula = "minimum(abs(a), delta) * (abs(a) - 0.5 * minimum(abs(a), delta))"
    slopes = ("maximum(minimum(a, delta), -delta)",)
    bends: ClassVar = {(0, 0): "maximum(sign(delta - abs(a)), 0)"}

    def __init__(self, a: Node, delta: float = 1.0, *, name: str | None = None):
        super().__init__(a, name=name, delta=real(delta, "Huber: delta", 0, above=True))


class KullbackLeibler(Elementwise):
    """``a log(a / b)`` of probabilities, entry by entry, 0 where `a` is; see `flowgrad.losses.kullback_leibler`.

    Parameters
    ----------
    a, b : Node
        Of the same shape, `b` positive.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.KullbackLeibler(fg.Variable(1, [1.0]), fg.Variable(1, [0.5]))
    >>> y.forward().round(6)
    array([0.693147])
    """

    # The smallest number, that a 0 is taken for, is one of single precision.
    formula = "a * (log(maximum(a, 1e-37)) - log(b))"
    slopes = ("log(maximum(a, 1e-37)) - log(b) + 1", "-a / b")
    bends: ClassVar = {(0, 0): "1 / maximum(a, 1e-37)", (0, 1): "-1 / b", (1, 1): "a / (b * b)"}
