"""Variables are the nodes whose values are given: parameters and inputs, and constants, which keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from ..errors import FeedError, GraphError
from ..initial import initial
from ..inputs import flag, frozen, real_array, shape_of, times, vector
from ..typing import Array
from .graph import Graph, current_graph, scoped
from .node import Node, size


class Variable(Node):
    """A node whose value is given: a parameter, or an input that feeds fill.

    Parameters
    ----------
    dim : int or tuple of int
        Length of the vector, or axes of an array: ``(4, 3)`` is a vector of 12 that knows it is 4 x 3.
    init : bool, str, tuple or array-like
        False: no value yet. True: drawn from a normal distribution with mean 0 and standard deviation 0.001 by the graph's
        generator. A text: drawn as `flowgrad.initial.INITIAL` has it by that name, ``"he"``, ``"glorot"``, ``"lecun"``,
        ``"orthogonal"``, ``"zeros"``, ``"normal"``; with its scale as ``("normal", 0.1)``. An array ``(dim,)``, ``(dim, 1)`` or of
        the variable's shape: that value.
    trainable : bool
        Whether optimizers may change it: give inputs and labels ``trainable=False``. Those that are fed are never trained, but
        `Optimizer.one_step`, which reads values that were set, cannot know them.
    name : str, optional

    Raises
    ------
    ShapeError
        If a length is no positive integer or the initial value has another one.
    GraphError
        If another node of the graph has the name, or there is no way of drawing called `init`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph(seed=0):
    ...     w = fg.Variable((4, 3), "he", name="w")
    >>> w, w.value.shape
    (Variable 'w' (4 x 3), (12,))
    """

    trainable: bool
    _settable = frozenset(["name", "trainable"])
    _instead: ClassVar = {"value": "call set_value(...)"}

    def __init__(
        self, dim: int | Sequence[int], init: Any = False, trainable: bool = True, name: str | None = None
    ) -> None:
        title = f"Variable {'' if name is None else scoped(name)}".rstrip()
        axes = shape_of(dim, title)
        graph = current_graph()
        value = draw = None
        if isinstance(init, (bool, np.bool_, str)) or (
            isinstance(init, tuple) and init[:1] and isinstance(init[0], str)
        ):
            draw = initial(init, title) if init else None
        else:
            value = vector(f"the initial value of {title}", axes, init)
        self.trainable = flag(trainable, f"{title}: trainable")
        super().__init__(graph, axes, (), {}, name)
        if draw is not None:
            value = draw(graph.rng, axes).reshape(1, -1)
        self._value = None if value is None else frozen(value)

    @property
    def below(self) -> int | None:
        """Rows of the smallest table that it picks from: it takes integers from 0 on below that; None: it picks from none.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     k = fg.Variable(1, trainable=False)
        ...     y = fg.Embedding(fg.Variable((5, 2), True), k)
        >>> k.below
        5
        """
        # A list, for all variables are asked at every step.
        sizes = [child.parents[0].shape[0] for child, slot in self._edges if slot == child.index_slot]
        return min(sizes) if sizes else None

    @property
    def measured(self) -> bool:
        """Whether training measures it over its samples, as the mean of a `BatchNorm`."""
        return any(slot in child.measured_slots for child, slot in self._edges)

    def set_value(self, value: Any) -> None:
        """Set the value, ``(dim,)``, ``(dim, 1)`` or of the variable's shape, and reset everything downstream, exactly that.

        The value is copied; for ``dim == 1`` a number will do.

        Raises
        ------
        ShapeError
            If it has another length.
        FeedError
            If it is not numeric or not finite, or picks rows that a table does not have.
        GraphError
            While its graph is being trained, but for trained variables in callbacks between epochs.

        Examples
        --------
        >>> import flowgrad as fg
        >>> with fg.Graph():
        ...     x = fg.Variable(2, [1.0, 2.0])
        ...     y = x * x
        >>> _ = y.forward()
        >>> x.set_value([3.0, 4.0])
        >>> y.value is None, y.forward().tolist()
        (True, [9.0, 16.0])
        """
        hint = f"; a class k as one-hot, np.eye({self.dim})[k]" if self.dim > 1 and isinstance(value, Integral) else ""
        given = vector(f"the value for {self}", self.shape, value, hint)
        if self.below is not None:
            check_indices(f"the value for {self}", given[0], self.below)
        if self.graph._training is not None:
            self.graph._training.check(self)
        self._assign(given)

    def _assign(self, value: Array) -> None:
        self._value = frozen(value)
        self.graph._version += 1
        self.reset_value()

    @property
    def _value(self) -> Array | None:
        if self.graph._pending is not None:
            self.graph._pending()
        return self._given

    @_value.setter
    def _value(self, value: Array | None) -> None:
        if self.graph._pending is not None:
            self.graph._pending()
        self._given = value


class Constant(Variable):
    """A node whose value never changes: what numbers and arrays in expressions become.

    Parameters
    ----------
    value : array-like
        Of any shape, which is the node's; a number has ``dim == 1``.
    name : str, optional
    graph : Graph, optional
        The current one if not given.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = 1 + fg.Exp(-fg.Variable(2, [0.0, 0.0]))
    >>> y.parents[0], y.forward()
    (Constant 1 (dim 2), array([2., 2.]))
    """

    _settable = frozenset(["name"])

    def __init__(self, value: Any, name: str | None = None, graph: Graph | None = None):
        array = real_array(f"Constant {name or ''}".rstrip(), value)
        with graph or current_graph():
            super().__init__(array.shape or (1,), array, trainable=False, name=name)

    def set_value(self, value: Any) -> None:
        """Refuse; see `Variable` with ``trainable=False`` for what is set but not trained."""
        raise GraphError(
            f"{self} keeps its value: write Variable({self.dim}, value, trainable=False) for one that is set"
        )

    @property
    def text(self) -> str:
        """What it is, in few letters: a number, if all entries are the same."""
        value = self.forward()
        return f"{value[0]:.4g}" if (value == value[0]).all() else f"{times(self.shape)} numbers"

    def __repr__(self) -> str:
        return f"Constant {self.text} ({size(self)})"


def check_indices(what: str, value: Array, below: int) -> None:
    """Raise an error where a vector holds something else than integers from 0 on, below the rows of a table."""
    wrong = np.flatnonzero((value < 0) | (value >= below) | (value != np.rint(value)))
    if len(wrong):
        raise FeedError(
            f"{what} picks rows of a table: it must hold integers from 0 to {below - 1}, entry {wrong[0]} is {value[wrong[0]]:g}"
        )
