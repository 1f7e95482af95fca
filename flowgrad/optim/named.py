"""The optimizers: each a pure rule of `optim`, bound to a graph and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from ..graph import Graph, Node
from .optimizer import Common, Optimizer
from .rules import AdaGradRule, AdamRule, GradientDescentRule, MomentumRule, RMSPropRule

# A learning rate: a number or a schedule.
Rate = float | Callable[[int], float]


class GradientDescent(Optimizer):
    """``w -= lr g`` for the mean gradient `g` of a mini-batch.

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.GradientDescent(graph, loss, 0.25, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.0])
    """

    def __init__(
        self, graph: Graph, target: Node, learning_rate: Rate = 0.01, batch_size: int = 32, **common: Unpack[Common]
    ):
        super().__init__(graph, target, GradientDescentRule(learning_rate), batch_size, **common)


class Momentum(Optimizer):
    """``v = momentum v + g; w -= lr v`` (B. Polyak, 1964).

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.
    momentum : float
        At least 0, below 1.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.Momentum(graph, loss, 0.25, momentum=0.5, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.0])
    """

    def __init__(
        self,
        graph: Graph,
        target: Node,
        learning_rate: Rate = 0.01,
        momentum: float = 0.9,
        batch_size: int = 32,
        **common: Unpack[Common],
    ):
        super().__init__(graph, target, MomentumRule(learning_rate, momentum), batch_size, **common)


class AdaGrad(Optimizer):
    """``s += g²; w -= lr g / sqrt(s + 1e-10)`` (J. Duchi, E. Hazan, Y. Singer, JMLR 12, 2011).

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.AdaGrad(graph, loss, 0.25, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.75])
    """

    def __init__(
        self, graph: Graph, target: Node, learning_rate: Rate = 0.01, batch_size: int = 32, **common: Unpack[Common]
    ):
        super().__init__(graph, target, AdaGradRule(learning_rate), batch_size, **common)


class RMSProp(Optimizer):
    """``s = β s + (1-β) g²; w -= lr g / sqrt(s + 1e-10)``, first ``s = g²`` (T. Tieleman, G. Hinton, 2012).

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.
    beta : float
        At least 0, below 1.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.RMSProp(graph, loss, 0.25, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.75])
    """

    def __init__(
        self,
        graph: Graph,
        target: Node,
        learning_rate: Rate = 0.01,
        beta: float = 0.9,
        batch_size: int = 32,
        **common: Unpack[Common],
    ):
        super().__init__(graph, target, RMSPropRule(learning_rate, beta), batch_size, **common)


class Adam(Optimizer):
    """``v = β1 v + (1-β1) g; s = β2 s + (1-β2) g²; w -= lr v / sqrt(s + 1e-10)``, first ``v = g``, ``s = g²``.

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.
    beta_1, beta_2 : float
        At least 0, below 1.
    bias_correction : bool
        True: as published (D. Kingma, J. Ba, ICLR 2015): `v` and `s` start at 0 and are divided by ``1 - βᵗ``, and the
        denominator is ``sqrt(s) + 1e-8``.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.Adam(graph, loss, 0.25, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.75])
    """

    def __init__(
        self,
        graph: Graph,
        target: Node,
        learning_rate: Rate = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        batch_size: int = 32,
        bias_correction: bool = False,
        **common: Unpack[Common],
    ):
        super().__init__(graph, target, AdamRule(learning_rate, beta_1, beta_2, bias_correction), batch_size, **common)
