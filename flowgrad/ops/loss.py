"""SoftMax and the losses."""

from __future__ import annotations

import numpy as np

from ..errors import ShapeError
from ..jacobians import LocalJacobian, LogSoftMaxJacobian, LogSoftMaxTangent, Outer, SoftMaxJacobian, SoftMaxTangent
from ..op import Op
from ..typing import Array
from .elementwise import Elementwise


def sample_sum(each: Array, samples: int) -> float:
    """Return the sum over the samples, in double precision; one value ``(1, ...)`` is that of all of them."""
    return float(each.sum(dtype=np.float64)) * (1.0 if len(each) == samples else samples)


def softmax(a: Array) -> Array:
    """Return ``exp(a_i) / Σ exp(a_j)`` along the last axis; the maximum is subtracted first, so large logits survive."""
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _exponentials(a: Array) -> tuple[Array, Array, Array, Array]:
    """Return each sample's largest logit by its number, how far all are below it, ``exp`` of minus that, and the sum of those.

    The largest one's own, 1, is left out: beside it, small ones would be lost. The logarithm of the whole sum is ``log1p``.
    """
    k = a.argmax(axis=1)
    rows = np.arange(len(a))
    below = a[rows, k][:, None] - a
    e = np.exp(-below)
    e[rows, k] = 0
    return k, below, e, e.sum(axis=1, keepdims=True)


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


class LogSoftMax(Op):
    """``log softmax(a)_i = a_i - log Σ_j exp(a_j)``, exact where the probability itself would be 0 or 1.

    Parameters
    ----------
    a : Node
        Logits.

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
    def apply(a: Array) -> Array:
        """Return the logarithms of the probabilities."""
        _, below, _, rest = _exponentials(a)
        return (0 - below) - np.log1p(rest)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array) -> LocalJacobian:
        """Return ``I - 1 pᵀ``."""
        return LogSoftMaxJacobian(y)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return ``-1 p'ᵀ``."""
        return LogSoftMaxTangent(np.exp(values[0]) * tangents[0])

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
        _, below, _, rest = _exponentials(a)
        return _expected(labels, below + np.log1p(rest))

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, labels: Array) -> LocalJacobian:
        """Return the row by the logits or by the labels."""
        k, below, e, rest = _exponentials(a)
        return Outer(below + np.log1p(rest)) if slot else Outer(_by_logits(k, e, rest, labels))

    @staticmethod
    def both(a: Array, labels: Array) -> tuple[Array, LocalJacobian]:
        """Return the cross entropy and its row by the logits; the exponentials are most of the work."""
        k, below, e, rest = _exponentials(a)
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
