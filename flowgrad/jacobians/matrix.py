"""Local Jacobians of ops that are matrix products: summed over the samples, each is ONE matrix product again."""

from __future__ import annotations

import numpy as np

from ..typing import Array
from .base import Identity, LocalJacobian
from .outer import scale_rows


def _of(kind: str, name: str, factor: Array, shape: str) -> Array:
    if np.ndim(factor) != shape.count(",") + 1:
        given = "None" if factor is None else np.shape(factor)
        raise ValueError(f"{kind}({name}): the shape of {name} is {shape}, N == 1 for all samples, not {given}")
    return factor


class Outer(LocalJacobian):
    """``dy/dx = I_k ⊗ row``: the node is ``k`` dot products with one row (Dot, Sum, MatVec by its matrix).

    Per sample the pulled cotangent is the outer product ``g ⊗ row``; summed over the samples it is ONE matrix product.

    Parameters
    ----------
    row : ndarray (N, n)
        The row shared by the ``k`` outputs; the parent has length ``k * n``, row-major.

    Examples
    --------
    >>> Outer(np.array([[1.0, 2.0]])).pull(np.array([[[1.0, 10.0]]])).tolist()
    [[[1.0, 2.0, 10.0, 20.0]]]
    """

    def __init__(self, row: Array):
        self.row = _of("Outer", "row", row, "(N, n)")

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return the outer product of each sample's cotangent with its row."""
        if g.size == 1:  # one row to scale
            return np.multiply(g, self.row, out)
        return _blocks(g, self.row[:, None, :], out)

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Return ``sum_n g_n ⊗ row_n`` as one matrix product ``gᵀ @ row``."""
        v, _, k = g.shape
        if len(self.row) == 1:
            return self.pull(g.sum(axis=1, keepdims=True), out)
        n = self.row.shape[1]
        target = None if out is None else out.reshape(v, k, n)
        return np.matmul(np.swapaxes(g, 1, 2), self.row, target).reshape(v, 1, k * n)

    def split(self, g: Array) -> list[tuple[Array, Array | None]]:
        """Return `g` and the row: they are the factors."""
        return [(g, self.row)]

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the `k` dot products of the tangent with the row."""
        v, n = t.shape[:2]
        wide = t.reshape(v, n, out_dim, -1)
        if len(self.row) == 1:
            return wide @ self.row[0]
        return np.einsum("vnki,ni->vnk", np.broadcast_to(wide, (v, len(self.row), *wide.shape[2:])), self.row)


class Dense(LocalJacobian):
    """``dy/dx = m``, an explicit matrix per sample (MatVec by its vector).

    Parameters
    ----------
    m : ndarray (N, out, in)
        For `MatVec` this is a view of the matrix, no copy.

    Examples
    --------
    >>> Dense(np.array([[[1.0, 2.0], [3.0, 4.0]]])).pull(np.array([[[1.0, 10.0]]])).tolist()
    [[[31.0, 42.0]]]
    """

    def __init__(self, m: Array):
        self.m = _of("Dense", "m", m, "(N, out, in)")

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return ``g @ m``; one plain matrix product when `m` is shared by the samples."""
        if len(self.m) == 1:
            if out is not None and len(g) > 1 and np.swapaxes(out, 0, 1).flags.c_contiguous:
                # One product is faster than one per row, into strided memory.
                rows = np.ascontiguousarray(np.swapaxes(g, 0, 1)).reshape(-1, g.shape[2])
                np.matmul(rows, self.m[0], np.swapaxes(out, 0, 1).reshape(len(rows), -1))
                return out
            return np.matmul(g, self.m[0], out)
        wide = np.broadcast_to(g, (len(g), len(self.m), g.shape[2]))
        return np.einsum("vno,noi->vni", wide, self.m, out=out, casting="same_kind")

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Return the sum over the samples as one matrix product."""
        samples, k, n = self.m.shape
        if samples == 1:
            return self.pull(g.sum(axis=1, keepdims=True), out)
        return np.matmul(g.reshape(len(g), 1, samples * k), self.m.reshape(-1, n), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return ``m @ t``; one plain matrix product when `m` is shared by the samples."""
        if len(self.m) == 1:
            return t @ self.m[0].T
        return np.einsum("noi,vni->vno", self.m, np.broadcast_to(t, (len(t), len(self.m), t.shape[2])))


class Rows(LocalJacobian):
    """``y_i`` depends on the ``i``-th stretch of the parent alone, by the row ``m_i`` (RowDot).

    Parameters
    ----------
    m : ndarray (N, k, n)
        One row per output; the parent has length ``k * n``.

    Examples
    --------
    >>> Rows(np.array([[[1.0, 2.0], [3.0, 4.0]]])).pull(np.array([[[1.0, 10.0]]])).tolist()
    [[[1.0, 2.0, 30.0, 40.0]]]
    """

    def __init__(self, m: Array):
        self.m = m

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return each row times its entry of the cotangent."""
        return _blocks(g, self.m, out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the dot product of each stretch of the tangent with its row."""
        return (t.reshape(*t.shape[:2], *self.m.shape[1:]) * self.m).sum(axis=3)


class OuterSum(LocalJacobian):
    """The node is ``r`` products of one matrix with ``r`` vectors, this is its derivative by the matrix (BatchMatVec).

    Per sample the pulled cotangent is a sum of ``r`` outer products, summed over the samples ONE matrix product.

    Parameters
    ----------
    rows : ndarray (N, r, n)
        The vectors; the node has length ``r * k``, the parent ``k * n``.
    """

    def __init__(self, rows: Array):
        self.rows = rows

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return the sum of the outer products of each sample."""
        _, r, n = self.rows.shape
        turned = np.swapaxes(g.reshape(*g.shape[:2], r, -1), 2, 3)
        target = None if out is None else out.reshape(*out.shape[:2], turned.shape[2], n)
        product = np.matmul(turned, self.rows, target)
        return product.reshape(*product.shape[:2], -1)

    def pull_sum(self, g: Array, out: Array | None = None) -> Array:
        """Return the sum over samples and vectors as one matrix product."""
        samples, _, n = self.rows.shape
        if samples == 1:
            return self.pull(g.sum(axis=1, keepdims=True), out)
        return OuterSum(self.rows.reshape(1, -1, n)).pull(g.reshape(len(g), 1, -1), out)

    def split(self, g: Array) -> list[tuple[Array, Array | None]]:
        """Return a pair for each vector; their sum, where that has fewer numbers than they (many patches, a small kernel)."""
        _, r, n = self.rows.shape
        if r > 2 and r * (g.shape[2] // r + n) > 2 * (g.shape[2] // r) * n:
            return [(self.pull(g), None)]
        stretches = g.reshape(*g.shape[:2], r, -1)
        return [(stretches[:, :, k], self.rows[:, k]) for k in range(r)]

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the tangent of the matrix times every vector."""
        n = self.rows.shape[2]
        product = np.matmul(self.rows, np.swapaxes(t.reshape(*t.shape[:2], -1, n), 2, 3))
        return product.reshape(*product.shape[:2], out_dim)


class Blocks(LocalJacobian):
    """``dy/dx = I_r ⊗ m``: the same matrix for each of ``r`` vectors laid end to end (BatchMatVec by its vectors).

    Parameters
    ----------
    m : ndarray (N, k, n)
        The node has length ``r * k``, the parent ``r * n``.
    """

    def __init__(self, m: Array):
        self.m = m

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return every stretch of the cotangent times the matrix."""
        _, k, n = self.m.shape
        stretches = g.reshape(*g.shape[:2], -1, k)
        if len(self.m) == 1 and (out is None or out.flags.c_contiguous):  # one plain matrix product
            target = None if out is None else out.reshape(-1, n)
            return np.matmul(stretches.reshape(-1, k), self.m[0], target).reshape(*g.shape[:2], -1)
        product = np.matmul(stretches, self.m, None if out is None else out.reshape(*out.shape[:2], -1, n))
        return product.reshape(*product.shape[:2], -1)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the matrix times every stretch of the tangent."""
        n = self.m.shape[2]
        product = np.matmul(t.reshape(*t.shape[:2], -1, n), np.swapaxes(self.m, 1, 2))
        return product.reshape(*product.shape[:2], -1)


class LeftProduct(LocalJacobian):
    """``dy/dx = m ⊗ I``: the matrix from the left, for a parent whose rows are multiplied all alike (MatMul by its second operand).

    Parameters
    ----------
    m : ndarray (N, r, k)
        The node has length ``r * n``, the parent ``k * n``.
    """

    def __init__(self, m: Array):
        self.m = m

    def pull(self, g: Array, out: Array | None = None) -> Array:
        """Return the transpose of the matrix times the cotangent."""
        product = np.swapaxes(self.m, 1, 2) @ g.reshape(*g.shape[:2], self.m.shape[1], -1)
        return Identity().pull(product.reshape(*product.shape[:2], -1), out)

    def push(self, t: Array, out_dim: int) -> Array:
        """Return the matrix times the tangent."""
        product = self.m @ t.reshape(*t.shape[:2], self.m.shape[2], -1)
        return product.reshape(*product.shape[:2], -1)


def _blocks(g: Array, rows: Array, out: Array | None) -> Array:
    """Return ``g_i row_i`` for every entry of the cotangent, end to end."""
    if out is None:
        out = np.empty((len(g), max(g.shape[1], len(rows)), g.shape[2] * rows.shape[2]), np.result_type(g, rows))
    scale_rows(g, rows, out.reshape(*out.shape[:2], g.shape[2], -1))
    return out
