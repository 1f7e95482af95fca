"""The optimizers: each a pure rule of `optim`, bound to a graph and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from ..graph import Graph, Node
from .optimizer import Common, Optimizer, Shared
from .rules import (
    AdaGradRule,
    AdamRule,
    AdamWRule,
    AMSGradRule,
    GradientDescentRule,
    LionRule,
    MomentumRule,
    NesterovRule,
    RMSPropRule,
)

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


class Nesterov(Optimizer):
    """``v = momentum v + g; w -= lr (g + momentum v)``.

    Y. Nesterov, Soviet Math. Dokl. 27, 1983, as I. Sutskever et al., ICML 2013, and PyTorch write it.

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
    >>> optimizer = fg.Nesterov(graph, loss, 0.25, momentum=0.5, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [0.5])
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
        super().__init__(graph, target, NesterovRule(learning_rate, momentum), batch_size, **common)


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
    momentum : float
        At least 0, below 1. Above 0, as PyTorch has it: ``v = momentum v + g / sqrt(s + 1e-10); w -= lr v``.

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
        momentum: float = 0.0,
        **common: Unpack[Common],
    ):
        super().__init__(graph, target, RMSPropRule(learning_rate, beta, momentum), batch_size, **common)


class Adam(Optimizer):
    """``v = β1 v + (1-β1) g; s = β2 s + (1-β2) g²; w -= lr v / sqrt(s + 1e-10)``, first ``v = g``, ``s = g²``.

    That is not Adam as published, nor are the defaults 0.01 and 0.99: ``Adam(graph, loss, 0.001, beta_2=0.999,
    bias_correction=True)`` is.

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


class AdamW(Optimizer):
    """Adam with bias correction, and weight decay beside it: ``w -= lr (v̂ / (sqrt(ŝ) + 1e-8) + weight_decay w)``.

    ``v = β1 v + (1-β1) g; s = β2 s + (1-β2) g²``, from 0 on; v̂ and ŝ are they, divided by ``1 - βᵗ`` (I. Loshchilov, F. Hutter,
    "Decoupled weight decay regularization", ICLR 2019).

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.
    beta_1, beta_2 : float
        At least 0, below 1.
    weight_decay : float
        At least 0; times the learning rate it is what weights shrink by, apart from the gradient.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.AdamW(graph, loss, 0.25, weight_decay=0.1, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.7])
    """

    def __init__(
        self,
        graph: Graph,
        target: Node,
        learning_rate: Rate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        weight_decay: float = 0.01,
        batch_size: int = 32,
        **common: Unpack[Shared],
    ):
        super().__init__(
            graph, target, AdamWRule(learning_rate, beta_1, beta_2, weight_decay=weight_decay), batch_size, **common
        )


class AMSGrad(Optimizer):
    """Adam with bias correction, divided by the root of the largest `s` so far: it never takes longer steps again.

    ``top = max(top, s); w -= lr v̂ / (sqrt(top / (1 - β2ᵗ)) + 1e-8)`` (S. Reddi, S. Kale, S. Kumar, "On the convergence of
    Adam and beyond", ICLR 2018; with bias correction as PyTorch has it).

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.
    beta_1, beta_2 : float
        At least 0, below 1.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.AMSGrad(graph, loss, 0.25, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.75])
    """

    def __init__(
        self,
        graph: Graph,
        target: Node,
        learning_rate: Rate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        batch_size: int = 32,
        **common: Unpack[Common],
    ):
        super().__init__(graph, target, AMSGradRule(learning_rate, beta_1, beta_2), batch_size, **common)


class Lion(Optimizer):
    """``w -= lr (sign(β1 v + (1-β1) g) + weight_decay w); v = β2 v + (1-β2) g`` (X. Chen et al., NeurIPS 2023).

    "Symbolic discovery of optimization algorithms", algorithm 2.

    Parameters
    ----------
    graph, target, learning_rate, batch_size, **common
        See `Optimizer`.
    beta_1, beta_2 : float
        At least 0, below 1.
    weight_decay : float
        At least 0; times the learning rate it is what weights shrink by, apart from the gradient.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph() as graph:
    ...     w = fg.Variable(1, [2.0])
    ...     loss = w * w
    >>> optimizer = fg.Lion(graph, loss, 0.25, batch_size=1)
    >>> optimizer.one_step(), w.value.round(4).tolist()
    (4.0, [1.75])
    """

    def __init__(
        self,
        graph: Graph,
        target: Node,
        learning_rate: Rate = 0.0001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        **common: Unpack[Shared],
    ):
        super().__init__(
            graph, target, LionRule(learning_rate, beta_1, beta_2, weight_decay=weight_decay), batch_size, **common
        )
