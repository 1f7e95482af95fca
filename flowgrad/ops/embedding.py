"""Rows of a table, picked by numbers that samples bring along."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import GraphError, ShapeError
from ..graph import Node, Variable, ancestors, check_indices
from ..inputs import Shape, brief, times
from ..jacobians import LocalJacobian, Picked, Still
from ..op import Op
from ..typing import Array

# Numbers of rows are held in the precision of the feeds; single precision knows whole numbers up to here.
MOST_ROWS = 1 << 24


def row_numbers(index: Array, rows: int) -> Array:
    """Return the numbers of rows that are picked; whatever the index is, none leads out of the table."""
    return np.clip(np.rint(index), 0, rows - 1).astype(np.intp)


def tables_of(target: Node) -> dict[Variable, list[Variable]]:
    """Return the tables that a node depends on by picked rows alone, each with the variables that pick them.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     k = fg.Variable(2, trainable=False, name="k")
    ...     loss = fg.Sum(fg.Embedding(fg.Variable((5, 2), True, name="table"), k)) * fg.Variable(1, True)
    >>> tables_of(loss)
    {Variable 'table' (5 x 2): [Variable 'k' (dim 2)]}
    """
    used = ancestors(target)
    index: dict[Variable, list[Variable]] = {}
    for n in used:
        if isinstance(n, Embedding) and isinstance(n.parents[0], Variable):
            index.setdefault(n.parents[0], []).append(n.parents[1])  # type: ignore[arg-type]
    return {v: ks for v, ks in index.items() if len(ks) == sum(c in used for c, _ in v._edges)}


def _picked(index: Array, sizes: Shape) -> Picked:
    rows, dim, _ = sizes
    return Picked(row_numbers(index, rows), rows, dim)


class Embedding(Op):
    """Rows of a table by their numbers: row `t` of the value is ``table[index_t]``.

    Parameters
    ----------
    table : Node
        Of shape ``(rows, dim)``.
    index : Variable
        Fed, or set to, integers from 0 to ``rows - 1``, one for each row of the value; no others are taken. Its derivative is zero.

    Raises
    ------
    GraphError
        If the index is no variable.
    ShapeError
        If the table has other axes, or more than 16,777,216 rows.
    FeedError
        If the index has a value already, and that holds other numbers.

    Notes
    -----
    An optimizer updates the whole table; with ``lazy_rows=True`` (see `Optimizer`) the rows that a batch picks.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     table = fg.Variable((3, 2), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ...     y = fg.Embedding(table, fg.Variable(2, [2, 0], trainable=False))
    >>> y.shape, y.forward()
    ((2, 2), array([5., 6., 1., 2.]))
    """

    kinds = (Picked, Still)
    uses = ((1,), ())
    index_slot = 1

    def __init__(self, table: Node, index: Node, *, name: str | None = None):
        shape: Any = getattr(table, "shape", ())
        if len(shape) != 2:
            raise ShapeError(
                f"Embedding: the table {brief(table, 80)} must have the axes (rows, dim), not {times(shape)}"
            )
        if shape[0] > MOST_ROWS:
            raise ShapeError(
                f"Embedding: the table {table} has {shape[0]:,} rows; up to {MOST_ROWS:,} can be told apart"
            )
        if not isinstance(index, Variable):
            raise GraphError(
                f"Embedding: the index must be a variable, which is fed integers, not {brief(index, 80)}; "
                f"fg.Variable({getattr(index, 'dim', 1)}, trainable=False) is one"
            )
        if index.value is not None:
            check_indices(f"the value of {index}", index.value, shape[0])
        super().__init__(table, index, name=name, sizes=(*shape, index.dim))

    @staticmethod
    def shape(*dims: int, sizes: Shape) -> int:
        """Return the entries of all rows that are picked."""
        return sizes[1] * sizes[2]

    @staticmethod
    def out_shape(*shapes: Shape, sizes: Shape) -> Shape:
        """Return a row for each number."""
        return sizes[2], sizes[1]

    @staticmethod
    def apply(table: Array, index: Array, *, sizes: Shape) -> Array:
        """Return the rows."""
        return _picked(index, sizes).push(table[None], 0)[0]

    @staticmethod
    def jacobian(slot: int, y: Array, table: Array, index: Array, *, sizes: Shape) -> LocalJacobian:
        """Return which rows are picked; zero by the index."""
        return Still(sizes[2]) if slot else _picked(index, sizes)

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, sizes: Shape
    ) -> LocalJacobian | None:
        """Return None: what is picked does not move."""
        return None

    row_value = staticmethod(Picked.row_push)
