"""Layers of sequences ``(steps, features)``: recurrent ones, unrolled step by step, and attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import Constant, Node, Variable, node_of
from ..inputs import brief, times
from ..ops import Concat, Logistic, MatMul, MatVec, Reshape, SoftMax, Tanh, Transpose, Vectorize
from .naming import finished, free_name, units_of, within

State = tuple[Node, ...]


def rnn(
    x: Node, units: int, mask: Node | None = None, sequence: bool = False, init: Any = None, name: str | None = None
) -> Node:
    """Return the last state of ``h = tanh(W x_t + U h + b)``, which begins at 0.

    Parameters
    ----------
    x : Node
        Of shape ``(steps, features)``.
    units : int
    mask : Node, optional
        Of dim ``steps``, 1 where a step counts and 0 where the state is carried on.
    sequence : bool
        Return all states, of shape ``(steps, units)``.
    init, name
        See `flowgrad.layers`; `init` is for ``name.W``, ``name.U`` is orthogonal if nothing is said.

    Raises
    ------
    ShapeError
        If `x` has other axes, or the mask another length.

    Notes
    -----
    J. Elman, *Finding structure in time*, Cognitive Science 14, 1990.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     h = fg.layers.rnn(fg.Variable((5, 3), name="x"), 4, name="r")
    >>> h.name, h.shape
    ('r', (4,))
    """

    def step(of_x: Node, state: State, U: Node) -> State:
        return (Tanh(of_x + MatVec(U, state[0])),)

    return _unrolled("rnn", x, units, 1, 1, step, mask, sequence, init, name)


def lstm(
    x: Node, units: int, mask: Node | None = None, sequence: bool = False, init: Any = None, name: str | None = None
) -> Node:
    """Return the last state of a long short-term memory, whose gates i, f, g, o lie in this order in ``name.W``.

    ``c = logistic(f) * c + logistic(i) * tanh(g)``, ``h = logistic(o) * tanh(c)``; the bias of f begins at 1.

    Parameters
    ----------
    x, units, mask, sequence, init, name
        See `rnn`.

    Notes
    -----
    S. Hochreiter and J. Schmidhuber, *Long short-term memory*, Neural Computation 9, 1997; F. Gers and others, *Learning to
    forget*, Neural Computation 12, 2000; for the bias, R. Jozefowicz and others, ICML 2015.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     h = fg.layers.lstm(fg.Variable((5, 3), name="x"), 4, sequence=True, name="r")
    >>> h.name, h.shape
    ('r', (5, 4))
    """
    n = units

    def step(of_x: Node, state: State, U: Node) -> State:
        h, c = state
        gates = of_x + MatVec(U, h)
        i, f, o = (Logistic(gates[k * n : (k + 1) * n]) for k in (0, 1, 3))
        c = f * c + i * Tanh(gates[2 * n : 3 * n])
        return o * Tanh(c), c

    bias = np.repeat([0.0, 1.0, 0.0, 0.0], units_of(units, "lstm"))
    return _unrolled("lstm", x, units, 4, 2, step, mask, sequence, init, name, bias)


def gru(
    x: Node, units: int, mask: Node | None = None, sequence: bool = False, init: Any = None, name: str | None = None
) -> Node:
    """Return the last state of a gated recurrent unit, whose gates r, z, n lie in this order in ``name.W``.

    ``r, z = logistic(...)``, ``n = tanh(W x + b + r * (U h + c))``, ``h = (1 - z) * n + z * h``: it resets after the product.

    Parameters
    ----------
    x, units, mask, sequence, init, name
        See `rnn`.

    Notes
    -----
    K. Cho and others, EMNLP 2014; in the form of NVIDIA's cuDNN, which Keras and PyTorch compute too.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     h = fg.layers.gru(fg.Variable((5, 3), name="x"), 4, name="r")
    >>> h.name, h.shape
    ('r', (4,))
    """
    n = units
    inner: list[Variable] = []

    def step(of_x: Node, state: State, U: Node) -> State:
        inner.extend([] if inner else [Variable(3 * n, "zeros", name="c")])
        of_h = MatVec(U, state[0]) + inner[0]
        r, z = (Logistic(of_x[k * n : (k + 1) * n] + of_h[k * n : (k + 1) * n]) for k in (0, 1))
        new = Tanh(of_x[2 * n :] + r * of_h[2 * n :])
        return ((1 - z) * new + z * state[0],)

    return _unrolled("gru", x, units, 3, 1, step, mask, sequence, init, name)


def attention(x: Node, units: int, mask: Node | None = None, init: Any = None, name: str | None = None) -> Node:
    """Return what each step finds in all steps, ``softmax(Q Kᵀ / sqrt(units)) V``, of shape ``(steps, units)``; one head.

    Parameters
    ----------
    x : Node
        Of shape ``(steps, features)``.
    units : int
        Columns of queries, keys and values, which are products of `x` with ``name.Q``, ``name.K``, ``name.V``. How much each step
        looks at each is ``name.weights``, of shape ``(steps, steps)``.
    mask : Node, optional
        Of dim ``steps``, 1 where a step may be looked at and 0 where not.
    init, name
        See `flowgrad.layers`.

    Notes
    -----
    A. Vaswani and others, *Attention is all you need*, NeurIPS 2017.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     y = fg.layers.attention(fg.Variable((5, 3), name="x"), 4, name="a")
    >>> y.name, y.shape
    ('a', (5, 4))
    """
    steps, features = _sequence_of(x, "attention", mask)
    units, name = units_of(units, "attention"), free_name(x, "attention", name)
    init = "glorot" if init is None else init
    with within(x, name):
        queries, keys, values = (MatMul(x, Variable((features, units), init, name=part)) for part in "QKV")
        scores = MatMul(queries, Transpose(keys)) / math.sqrt(units)
        if mask is not None:
            hidden = (mask - 1) * 1e9  # nothing is left of it in the softmax
            scores = scores + Concat(*[Reshape(hidden, (1, steps))] * steps)
        y = MatMul(SoftMax(scores, name="weights"), values)
        return finished(y)


def _sequence_of(x: Node, layer: str, mask: Node | None) -> tuple[int, int]:
    axes: Any = getattr(x, "shape", ())
    if len(axes) != 2:
        raise ShapeError(
            f"{layer}: {brief(x, 80)} must have the axes (steps, features), not {times(axes)}; x.reshape(steps, features) says so"
        )
    if mask is not None and node_of(mask, f"{layer}: the mask").dim != x.shape[0]:
        raise ShapeError(f"{layer}: the mask {mask} must have an entry for each of {x.shape[0]} steps")
    return int(x.shape[0]), int(x.shape[1])


def _unrolled(
    layer: str,
    x: Node,
    units: int,
    gates: int,
    states: int,
    step: Callable[[Node, State, Node], State],
    mask: Node | None,
    sequence: bool,
    init: Any,
    name: str | None,
    bias: Any = "zeros",
) -> Node:
    """Return the last state, or all, of a cell whose gates are ``W x + b`` and ``U h``."""
    steps, features = _sequence_of(x, layer, mask)
    units, name = units_of(units, layer), free_name(x, layer, name)
    kept = []
    with within(x, name):
        W = Variable((gates * units, features), "glorot" if init is None else init, name="W")
        U = Variable((gates * units, units), "orthogonal" if init is None else init, name="U")
        b = Variable(gates * units, bias, name="b")
        state: State = tuple(Constant(np.zeros(units)) for _ in range(states))
        for t in range(steps):
            new = step(MatVec(W, x[t]) + b, state, U)
            if mask is not None:
                new = tuple(mask[t] * one + (1 - mask[t]) * old for one, old in zip(new, state))
            state = new
            kept.append(state[0])
        y = Reshape(Vectorize(*kept), (steps, units)) if sequence else state[0]
        return finished(y)
