"""Ops that compute nothing: they pick or place entries."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..inputs import brief
from ..jacobians import LocalJacobian, Selection
from ..op import Op
from ..typing import Array


class Vectorize(Op):
    """Lay vectors end to end.

    Parameters
    ----------
    *nodes : Node
        At least one; a node may appear several times.

    Raises
    ------
    GraphError
        Without operands.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Vectorize(fg.Variable(1, [1.0]), fg.Variable(2, [2.0, 3.0]))
    >>> y.forward()
    array([1., 2., 3.])
    """

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, *nodes: Node, name: str | None = None):
        dims = (getattr(n, "dim", 0) for n in nodes)
        super().__init__(*nodes, name=name, ends=tuple(accumulate(dims)))

    @staticmethod
    def shape(*dims: int, ends: tuple[int, ...]) -> int:
        """Return the sum of the lengths."""
        return ends[-1]

    @staticmethod
    def apply(*values: Array, ends: tuple[int, ...], out: Array | None = None) -> Array:
        """Return the values side by side."""
        if out is None:
            out = np.empty((max(map(len, values)), ends[-1]), values[0].dtype)
        start = 0
        for value, end in zip(values, ends):
            out[:, start:end] = value
            start = end
        return out

    @staticmethod
    def jacobian(slot: int, y: Array, *values: Array, ends: tuple[int, ...]) -> LocalJacobian:
        """Return the placement of the operand's entries."""
        start = ends[slot - 1] if slot else 0
        return Selection(ends[slot] - start, rows=slice(start, ends[slot]))


class Slice(Op):
    """Entries ``a[start:stop]``.

    Parameters
    ----------
    a : Node
    start, stop : int
        ``0 <= start < stop <= a.dim``.

    Raises
    ------
    ShapeError
        If the range is empty or leaves the vector.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Slice(fg.Variable(3, [1.0, 2.0, 3.0]), 1, 3)
    >>> y.forward()
    array([2., 3.])
    """

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, a: Node, start: int, stop: int, *, name: str | None = None):
        super().__init__(a, name=name, start=int(start), stop=int(stop), dim=getattr(a, "dim", 0))

    @staticmethod
    def shape(*dims: int, start: int, stop: int, dim: int) -> int:
        """Return the length of the range."""
        if not 0 <= start < stop <= dims[0]:
            raise ShapeError(f"the range {start}:{stop} is empty or leaves the vector of {dims[0]} entries")
        return stop - start

    @staticmethod
    def apply(a: Array, *, start: int, stop: int, dim: int) -> Array:
        """Return the range (a view)."""
        return a[:, start:stop]

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, start: int, stop: int, dim: int) -> LocalJacobian:
        """Return the selection of the range."""
        return Selection(dim, cols=slice(start, stop))


class Gather(Op):
    """Entries ``a[index]`` in any order, with repeats.

    Parameters
    ----------
    a : Node
    index : sequence of int
        Positions in ``0 .. a.dim - 1``.

    Raises
    ------
    ShapeError
        If the index is empty or leaves the vector.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Gather(fg.Variable(3, [1.0, 2.0, 3.0]), [2, 0, 2])
    >>> y.forward()
    array([3., 1., 3.])
    """

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, a: Node, index: Any, *, name: str | None = None):
        positions = np.asarray(index)
        if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
            raise ShapeError(
                f"Gather of {a}: the index is a list of positions, not {brief(index)}; for one entry write a[k]"
            )
        super().__init__(a, name=name, index=tuple(positions.tolist()), dim=getattr(a, "dim", 0))

    @staticmethod
    def shape(*dims: int, index: tuple[int, ...], dim: int) -> int:
        """Return the number of positions."""
        if not index or min(index) < 0 or max(index) >= dims[0]:
            raise ShapeError(f"the index is empty or leaves the vector of {dims[0]} entries")
        return len(index)

    @staticmethod
    def apply(a: Array, out: Array | None = None, *, index: tuple[int, ...], dim: int) -> Array:
        """Return the picked entries."""
        return np.take(a, index, axis=1, out=out, mode="clip")

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, index: tuple[int, ...], dim: int) -> LocalJacobian:
        """Return the selection of the positions."""
        return Selection(dim, cols=np.array(index))
