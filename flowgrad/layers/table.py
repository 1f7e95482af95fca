"""Layers for tables: features of samples in columns, categories among them, whose pairs matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import GraphError
from ..graph import Node, Variable, node_of
from ..inputs import integer
from ..ops import Add, Dot, Embedding, MatVec, Sum
from .dense import dense
from .naming import finished, free_name, within


def embedding(index: Node, rows: int, dim: int, init: Any = None, name: str | None = None) -> Node:
    """Return rows of a table, one for each number in `index`, of shape ``(index.dim, dim)``: what is learnt of categories.

    Parameters
    ----------
    index : Variable
        Takes integers from 0 to ``rows - 1``; see `Embedding`.
    rows, dim : int
        Of ``name.table``: so many categories, and so many numbers for each.
    init, name
        See `flowgrad.layers`; `init` is ``("normal", 0.05)`` if nothing is said.

    Notes
    -----
    Y. Bengio and others, *A neural probabilistic language model*, Journal of Machine Learning Research 3, 2003.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0) as graph:
    ...     words = fg.Variable(7, trainable=False, name="words")
    ...     e = fg.layers.embedding(words, 1000, 16, name="e")
    >>> e, graph["e.table"]
    (Embedding 'e' (7 x 16), Variable 'e.table' (1000 x 16))
    """
    sizes = integer(rows, "embedding: rows"), integer(dim, "embedding: dim")
    name = free_name(index, "embedding", name)
    with within(index, name):
        y = Embedding(Variable(sizes, ("normal", 0.05) if init is None else init, name="table"), index)
        return finished(y)


def factorization_machine(x: Node, factors: int, init: Any = None, name: str | None = None) -> Node:
    """Return ``b + w·x + Σ_{i<j} (v_i·v_j) x_i x_j``, a scalar: every pair of features has a weight, of few numbers.

    The pairs cost no more than the features: ``½ Σ_f ((V x)_f² - (V² x²)_f)``.

    Parameters
    ----------
    x : Node
        Features; their entries are taken as a vector.
    factors : int
        Length of each feature's vector, a column of ``name.V`` ``(factors, features)``.
    init, name
        See `flowgrad.layers`; `init` is for ``name.V``, which is ``("normal", 0.01)`` if nothing is said.

    Notes
    -----
    S. Rendle, *Factorization machines*, ICDM 2010.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     score = fg.layers.factorization_machine(fg.Variable(5, name="x"), 3, name="fm")
    >>> score
    Add 'fm' (dim 1)
    """
    name = free_name(x, "factorization_machine", name)
    factors = integer(factors, "factorization_machine: factors")
    with within(x, name):
        V = Variable((factors, x.dim), ("normal", 0.01) if init is None else init, name="V")
        both = MatVec(V, x)
        pairs = 0.5 * (Dot(both, both) - Sum(MatVec(V * V, x * x)))
        y = Add(Dot(Variable(x.dim, "zeros", name="w"), x), pairs, Variable(1, "zeros", name="b"))
        return finished(y)


def wide_and_deep(wide: Node, deep: Node, hidden: Sequence[int], init: Any = None, name: str | None = None) -> Node:
    """Return ``w·wide + net(deep)``, a scalar: what is remembered by single features, and what is generalised by a net.

    Parameters
    ----------
    wide, deep : Node
        Features for the linear part and for the net, which has ReLU layers.
    hidden : sequence of int
        Units of each layer.
    init, name
        See `flowgrad.layers`.

    Notes
    -----
    H.-T. Cheng and others, *Wide & deep learning for recommender systems*, DLRS 2016.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     x = fg.Variable(5, name="x")
    ...     score = fg.layers.wide_and_deep(x, x, [8, 4], name="wd")
    >>> score
    Add 'wd' (dim 1)
    """
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise GraphError(f"wide_and_deep: hidden lists the units of each layer, such as [16, 8], not {hidden!r:.60}")
    node_of(wide, "wide_and_deep: wide")
    name = free_name(deep, "wide_and_deep", name)
    with within(deep, name):
        value = deep
        for k, units in enumerate(hidden):
            value = dense(value, units, "relu", init=init, name=f"h{k}")
        y = Add(dense(value, 1, init=init, name="o"), Dot(Variable(wide.dim, "zeros", name="w"), wide))
        return finished(y)
