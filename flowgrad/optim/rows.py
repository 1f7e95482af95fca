"""Gradients of tables as rows: which occur in a batch, and their values; the other rows are zeros, and are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..typing import Array


class Table(NamedTuple):
    """Where a table lies in a flat vector; how many rows a sample picks, and the variables that say which, by index."""

    start: int
    rows: int
    dim: int
    picks: int = 0
    by: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """One past its last entry."""
        return self.start + self.rows * self.dim


def distinct(numbers: Array) -> Array:
    """Return what numbers there are, in their order; `np.unique` takes 20 times as long for some thousands."""
    numbers = np.sort(numbers)
    return numbers[np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)]]


def rest_of(size: int, tables: Sequence[Table]) -> list[tuple[int, int]]:
    """Return the stretches of a vector that lie outside of tables, one before each table and one behind the last.

    Examples
    --------
    >>> rest_of(9, [Table(2, 3, 2)])
    [(0, 2), (8, 9)]
    """
    return [*zip([0, *(t.stop for t in tables)], [*(t.start for t in tables), size])]


def spans_of(size: int, tables: Sequence[Table], rows: Sequence[Array]) -> Array:
    """Return the stretches of a vector that a gradient is not zero in, in their order: start, stop, whether it is a row of a table.

    Examples
    --------
    >>> spans_of(9, [Table(2, 3, 2)], [np.array([0, 2])]).tolist()
    [[0, 2, 0], [2, 4, 1], [6, 8, 1], [8, 9, 0]]
    """
    parts: list[Array] = []
    for k, (start, stop) in enumerate(rest_of(size, tables)):
        parts.append(np.array([(start, stop, 0)][: stop > start], np.int64).reshape(-1, 3))
        if k < len(tables):
            first = tables[k].start + rows[k].astype(np.int64) * tables[k].dim
            parts.append(np.column_stack([first, first + tables[k].dim, np.ones_like(first)]))
    return np.concatenate(parts)


def entries_of(spans: Array) -> Array:
    """Return the entries of stretches.

    Examples
    --------
    >>> entries_of(np.array([[0, 2, 0], [6, 8, 1]])).tolist()
    [0, 1, 6, 7]
    """
    start, lengths = spans[:, 0], spans[:, 1] - spans[:, 0]
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(start - ends + lengths, lengths)


@dataclass(frozen=True, slots=True, eq=False)
class RowGradient:
    """A gradient, of whose tables only the rows that occur are there; a sum of two has the bits of the dense one.

    Attributes
    ----------
    size : int
        Entries of the whole.
    tables : tuple of Table
        In the order in which they lie.
    arrays : tuple of ndarray
        What lies outside of tables, end to end; then for each table numbers of rows, which rise, and the rows ``(n, dim)``.

    Examples
    --------
    >>> tables, g = (Table(1, 3, 1),), np.array([5.0, 0.0, 2.0, 0.0])
    >>> a, b = RowGradient.of(g, tables, [np.array([1])]), RowGradient.of(2 * g, tables, [np.array([0, 1])])
    >>> (a + b).dense().tolist(), [x.tolist() for x in (a + b).arrays]
    ([15.0, 0.0, 6.0, 0.0], [[15.0], [0, 1], [[0.0], [6.0]]])
    """

    size: int
    tables: tuple[Table, ...]
    arrays: tuple[Array, ...]

    @classmethod
    def of(cls, gradient: Array, tables: tuple[Table, ...], rows: Sequence[Array]) -> RowGradient:
        """Return these rows of a gradient, copied; the others are zeros."""
        arrays = [np.concatenate([gradient[a:b] for a, b in rest_of(len(gradient), tables)])]
        for table, numbers in zip(tables, rows):
            arrays += [numbers, gradient[table.start : table.stop].reshape(table.rows, table.dim)[numbers]]
        return cls(len(gradient), tables, tuple(arrays))

    @property
    def nbytes(self) -> int:
        """Bytes of what is there."""
        return sum(a.nbytes for a in self.arrays)

    def __add__(self, other: RowGradient) -> RowGradient:
        """Return the sum; a row that one of them has not is added as zeros, for a sum with them makes 0 of -0."""
        arrays = [self.arrays[0] + other.arrays[0]]
        for k in range(1, len(self.arrays), 2):
            (a, mine), (b, theirs) = self.arrays[k : k + 2], other.arrays[k : k + 2]
            rows = distinct(np.append(a, b))
            arrays += [rows, _spread(a, mine, rows) + _spread(b, theirs, rows)]
        return RowGradient(self.size, self.tables, tuple(arrays))

    def dense(self) -> Array:
        """Return the whole gradient."""
        whole = np.zeros(self.size, self.arrays[0].dtype)
        rest = self.arrays[0]
        for start, stop in rest_of(self.size, self.tables):
            whole[start:stop], rest = rest[: stop - start], rest[stop - start :]
        for table, numbers, values in zip(self.tables, self.arrays[1::2], self.arrays[2::2]):
            whole[table.start : table.stop].reshape(table.rows, table.dim)[numbers] = values
        return whole

    @property
    def spans(self) -> Array:
        """See `spans_of`."""
        return spans_of(self.size, self.tables, self.arrays[1::2])


def _spread(have: Array, values: Array, rows: Array) -> Array:
    """Return values for these rows, among which are those that there are; zeros for others."""
    if len(have) == len(rows):
        return values
    out = np.zeros((len(rows), values.shape[1]), values.dtype)
    out[np.searchsorted(rows, have)] = values
    return out
