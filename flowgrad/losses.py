"""Losses: functions of a line or two that build a scalar node; `scores`, `labels` and what is beside them are nodes.

Of several entries a loss is the mean, as in Keras, so that it does not grow with them; cross entropies and divergences of
distributions are sums.
"""

from __future__ import annotations

from typing import Any

from .errors import GraphError
from .graph import Node, node_of
from .inputs import meant, real
from .ops import (
    Abs,
    Add,
    CrossEntropyWithSoftMax,
    Dot,
    Huber,
    KullbackLeibler,
    Log,
    LogisticCrossEntropy,
    Mean,
    MeanSquaredError,
    ReLU,
    Sum,
)


def categorical_cross_entropy(logits: Node, labels: Node, smoothing: float = 0.0, name: str | None = None) -> Node:
    """Return ``-Σ y log softmax(logits)`` of labels `y`, one-hot or probabilities.

    With `smoothing` a label is ``(1 - smoothing) y + smoothing / classes``: C. Szegedy and others, *Rethinking the Inception
    architecture*, CVPR 2016.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     logits, labels = fg.Variable(2, [1.0, 1.0]), fg.Variable(2, [1.0, 0.0])
    ...     loss = fg.losses.categorical_cross_entropy(logits, labels, smoothing=0.1)
    >>> loss.forward().round(6)
    array([0.693147])
    """
    return CrossEntropyWithSoftMax(
        logits, _smoothed(labels, smoothing, node_of(labels, "categorical_cross_entropy: labels").dim), name=name
    )


def binary_cross_entropy(logits: Node, labels: Node, smoothing: float = 0.0, name: str | None = None) -> Node:
    """Return the mean of ``-y log p - (1 - y) log(1 - p)``, ``p = logistic(logits)``, of labels `y` from 0 to 1.

    With `smoothing` a label is ``(1 - smoothing) y + smoothing / 2``.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.binary_cross_entropy(fg.Variable(1, [0.0]), fg.Variable(1, [1.0]))
    >>> loss.forward().round(6)
    array([0.693147])
    """
    each = LogisticCrossEntropy(logits, _smoothed(labels, smoothing, 2))
    return Mean(each, name=name)


def mean_squared_error(values: Node, targets: Node, name: str | None = None) -> Node:
    """Return ``mean((values - targets)²)``; the same as `MeanSquaredError`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.mean_squared_error(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [1.0, 4.0]))
    >>> loss.forward()
    array([2.])
    """
    return MeanSquaredError(values, targets, name=name)


def mean_absolute_error(values: Node, targets: Node, name: str | None = None) -> Node:
    """Return ``mean(|values - targets|)``.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.mean_absolute_error(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [1.0, 4.0]))
    >>> loss.forward()
    array([1.])
    """
    return Mean(Abs(values - targets), name=name)


def huber(values: Node, targets: Node, delta: float = 1.0, name: str | None = None) -> Node:
    """Return the mean of ``d² / 2`` where ``|d| <= delta``, ``delta (|d| - delta / 2)`` elsewhere, ``d = values - targets``.

    P. Huber, *Robust estimation of a location parameter*, Annals of Mathematical Statistics 35, 1964.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.huber(fg.Variable(2, [1.0, 5.0]), fg.Variable(2, [0.0, 0.0]))
    >>> loss.forward()
    array([2.5])
    """
    return Mean(Huber(values - targets, delta), name=name)


def hinge(scores: Node, labels: Node, name: str | None = None) -> Node:
    """Return ``mean(max(0, 1 - y score))`` of labels `y` that are -1 or 1: C. Cortes and V. Vapnik, Machine Learning 20, 1995.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.hinge(fg.Variable(2, [0.5, 3.0]), fg.Variable(2, [-1.0, 1.0]))
    >>> loss.forward()
    array([0.75])
    """
    return Mean(ReLU(1 - labels * scores), name=name)


def perceptron_loss(scores: Node, labels: Node, name: str | None = None) -> Node:
    """Return ``mean(max(0, -y score))`` of labels `y` that are -1 or 1: F. Rosenblatt, Psychological Review 65, 1958.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.perceptron_loss(fg.Variable(2, [0.5, 3.0]), fg.Variable(2, [-1.0, 1.0]))
    >>> loss.forward()
    array([0.25])
    """
    return Mean(ReLU(-(labels * scores)), name=name)


def kullback_leibler(p: Node, q: Node, name: str | None = None) -> Node:
    """Return ``Σ p log(p / q)`` of two vectors of probabilities; where `p` is 0 nothing is added.

    S. Kullback and R. Leibler, *On information and sufficiency*, Annals of Mathematical Statistics 22, 1951.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.kullback_leibler(fg.Variable(2, [1.0, 0.0]), fg.Variable(2, [0.5, 0.5]))
    >>> loss.forward().round(6)
    array([0.693147])
    """
    return Sum(KullbackLeibler(p, q), name=name)


def poisson(rates: Node, counts: Node, name: str | None = None) -> Node:
    """Return ``mean(rate - count log(rate))``, the Poisson distribution's ``-log`` of the likelihood without what is constant.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     loss = fg.losses.poisson(fg.Variable(1, [1.0]), fg.Variable(1, [3.0]))
    >>> loss.forward()
    array([1.])
    """
    return Mean(rates - counts * Log(rates), name=name)


def l1(*weights: Node, scale: float = 1.0, name: str | None = None) -> Node:
    """Return ``scale Σ |w|`` over all entries of all nodes, a penalty to add to a loss.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     penalty = fg.losses.l1(fg.Variable(2, [1.0, -2.0]), fg.Variable(1, [3.0]), scale=0.1)
    >>> penalty.forward().round(6)
    array([0.6])
    """
    return _penalty([Sum(Abs(w)) for w in weights], "l1", scale, name)


def l2(*weights: Node, scale: float = 1.0, name: str | None = None) -> Node:
    """Return ``scale Σ w²`` over all entries of all nodes, a penalty to add to a loss.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     penalty = fg.losses.l2(fg.Variable(2, [1.0, -2.0]), fg.Variable(1, [3.0]), scale=0.5)
    >>> penalty.forward()
    array([7.])
    """
    return _penalty([Dot(w, w) for w in weights], "l2", scale, name)


def _penalty(parts: list[Node], kind: str, scale: float, name: str | None) -> Node:
    if not parts:
        raise GraphError(f"{kind} needs at least one node, such as the weights that it is about")
    total = real(scale, f"{kind}: scale") * (parts[0] if len(parts) == 1 else Add(*parts))
    if name is not None:
        total.name = name
    return total


def _smoothed(labels: Node, smoothing: float, classes: int) -> Node:
    share = real(smoothing, "smoothing", 0)
    if share >= 1:
        raise GraphError(f"smoothing must be a number from 0 to below 1, not {smoothing}")
    return labels if share == 0 else (1 - share) * labels + share / classes


def __getattr__(name: str) -> Any:
    known = [k for k, f in globals().items() if getattr(f, "__module__", "") == __name__ and k[0] != "_"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{meant(name, known)}")
