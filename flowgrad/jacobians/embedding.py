"""Local Jacobian of rows that are picked from a table, for each sample its own."""

from __future__ import annotations

import numpy as np

from ..typing import Array
from .base import LocalJacobian


class Picked(LocalJacobian):
    """``y_t = x[index_t]``: each sample picks rows of a parent of `rows` rows (Embedding by its table).

    Parameters
    ----------
    index : int array (N, T)
    rows, dim : int
        Of the table, laid row by row.

    Examples
    --------
    >>> Picked(np.array([[2, 0, 2]]), 3, 1).pull(np.array([[[1.0, 10.0, 100.0]]])).tolist()
    [[[10.0, 0.0, 101.0]]]
    """

    def __init__(self, index: Array, rows: int, dim: int):
        self.index, self.rows, self.dim = index, rows, dim

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Add each sample's cotangents to the rows that it picked."""
        samples, size = max(g.shape[1], len(self.index)), self.rows * self.dim
        pulled = np.zeros((len(g), samples, size), g.dtype)
        self._add(g, samples, size, pulled.reshape(len(g), -1))
        if out is None:
            return pulled
        out[...] = pulled
        return out

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Add the cotangents of all samples to one table."""
        if len(self.index) == 1:
            g = g.sum(axis=1, keepdims=True)
        if out is None:
            out = np.empty((len(g), 1, self.rows * self.dim), g.dtype)
        out[...] = 0
        self._add(g, len(self.index), 0, out[:, 0])
        return out

    def _add(self, g: Array, samples: int, step: int, out: Array) -> None:
        """Add cotangents to rows in `out` ``(V, ...)``, where a table begins every `step` entries."""
        first = np.arange(samples)[:, None] * step + self.index * self.dim
        entries = (first[:, :, None] + np.arange(self.dim)).ravel()
        for row, target in zip(np.broadcast_to(g, (len(g), samples, g.shape[2])), out):
            np.add.at(target, entries, row.ravel())

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the rows of the tangent that each sample picked."""
        tables = t.reshape(*t.shape[:2], self.rows, self.dim)
        if t.shape[1] == 1:
            picked = tables[:, 0].take(self.index, axis=1)
        else:
            picked = tables[:, np.arange(t.shape[1])[:, None], self.index]
        return picked.reshape(*picked.shape[:2], -1)

    @staticmethod
    def row_add(out: Array, g: Array, index: Array) -> None:
        """Add one sample's cotangents to the rows that it picked."""
        dim = g.shape[0] // index.shape[0]
        last = out.shape[0] // dim - 1
        for t in range(index.shape[0]):
            row = min(max(int(index[t]), 0), last)
            for j in range(dim):
                out[row * dim + j] += g[t * dim + j]

    @staticmethod
    def row_push(out: Array, t: Array, index: Array) -> None:
        """Write the rows that one sample picked."""
        dim = out.shape[0] // index.shape[0]
        last = t.shape[0] // dim - 1
        for k in range(index.shape[0]):
            row = min(max(int(index[k]), 0), last)
            for j in range(dim):
                out[k * dim + j] = t[row * dim + j]
